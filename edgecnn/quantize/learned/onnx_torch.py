"""A closed list of ONNX operators as torch functions, so that a piece of a graph can be differentiated.

Only float tensors flow through torch; shapes, paddings, axes and bounds are read from the graph's constants. Whatever
is not in the list, or not in a form that is mapped, is told by `unmapped`: its layers are then learned without it.
Source of every operator's meaning: the ONNX operator reference, opsets 13 to 23.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from edgecnn.quantize.canonical import constant
from edgecnn.quantize.learned.node_parts import (
    axes_of,
    bound_of,
    constant_of,
    even,
    float_of,
    has,
    int_of,
    ints_of,
    text_of,
)

OPERATORS = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "HardSwish",
    "HardSigmoid", "Add", "Sub", "Mul", "Div", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean",
    "Resize", "Slice", "Split", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Pad", "BatchNormalization",
    "Identity", "DepthToSpace", "SpaceToDepth",
})  # fmt: skip
_DATA_INPUTS = {"Concat": None, "Add": 2, "Sub": 2, "Mul": 2, "Div": 2, "MatMul": 2, "Gemm": 3, "Conv": 3,
                "ConvTranspose": 3, "PRelu": 2}  # fmt: skip


def unmapped(node: ir.Node) -> str:
    """Why the node cannot run in torch, or ''."""
    if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
        return f"{node.op_type} is not mapped"
    if any(value.dtype not in (None, ir.DataType.FLOAT) for value in node.outputs):
        return f"{node.op_type} of another type than float32"
    first_side = _DATA_INPUTS.get(node.op_type, 1)
    sides = node.inputs[first_side:] if first_side is not None else ()
    if any(value is not None and constant(value) is None for value in sides):
        return f"{node.op_type} with a computed parameter"
    if text_of(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "automatic padding"
    match node.op_type:
        case "Conv" | "ConvTranspose":
            weight = constant(node.inputs[1])
            if weight is None or weight.ndim not in (3, 4):
                return f"{node.op_type} with a computed weight or an unusual rank"
            pads = ints_of(node, "pads", [])
            if node.op_type == "ConvTranspose" and ("output_shape" in node.attributes or not even(pads)):
                return "ConvTranspose with an output shape or uneven padding"
        case "MaxPool":
            if len(node.outputs) > 1 and node.outputs[1].uses():
                return "MaxPool with indices"
        case "AveragePool":
            pads = ints_of(node, "pads", [])
            if int_of(node, "ceil_mode", 0) or any(dilation != 1 for dilation in ints_of(node, "dilations", [])):
                return "AveragePool with rounded-up size or dilation"
            if any(pads) and not (even(pads)):
                return "AveragePool with uneven padding"
        case "Resize":
            return _resize_unmapped(node)
        case "Pad":
            if text_of(node, "mode", "constant") != "constant" or len(node.inputs) > 3:
                return "Pad of another kind than constant"
        case "BatchNormalization":
            if len(node.outputs) > 1 or any(constant(value) is None for value in node.inputs[1:]):
                return "BatchNormalization in training"
        case _:
            pass
    return ""


def _resize_unmapped(node: ir.Node) -> str:
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if text_of(node, "mode", "nearest") != "nearest" or scales is None or scales.size != 4:
        return "Resize other than nearest by constant scales"
    whole = all(float(scale).is_integer() and scale >= 1 for scale in scales)
    asymmetric = text_of(node, "coordinate_transformation_mode", "half_pixel") == "asymmetric"
    rounding = text_of(node, "nearest_mode", "round_prefer_floor")
    # Whole factors repeat each pixel in both conventions that exporters write.
    agreed = (asymmetric and rounding == "floor") or (not asymmetric and rounding.startswith("round_prefer"))
    return "" if whole and agreed and tuple(scales[:2]) == (1.0, 1.0) else "Resize by other than whole factors"


def apply(node: ir.Node, inputs: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """The node's outputs from its inputs (constants of shapes and bounds are read from the graph itself).

    Args:
        inputs: float32 tensors in the node's order, NCHW; None where the node has no input or only its constant counts.
    """
    x: Any = inputs[0]
    match node.op_type:
        case "Conv":
            return [_conv(node, x, inputs[1], inputs[2] if len(inputs) > 2 else None)]
        case "ConvTranspose":
            return [_conv_transpose(node, x, inputs[1], inputs[2] if len(inputs) > 2 else None)]
        case "Gemm":
            return [_gemm(node, x, inputs[1], inputs[2] if len(inputs) > 2 else None)]
        case "MatMul":
            return [torch.matmul(x, inputs[1])]
        case "Relu":
            return [F.relu(x)]
        case "Clip":
            low, high = (bound_of(node, index) for index in (1, 2))
            return [torch.clamp(x, low, high)]
        case "LeakyRelu":
            return [F.leaky_relu(x, float_of(node, "alpha", 0.01))]
        case "PRelu":
            return [torch.where(x >= 0, x, x * inputs[1])]
        case "Sigmoid":
            return [torch.sigmoid(x)]
        case "Tanh":
            return [torch.tanh(x)]
        case "HardSigmoid":
            return [torch.clamp(x * float_of(node, "alpha", 0.2) + float_of(node, "beta", 0.5), 0.0, 1.0)]
        case "HardSwish":
            return [x * torch.clamp(x / 6.0 + 0.5, 0.0, 1.0)]
        case "Add":
            return [x + inputs[1]]
        case "Sub":
            return [x - inputs[1]]
        case "Mul":
            return [x * inputs[1]]
        case "Div":
            return [x / inputs[1]]
        case "Concat":
            return [torch.cat([value for value in inputs if value is not None], int_of(node, "axis", 0))]
        case "BatchNormalization":
            scale, bias, mean, variance = inputs[1:5]
            return [F.batch_norm(x, mean, variance, scale, bias, False, 0.0, float_of(node, "epsilon", 1e-5))]
        case "Identity":
            return [x]
        case _:
            return _moved(node, x)


def _moved(node: ir.Node, x: torch.Tensor) -> list[torch.Tensor]:
    """Pools, and the operators that only move values."""
    match node.op_type:
        case "MaxPool":
            return [_max_pool(node, x)]
        case "AveragePool":
            size = ints_of(node, "kernel_shape", [])
            pads = ints_of(node, "pads", [0] * 2 * len(size))
            pool = F.avg_pool2d if len(size) == 2 else F.avg_pool1d
            strides = ints_of(node, "strides", [1] * len(size))
            counted = bool(int_of(node, "count_include_pad", 0))
            return [pool(x, size, strides, pads[: len(size)], False, counted)]
        case "GlobalAveragePool":
            return [x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)]
        case "ReduceMean":
            axes = axes_of(node, x.ndim) or list(range(x.ndim))
            return [x.mean(dim=axes, keepdim=bool(int_of(node, "keepdims", 1)))]
        case "Resize":
            scales = constant(node.inputs[2])
            assert scales is not None
            for axis in range(2, x.ndim):
                x = x.repeat_interleave(int(scales[axis]), dim=axis)
            return [x]
        case "Slice":
            return [_slice(node, x)]
        case "Split":
            return _split(node, x)
        case "Reshape":
            return [x.reshape(_target(node, x))]
        case "Flatten":
            axis = int_of(node, "axis", 1)
            return [x.reshape(math.prod(x.shape[:axis]), -1)]
        case "Transpose":
            return [x.permute(ints_of(node, "perm", list(reversed(range(x.ndim)))))]
        case "Squeeze":
            axes = axes_of(node, x.ndim) or [axis for axis, size in enumerate(x.shape) if size == 1]
            return [x.reshape([size for axis, size in enumerate(x.shape) if axis not in axes])]
        case "Unsqueeze":
            for axis in sorted(axes_of(node, x.ndim + len(axes_of(node, 0) or []))):
                x = x.unsqueeze(axis)
            return [x]
        case "Pad":
            pads = [int(n) for n in constant_of(node, 1)]
            half = len(pads) // 2
            flat = [pad for axis in reversed(range(half)) for pad in (pads[axis], pads[axis + half])]
            fill = float(constant_of(node, 2).reshape(-1)[0]) if has(node, 2) else 0.0
            return [F.pad(x, flat, value=fill)]
        case "DepthToSpace" | "SpaceToDepth":
            return [_blocks(node, x)]
        case _:
            raise AssertionError(f"{node.op_type} was not asked of `unmapped`")


def _conv(node: ir.Node, x: torch.Tensor, weight: Any, bias: Any) -> torch.Tensor:
    spatial = weight.ndim - 2
    pads = ints_of(node, "pads", [0] * 2 * spatial)
    x, own = _padded(x, pads, spatial)
    function = F.conv2d if spatial == 2 else F.conv1d
    return function(x, weight, bias, ints_of(node, "strides", [1] * spatial), own,
                    ints_of(node, "dilations", [1] * spatial), int_of(node, "group", 1))  # fmt: skip


def _padded(x: torch.Tensor, pads: list[int], spatial: int) -> tuple[torch.Tensor, list[int]]:
    """Even padding is left to the layer, uneven is added here."""
    if even(pads):
        return x, pads[:spatial]
    return F.pad(x, [n for axis in reversed(range(spatial)) for n in (pads[axis], pads[axis + spatial])]), [0] * spatial


def _conv_transpose(node: ir.Node, x: torch.Tensor, weight: Any, bias: Any) -> torch.Tensor:
    spatial = weight.ndim - 2
    function = F.conv_transpose2d if spatial == 2 else F.conv_transpose1d
    strides, dilations = (ints_of(node, name, [1] * spatial) for name in ("strides", "dilations"))
    pads, more = (ints_of(node, name, [0] * spatial)[:spatial] for name in ("pads", "output_padding"))
    return function(x, weight, bias, strides, pads, more, int_of(node, "group", 1), dilations)


def _gemm(node: ir.Node, x: torch.Tensor, weight: Any, bias: Any) -> torch.Tensor:
    left = x.t() if int_of(node, "transA", 0) else x
    result = left @ (weight.t() if int_of(node, "transB", 0) else weight)
    alpha, beta = float_of(node, "alpha", 1.0), float_of(node, "beta", 1.0)
    result = result if alpha == 1.0 else result * alpha
    return result if bias is None else result + (bias if beta == 1.0 else bias * beta)


def _max_pool(node: ir.Node, x: torch.Tensor) -> torch.Tensor:
    size = ints_of(node, "kernel_shape", [])
    strides = ints_of(node, "strides", [1] * len(size))
    pads = ints_of(node, "pads", [0] * 2 * len(size))
    dilations = ints_of(node, "dilations", [1] * len(size))
    flat = [n for axis in reversed(range(len(size))) for n in (pads[axis], pads[axis + len(size)])]
    pool = F.max_pool2d if len(size) == 2 else F.max_pool1d
    return pool(F.pad(x, flat, value=-math.inf), size, strides, 0, dilations, bool(int_of(node, "ceil_mode", 0)))


def _slice(node: ir.Node, x: torch.Tensor) -> torch.Tensor:
    starts, ends = ([int(n) for n in constant_of(node, index)] for index in (1, 2))
    axes = [int(n) for n in constant_of(node, 3)] if has(node, 3) else list(range(len(starts)))
    steps = [int(n) for n in constant_of(node, 4)] if has(node, 4) else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        picked = range(x.shape[axis])[slice(start, end if end > -(2**31) else None, step)]
        x = x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64, device=x.device))
    return x


def _split(node: ir.Node, x: torch.Tensor) -> list[torch.Tensor]:
    axis, parts = int_of(node, "axis", 0), len(node.outputs)
    if has(node, 1):
        return list(torch.split(x, [int(n) for n in constant_of(node, 1)], axis))
    return list(torch.split(x, math.ceil(x.shape[axis] / parts), axis))


def _target(node: ir.Node, x: torch.Tensor) -> list[int]:
    """A Reshape's shape for any batch: a graph with a fixed batch of 1 has that 1 in the constant."""
    shape = [int(n) for n in constant_of(node, 1)]
    if not int_of(node, "allowzero", 0):
        shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    declared = node.inputs[0].shape if node.inputs[0] is not None else None
    fixed = declared[0] if declared is not None and len(declared) else None
    if isinstance(fixed, int) and shape and shape[0] == fixed and fixed != x.shape[0]:
        shape[0] = x.shape[0]
    return shape


def _blocks(node: ir.Node, x: torch.Tensor) -> torch.Tensor:
    size = int_of(node, "blocksize", 1)
    n, c, h, w = x.shape
    if node.op_type == "SpaceToDepth":
        parts = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(n, c * size * size, h // size, w // size)
    if text_of(node, "mode", "DCR") == "DCR":
        parts = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // size**2, size, size, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // size**2, h * size, w * size)
