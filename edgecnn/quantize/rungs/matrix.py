"""A layer's weight as (groups, outputs of a group, inputs of a group, kernel), whatever its operator's own layout."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.place.placement import Graph


def is_scalable(node: ir.Node, graph: Graph) -> bool:
    """Whether the layer's weight and bias are constants of its own, so that factors of its channels can move in."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    array = constant(weight)
    if weight is None or array is None or len(weight.uses()) != 1 or weight.is_graph_output():
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = constant(node.inputs[2])
        if bias is None or bias.size != graph.shape(node.outputs[0])[1]:
            return False
    if node.op_type == "Gemm":
        return not attribute(node, "transA", 0)
    return node.op_type != "MatMul" or (array.ndim == 2 and len(graph.shape(node.inputs[0])) == 2)


def attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    found = node.attributes.get(name)
    return default if found is None else int(found.value)


def unfolded(node: ir.Node, array: np.ndarray) -> np.ndarray:
    """float64 (groups, outputs / groups, inputs / groups, kernel positions) of Conv, ConvTranspose, Gemm or MatMul."""
    wide = array.astype(np.float64)
    groups = attribute(node, "group", 1)
    match node.op_type:
        case "Conv":
            return wide.reshape(groups, array.shape[0] // groups, array.shape[1], math.prod(array.shape[2:]))
        case "ConvTranspose":
            parts = wide.reshape(groups, array.shape[0] // groups, array.shape[1], math.prod(array.shape[2:]))
            return parts.transpose(0, 2, 1, 3)
        case "Gemm" if attribute(node, "transB", 0):
            return wide[None, :, :, None]
    return wide.T[None, :, :, None]


def folded(node: ir.Node, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `unfolded`: an array in the operator's own layout, of the given shape."""
    match node.op_type:
        case "Conv":
            return matrix.reshape(shape)
        case "ConvTranspose":
            return matrix.transpose(0, 2, 1, 3).reshape(shape)
        case "Gemm" if attribute(node, "transB", 0):
            return matrix[0, :, :, 0]
    return matrix[0, :, :, 0].T


def scaled(node: ir.Node, array: np.ndarray, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """The weight with each output channel multiplied by `outputs` and each input channel divided by `inputs`."""
    matrix = unfolded(node, array)
    groups, rows, columns = matrix.shape[:3]
    matrix = matrix * outputs.reshape(groups, rows, 1, 1) / inputs.reshape(groups, 1, columns, 1)
    return folded(node, matrix, array.shape).astype(array.dtype)
