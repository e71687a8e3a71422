"""Placement for TensorRT and TensorRT for RTX.

Sources: TensorRT developer guide, "Explicit quantization" (Q/DQ placement recommendations); pytorch-quantization's
ResNet-50 tutorial (the residual Add); Model Optimizer's non-residual Add map and Concat elimination.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.place.heads import Head, head_of
from edgecnn.quantize.place.placement import (
    LAYERS,
    Edge,
    Graph,
    Groups,
    Placement,
    Weight,
    assembled,
    gate_nodes,
    layer_weight,
    zero_fill,
)

# An INT8 tile of the tensor cores takes 32 channels, packed by 4: with fewer than 8, most of it computes padding.
FEW_CHANNELS = 8
_SELECTING = frozenset(
    {"MaxPool", "Slice", "Split", "Pad", "Concat", "Resize", "Gather", "DepthToSpace", "SpaceToDepth"}
)
_RESHAPING = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})


def place(
    graph: Graph, keep_float: frozenset[str], least_channels: int = FEW_CHANNELS, also: tuple[Edge, ...] = ()
) -> Placement:
    """Q/DQ on inputs and weights of layers and the skip input of residual Adds; one scale across pass-through ops.

    `also`: further readings that get Q/DQ.
    """
    head = head_of(graph)
    weights, why_float = _layers(graph, keep_float, head, least_channels)
    edges: dict[str, set[Edge]] = {}
    for weight in weights.values():
        _add(edges, _node(graph, weight.node).inputs[0], weight.node, 0)
    for node in graph.nodes():
        if (
            node.op_type == "Add"
            and node.name not in keep_float
            and node.name not in head.nodes
            and (skip := _skip_input(graph, node, weights)) is not None
        ):
            _add(edges, node.inputs[skip], node.name or "", skip)
    for edge in also:
        _add(edges, _node(graph, edge.node).inputs[edge.index], edge.node, edge.index)
    groups = Groups()
    for node in reversed(graph.nodes()):  # backwards: a chain is walked from its end to its root
        if node.name not in keep_float:
            _through(graph, node, edges, groups)
    return Placement(assembled(graph, edges, groups), tuple(weights.values()), why_float)


def _add(edges: dict[str, set[Edge]], value: ir.Value | None, node: str, index: int) -> None:
    if value is not None and value.name is not None:
        edges.setdefault(value.name, set()).add(Edge(node, index))


def _node(graph: Graph, name: str) -> ir.Node:
    return next(node for node in graph.model.graph if node.name == name)


def _layers(
    graph: Graph, keep_float: frozenset[str], head: Head, least_channels: int
) -> tuple[dict[str, Weight], dict[str, str]]:
    gates = gate_nodes(graph)
    weights: dict[str, Weight] = {}
    why_float: dict[str, str] = {}
    for node in graph.nodes():
        if node.op_type not in LAYERS:
            continue
        name = node.name or ""
        found = layer_weight(node, graph)
        if name in keep_float:
            why_float[name] = "kept float by the recipe"
        elif isinstance(found, str):
            why_float[name] = found
        elif name in gates:
            why_float[name] = "gate of a squeeze-and-excitation block"
        elif name in head.layers:
            why_float[name] = head.layers[name]
        elif few := _few_channels(graph, node, least_channels):
            why_float[name] = few
        else:
            weights[name] = found
    return weights, why_float


def _few_channels(graph: Graph, node: ir.Node, least: int) -> str:
    """Why a Conv has too few channels to gain, or ''. The image's Conv has its own kernels: channels packed by 4."""
    if node.op_type not in ("Conv", "ConvTranspose") or _reads_image(node):
        return ""
    array = constant(node.inputs[1])
    group = node.attributes.get("group")
    groups = int(group.value) if group is not None else 1
    assert array is not None
    if groups > 1:
        return ""  # depthwise and grouped: no tile of many channels to begin with
    if min(array.shape[0], array.shape[1]) < least:
        return f"fewer than {least} channels"
    return ""


def _reads_image(node: ir.Node) -> bool:
    """Only elementwise and reshaping ops stand between the graph's input and the node."""
    value = node.inputs[0]
    while value is not None:
        if value.is_graph_input():
            return True
        producer = value.producer()
        if producer is None or producer.op_type not in ("Cast", "Mul", "Add", "Sub", "Div", *_RESHAPING):
            return False
        value = next((v for v in producer.inputs if constant(v) is None), None)
    return False


def _skip_input(graph: Graph, add: ir.Node, weights: dict[str, Weight]) -> int | None:
    """Which input of a residual Add gets Q/DQ: the one that is not the output of the Conv that the Add fuses with."""
    shapes = [graph.shape(value) for value in add.inputs]
    if (
        shapes[0] != shapes[1]
        or any(constant(value) is not None for value in add.inputs)
        or add.inputs[0] is add.inputs[1]
    ):
        return None
    first, second = (_fusing_layer(value, weights) for value in add.inputs)
    if first is None or second is None:
        return None if first is second else (0 if first is None else 1)
    # Both are Convs: the larger keeps its accumulator, the smaller (the projection) is stored as INT8.
    sizes = [math.prod(graph.shape(layer.inputs[1])) for layer in (first, second)]
    return 0 if sizes[0] < sizes[1] else 1


def _fusing_layer(value: ir.Value | None, weights: dict[str, Weight]) -> ir.Node | None:
    producer = value.producer() if value is not None else None
    if (
        value is None
        or producer is None
        or producer.name not in weights
        or len(value.uses()) != 1
        or value.is_graph_output()
    ):
        return None
    return producer


def _through(graph: Graph, node: ir.Node, edges: dict[str, set[Edge]], groups: Groups) -> None:
    """If a pass-through node's output is quantized, let its inputs have the same scale."""
    wanted = [value.name for value in node.outputs if value.name in edges]
    if not wanted or not passes(node):
        return
    inputs = [v for v in (node.inputs if node.op_type == "Concat" else node.inputs[:1]) if v is not None]
    if any(constant(value) is not None for value in inputs) or any(value.name is None for value in inputs):
        return
    for index, value in enumerate(inputs):
        # Reshaping alone moves no data: it only joins scales that exist. The others then run in INT8 themselves.
        if node.op_type in _RESHAPING and value.name not in edges and not _from_selecting(value):
            continue
        _add(edges, value, node.name or "", index)
        for name in wanted:
            groups.join(name or "", value.name or "")


def _from_selecting(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type in _SELECTING and passes(producer)


def passes(node: ir.Node) -> bool:
    """The op only moves or selects values, so that INT8 in and INT8 out need one scale."""
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return mode is None or mode.value == "nearest"
    if node.op_type == "Pad":
        return zero_fill(node)
    return node.op_type in _SELECTING or node.op_type in _RESHAPING
