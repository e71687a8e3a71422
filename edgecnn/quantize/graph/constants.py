"""Constant tensors of a graph: read one, add one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecnn.quantize.graph.names import Names


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer, or None when the value is not one."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return np.asarray(value.const_value.numpy())


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray, names: Names | None = None) -> ir.Value:
    """Register a new initializer; a taken name gets a number. `names` of the graph, where many are added."""
    unique = (names or Names(graph)).free(name)
    tensor = ir.Tensor(np.asarray(array, order="C"), name=unique)  # `ir.tensor` asks for long what it is given
    value = ir.Value(name=unique, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
