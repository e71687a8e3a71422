"""How much of a model is computed in INT8: without it an accuracy says little."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.graph.macs import layers_in
from edgecnn.quantize.place.placement import LAYERS, Edge, Graph, Placement

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Coverage:
    """Shares in 0..1: of multiply-accumulates, and of activation bytes read, that are INT8."""

    macs: float
    activation_bytes: float


def macs(node: ir.Node, graph: Graph) -> int:
    """Multiply-accumulates of an operator for one image, what its subgraphs hold included; 0 for other ops."""
    return sum(layer.macs for layer in layers_in(node, graph.shape))


def coverage(graph: Graph, placement: Placement) -> Coverage:
    """Both shares.

    Activation bytes count each reading of a float tensor by a node, as the float model stores it, except readings that
    fuse with the layer before (an activation or Add that alone reads a layer's output never meets memory). A reading
    through Q/DQ is INT8.
    """
    total = sum(macs(node, graph) for node in graph.nodes())
    int8 = sum(macs(node, graph) for node in graph.nodes() if node.name in placement.int8_layers)
    through = {edge for activation in placement.activations for edge in activation.edges}
    read = read_int8 = 0
    for node in graph.nodes():
        for index, value in enumerate(node.inputs):
            if value is None or constant(value) is not None or value.dtype not in _FLOATS or _fused(node, value):
                continue
            size = math.prod(graph.shape(value))
            read += size
            if Edge(node.name or "", index) in through:
                read_int8 += size
    return Coverage(int8 / total if total else 0.0, read_int8 / read if read else 0.0)


def _fused(node: ir.Node, value: ir.Value) -> bool:
    producer = value.producer()
    if producer is None or len({use[0].name for use in value.uses()}) != 1:
        return False
    if producer.op_type in LAYERS:
        return node.op_type not in LAYERS and node.op_type != "Concat"
    # A ReLU behind the fused Add, a Mul behind its Sigmoid.
    return producer.op_type == "Add" and node.op_type in ("Relu", "Clip")
