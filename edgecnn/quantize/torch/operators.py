"""A closed list of ONNX operators as torch functions, so that a piece of a graph can be differentiated.

Only float tensors flow through torch; shapes, paddings, axes and bounds are read from the graph's constants. Whatever
is not in the list, or not in a form that is mapped, is told by `unmapped`: its layers are then learned without it.
Source of every operator's meaning: the ONNX operator reference, opsets 13 to 23.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.torch import moves
from edgecnn.quantize.torch.node_parts import axes_of, bound_of, even

Unary = Callable[[torch.Tensor], torch.Tensor]
_PLAIN: dict[str, Unary] = {
    "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Mish": F.mish, "Softplus": F.softplus,
    "HardSwish": lambda x: x * torch.clamp(x / 6.0 + 0.5, 0.0, 1.0), "Erf": torch.erf, "Exp": torch.exp,
    "Sqrt": torch.sqrt, "Abs": torch.abs, "Neg": torch.neg, "Identity": lambda x: x,
}  # fmt: skip
_PAIRS: dict[str, Callable[[Any, Any], torch.Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Pow": torch.pow, "MatMul": torch.matmul,
    "Max": torch.maximum, "Min": torch.minimum, "Sum": torch.add,
}  # fmt: skip
_REDUCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin,
}  # fmt: skip
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "Einsum")
_NORMALIZATIONS = (
    "BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization",
)  # fmt: skip
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
OPERATORS = frozenset({
    *_PLAIN, *_PAIRS, *_REDUCTIONS, *_LAYERS, *_NORMALIZATIONS, *_POOLS, *moves.OPERATORS, "Clip", "Concat", "Elu",
    "Gelu", "HardSigmoid", "LeakyRelu", "PRelu", "Softmax",
})  # fmt: skip
# How many inputs may be computed, where that is more than one; None: all of them.
_DATA_INPUTS = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "MatMul", "PRelu"), 2),
    **dict.fromkeys(("Gemm", "Conv", "ConvTranspose"), 3),
    **dict.fromkeys(("Concat", "Einsum", "Max", "Min", "Sum"), None),
}


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
    if any(array is not None and array.dtype != np.float32 for array in map(constant, node.inputs[:first_side])):
        return f"{node.op_type} with a constant of another type than float32"
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "automatic padding"
    match node.op_type:
        case "Conv" | "ConvTranspose":
            weight = constant(node.inputs[1])
            if weight is None or weight.ndim not in (3, 4):
                return f"{node.op_type} with a computed weight or an unusual rank"
        case "MaxPool" | "LayerNormalization" if any(output.uses() for output in node.outputs[1:]):
            return f"{node.op_type} whose further outputs are read"
        case "AveragePool":
            pads = node.attributes.get_ints("pads", [])
            dilated = any(dilation != 1 for dilation in node.attributes.get_ints("dilations", []))
            if node.attributes.get_int("ceil_mode", 0) or dilated:
                return "AveragePool with rounded-up size or dilation"
            if any(pads) and not even(pads):
                return "AveragePool with uneven padding"
        case "BatchNormalization" if len(node.outputs) > 1:
            return "BatchNormalization in training"
        case _:
            return moves.unmapped(node)
    return ""


def apply(node: ir.Node, inputs: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """The node's outputs from its inputs (constants of shapes and bounds are read from the graph itself).

    Args:
        inputs: float32 tensors in the node's order, NCHW; None where the node has no input or only its constant counts.
    """
    if node.op_type in moves.OPERATORS:
        return moves.apply(node, inputs[0])
    return [_apply(node, inputs[0], inputs)]


def _apply(node: ir.Node, x: Any, inputs: list[Any]) -> torch.Tensor:
    given = node.attributes
    name = node.op_type
    if name in _PLAIN:
        return _PLAIN[name](x)
    if name in _PAIRS:
        return functools.reduce(_PAIRS[name], inputs)
    if name in _REDUCTIONS:
        if not (axes := axes_of(node, x.ndim)) and given.get_int("noop_with_empty_axes", 0):
            return x
        return _REDUCTIONS[name](x, dim=axes or list(range(x.ndim)), keepdim=bool(given.get_int("keepdims", 1)))
    if name in _NORMALIZATIONS:
        return _normalized(node, x, inputs)
    if name in _POOLS:
        return _pooled(node, x)
    if name in _LAYERS:
        return _layer(node, x, inputs)
    match name:
        case "Clip":
            return torch.clamp(x, bound_of(node, 1), bound_of(node, 2))
        case "LeakyRelu":
            return F.leaky_relu(x, given.get_float("alpha", 0.01))
        case "PRelu":
            return torch.where(x >= 0, x, x * inputs[1])
        case "Elu":
            return F.elu(x, given.get_float("alpha", 1.0))
        case "Gelu":
            return F.gelu(x, approximate=given.get_string("approximate", "none"))
        case "HardSigmoid":
            return torch.clamp(x * given.get_float("alpha", 0.2) + given.get_float("beta", 0.5), 0.0, 1.0)
        case "Softmax":
            return torch.softmax(x, given.get_int("axis", -1))
        case "Concat":
            return torch.cat([value for value in inputs if value is not None], given.get_int("axis", 0))
        case _:
            raise AssertionError(f"{name} was not asked of `unmapped`")


def _normalized(node: ir.Node, x: torch.Tensor, inputs: list[Any]) -> torch.Tensor:
    epsilon, (scale, bias) = node.attributes.get_float("epsilon", 1e-5), (*inputs[1:3], None)[:2]
    match node.op_type:
        case "BatchNormalization":
            return F.batch_norm(x, inputs[3], inputs[4], scale, bias, False, 0.0, epsilon)
        case "InstanceNormalization":
            return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)
        case "LayerNormalization":
            shape = x.shape[node.attributes.get_int("axis", -1) :]
            centred = F.layer_norm(x, shape, eps=epsilon)  # a scale may be of another shape that broadcasts
            return centred * scale if bias is None else centred * scale + bias
        case _:
            groups, channels = node.attributes.get_int("num_groups", 1), x.shape[1]
            # Before opset 21 scale and bias were one of each group.
            scale, bias = (part.repeat_interleave(channels // len(part)) for part in (scale, bias))
            return F.group_norm(x, groups, scale, bias, epsilon)


def _pooled(node: ir.Node, x: torch.Tensor) -> torch.Tensor:
    match node.op_type:
        case "MaxPool":
            return _max_pool(node, x)
        case "AveragePool":
            size = node.attributes.get_ints("kernel_shape", [])
            pads = node.attributes.get_ints("pads", [0] * 2 * len(size))
            pool = F.avg_pool2d if len(size) == 2 else F.avg_pool1d
            strides = node.attributes.get_ints("strides", [1] * len(size))
            counted = bool(node.attributes.get_int("count_include_pad", 0))
            return pool(x, size, strides, pads[: len(size)], False, counted)
        case "GlobalAveragePool":
            return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
        case _:
            return x.amax(dim=tuple(range(2, x.ndim)), keepdim=True)


def _layer(node: ir.Node, x: torch.Tensor, inputs: list[Any]) -> torch.Tensor:
    if node.op_type == "Einsum":
        return torch.einsum(node.attributes.get_string("equation", ""), *inputs)
    weight, bias = inputs[1], inputs[2] if len(inputs) > 2 else None
    return {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm}[node.op_type](node, x, weight, bias)


def _conv(node: ir.Node, x: torch.Tensor, weight: Any, bias: Any) -> torch.Tensor:
    spatial = weight.ndim - 2
    pads = node.attributes.get_ints("pads", [0] * 2 * spatial)
    x, own = _padded(x, pads, spatial)
    function, given = F.conv2d if spatial == 2 else F.conv1d, node.attributes
    strides, dilations = (given.get_ints(name, [1] * spatial) for name in ("strides", "dilations"))
    return function(x, weight, bias, strides, own, dilations, given.get_int("group", 1))


def _padded(x: torch.Tensor, pads: list[int], spatial: int) -> tuple[torch.Tensor, list[int]]:
    """Even padding is left to the layer, uneven is added here."""
    if even(pads):
        return x, pads[:spatial]
    return F.pad(x, [n for axis in reversed(range(spatial)) for n in (pads[axis], pads[axis + spatial])]), [0] * spatial


def _conv_transpose(node: ir.Node, x: torch.Tensor, weight: Any, bias: Any) -> torch.Tensor:
    spatial, given = weight.ndim - 2, node.attributes
    function = F.conv_transpose2d if spatial == 2 else F.conv_transpose1d
    strides, dilations = (given.get_ints(name, [1] * spatial) for name in ("strides", "dilations"))
    pads, more = given.get_ints("pads", [0] * 2 * spatial), given.get_ints("output_padding", [0] * spatial)
    group, asked = given.get_int("group", 1), given.get_ints("output_shape", [])
    if even(pads) and not asked:
        return function(x, weight, bias, strides, pads[:spatial], more, group, dilations)
    whole = function(x, weight, None, strides, 0, 0, group, dilations)
    cut = []  # of each axis, the last first: (before, after) to add, where negative numbers take away
    for axis in reversed(range(spatial)):
        before, after = pads[axis], pads[axis + spatial]
        if asked:
            total = whole.shape[2 + axis] + more[axis] - asked[axis - spatial]
            before, after = total - total // 2, total // 2
        cut += [-before, more[axis] - after]
    result = F.pad(whole, cut)
    return result if bias is None else result + bias.reshape(-1, *[1] * spatial)


def _gemm(node: ir.Node, x: torch.Tensor, weight: Any, bias: Any) -> torch.Tensor:
    left = x.t() if node.attributes.get_int("transA", 0) else x
    result = left @ (weight.t() if node.attributes.get_int("transB", 0) else weight)
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    result = result if alpha == 1.0 else result * alpha
    return result if bias is None else result + (bias if beta == 1.0 else bias * beta)


def _max_pool(node: ir.Node, x: torch.Tensor) -> torch.Tensor:
    given = node.attributes
    size = given.get_ints("kernel_shape", [])
    strides, dilations = (given.get_ints(name, [1] * len(size)) for name in ("strides", "dilations"))
    pads = given.get_ints("pads", [0] * 2 * len(size))
    flat = [n for axis in reversed(range(len(size))) for n in (pads[axis], pads[axis + len(size)])]
    pool = F.max_pool2d if len(size) == 2 else F.max_pool1d
    return pool(F.pad(x, flat, value=-math.inf), size, strides, 0, dilations, bool(given.get_int("ceil_mode", 0)))
