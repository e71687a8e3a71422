"""The ONNX operators that only move values, as torch functions; see `operators`."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.torch.node_parts import axes_of, constant_of, has

OPERATORS = frozenset({
    "Resize", "Slice", "Split", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Pad", "DepthToSpace",
    "SpaceToDepth", "Gather", "Expand",
})  # fmt: skip
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")


def unmapped(node: ir.Node) -> str:
    """Why the node cannot run in torch, or ''."""
    match node.op_type:
        case "Resize":
            coordinates = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
            if coordinates not in _COORDINATES or node.attributes.get_int("antialias", 0):
                return f"Resize with {coordinates} coordinates or antialiasing"
            if node.attributes.get_int("exclude_outside", 0) or "axes" in node.attributes:
                return "Resize of named axes or without what lies outside"
        case "Pad":
            mode, negative = node.attributes.get_string("mode", "constant"), (constant_of(node, 1) < 0).any()
            if len(node.inputs) > 3 or (mode != "constant" and negative):
                return "Pad of named axes, or that cuts and mirrors"
        case "Gather" if constant_of(node, 1).ndim > 1:
            return "Gather by a table"
        case _:
            pass
    return ""


def apply(node: ir.Node, x: torch.Tensor) -> list[torch.Tensor]:
    """The node's outputs from its first input; all others are constants of the graph."""
    match node.op_type:
        case "Split":
            return _split(node, x)
        case "Resize":
            x = _resize(node, x)
        case "Slice":
            x = _slice(node, x)
        case "Reshape":
            x = x.reshape(_target(node, x))
        case "Expand":
            x = x.expand(torch.broadcast_shapes(x.shape, tuple(int(n) for n in constant_of(node, 1))))
        case "Flatten":
            x = x.reshape(math.prod(x.shape[: node.attributes.get_int("axis", 1)]), -1)
        case "Transpose":
            x = x.permute(*node.attributes.get_ints("perm", list(reversed(range(x.ndim)))))
        case "Squeeze":
            axes = axes_of(node, x.ndim) or [axis for axis, size in enumerate(x.shape) if size == 1]
            x = x.reshape([size for axis, size in enumerate(x.shape) if axis not in axes])
        case "Unsqueeze":
            for axis in sorted(axes_of(node, x.ndim + len(axes_of(node, 0) or []))):
                x = x.unsqueeze(axis)
        case "Gather":
            axis, numbers = node.attributes.get_int("axis", 0), constant_of(node, 1)
            picked = _picked(x, axis, np.atleast_1d(numbers) % x.shape[axis])
            x = picked if numbers.ndim else picked.squeeze(axis)
        case "Pad":
            x = _padded(node, x)
        case _:
            x = _blocks(node, x)
    return [x]


def _picked(x: torch.Tensor, axis: int, places: np.ndarray) -> torch.Tensor:
    return x.index_select(axis, torch.from_numpy(places.astype(np.int64)).to(x.device))


def _padded(node: ir.Node, x: torch.Tensor) -> torch.Tensor:
    pads, mode = [int(n) for n in constant_of(node, 1)], node.attributes.get_string("mode", "constant")
    half = len(pads) // 2
    if mode == "constant":
        flat = [pad for axis in reversed(range(half)) for pad in (pads[axis], pads[axis + half])]
        return F.pad(x, flat, value=float(constant_of(node, 2).reshape(-1)[0]) if has(node, 2) else 0.0)
    for axis in range(half):
        if pads[axis] or pads[axis + half]:
            x = _picked(x, axis, np.pad(np.arange(x.shape[axis]), (pads[axis], pads[axis + half]), mode=mode))
    return x


def _resize(node: ir.Node, x: torch.Tensor) -> torch.Tensor:
    mode = node.attributes.get_string("mode", "nearest")
    for axis, size in enumerate(x.shape):
        if len(node.inputs) > 3 and (wanted := constant(node.inputs[3])) is not None and wanted.size:
            made = int(wanted[axis]) if axis else size
            scale = made / size
        else:
            scale = float(constant_of(node, 2)[axis])
            made = math.floor(size * scale)
        if scale == 1.0:
            continue
        places = _sources(node, size, made, scale)
        if mode == "nearest":
            x = _picked(x, axis, np.clip(_rounded(node, places), 0, size - 1))
        else:
            weights = _weights(places, size, mode, node.attributes.get_float("cubic_coeff_a", -0.75))
            along = torch.from_numpy(weights).to(x)
            x = torch.movedim(torch.matmul(torch.movedim(x, axis, -1), along.t()), -1, axis)
    return x


def _sources(node: ir.Node, size: int, made: int, scale: float | np.float32) -> np.ndarray:
    """(made,) Where in the axis of `size` pixels each new pixel lies; in float32, as runtimes compute it."""
    new, scale = np.arange(made, dtype=np.float32), np.float32(scale)
    match node.attributes.get_string("coordinate_transformation_mode", "half_pixel"):
        case "asymmetric":
            return new / scale
        case "align_corners":
            return new * np.float32(size - 1) / np.float32(max(made - 1, 1))
        case "pytorch_half_pixel" if made == 1:
            return 0 * new
        case _:
            return (new + np.float32(0.5)) / scale - np.float32(0.5)


def _rounded(node: ir.Node, places: np.ndarray) -> np.ndarray:
    match node.attributes.get_string("nearest_mode", "round_prefer_floor"):
        case "floor":
            return np.floor(places)
        case "ceil":
            return np.ceil(places)
        case "round_prefer_ceil":
            return np.floor(places + 0.5)
        case _:
            return np.ceil(places - 0.5)


def _weights(places: np.ndarray, size: int, mode: str, steepness: float) -> np.ndarray:
    """(new, size) float32: linear or cubic (Keys 1981) interpolation, with the border's pixels beyond it."""
    weights = np.zeros((len(places), size))
    first = np.floor(places).astype(np.int64)
    for step in (0, 1) if mode == "linear" else (-1, 0, 1, 2):
        away = np.abs(places - (first + step))
        if mode == "linear":
            share = 1 - away
        else:
            a = steepness
            near = (a + 2) * away**3 - (a + 3) * away**2 + 1
            share = np.where(away <= 1, near, a * away**3 - 5 * a * away**2 + 8 * a * away - 4 * a)
        np.add.at(weights, (np.arange(len(places)), np.clip(first + step, 0, size - 1)), share)
    return weights.astype(np.float32)


def _slice(node: ir.Node, x: torch.Tensor) -> torch.Tensor:
    starts, ends = ([int(n) for n in constant_of(node, index)] for index in (1, 2))
    axes = [int(n) for n in constant_of(node, 3)] if has(node, 3) else list(range(len(starts)))
    steps = [int(n) for n in constant_of(node, 4)] if has(node, 4) else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        picked = range(x.shape[axis])[slice(start, end if end > -(2**31) else None, step)]
        x = _picked(x, axis, np.asarray(picked))
    return x


def _split(node: ir.Node, x: torch.Tensor) -> list[torch.Tensor]:
    axis, parts = node.attributes.get_int("axis", 0), len(node.outputs)
    if has(node, 1):
        return list(torch.split(x, [int(n) for n in constant_of(node, 1)], axis))
    return list(torch.split(x, math.ceil(x.shape[axis] / parts), axis))


def _target(node: ir.Node, x: torch.Tensor) -> list[int]:
    """A Reshape's shape for any batch: a graph with a fixed batch of 1 has that 1 in the constant."""
    shape = [int(n) for n in constant_of(node, 1)]
    if not node.attributes.get_int("allowzero", 0):
        shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    declared = node.inputs[0].shape if node.inputs[0] is not None else None
    fixed = declared[0] if declared is not None and len(declared) else None
    if isinstance(fixed, int) and shape and shape[0] == fixed and fixed != x.shape[0]:
        shape[0] = x.shape[0]
    return shape


def _blocks(node: ir.Node, x: torch.Tensor) -> torch.Tensor:
    size = node.attributes.get_int("blocksize", 1)
    n, c, h, w = x.shape
    if node.op_type == "SpaceToDepth":
        parts = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(n, c * size * size, h // size, w // size)
    if node.attributes.get_string("mode", "DCR") == "DCR":
        parts = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // size**2, size, size, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // size**2, h * size, w * size)
