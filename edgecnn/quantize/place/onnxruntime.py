"""Placement for onnxruntime's CPU kernels: every op with an INT8 kernel or an INT8 fusion, each in and out quantized.

With the scheme's `costs`, of those only what the measured costs of that kind of CPU say is worth it: the ops whose INT8
makes the whole graph fastest, conversions counted (see `paying`).

Source: onnxruntime's QDQ selectors (core/optimizer/qdq_transformer/selectors_actions): a node fuses when all its data
inputs come from DequantizeLinear and its one output goes to QuantizeLinear only.
"""

from __future__ import annotations

import onnx_ir as ir

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.place.costs import table_of
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
)
from edgecnn.recipe.device import Scheme

_OWN_KERNEL = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"})
_SAME_SCALE = frozenset({
    "MaxPool", "Resize", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split",
    "DepthToSpace",
})  # fmt: skip
_FLOAT_OUTPUT = frozenset({"Gemm", "MatMul"})  # their kernels can also answer float


def place(graph: Graph, keep_float: frozenset[str], scheme: Scheme) -> Placement:
    """Every fusible op. A ReLU or Clip is part of the Q after it; with symmetric INT8 it stands between two."""
    gates, head = gate_nodes(graph), head_of(graph)
    weights: dict[str, Weight] = {}
    why_float: dict[str, str] = {}
    taken: set[str] = set()
    image = _before_first_layer(graph)
    for node in graph.nodes():
        name = node.name or ""
        if node.op_type in LAYERS:
            found = layer_weight(node, graph)
            why = _why_float(node, name, keep_float, gates, head, found)
            if isinstance(found, Weight) and not why:
                weights[name] = found
                taken.add(name)
            else:
                why_float[name] = why
        elif not (name in keep_float or name in gates or name in head.nodes or name in image) and _fusible(node, graph):
            taken.add(name)
    if scheme.costs is not None:
        taken = _worth_it(graph, taken, weights, why_float, scheme)
    edges, groups = _edges(graph, taken, scheme)
    clamped = frozenset(
        value.name or "" for node in graph.nodes() if node.op_type in ("Relu", "Clip") for value in node.outputs
    )
    return Placement(assembled(graph, edges, groups, clamped), tuple(weights.values()), why_float)


def _worth_it(
    graph: Graph, taken: set[str], weights: dict[str, Weight], why_float: dict[str, str], scheme: Scheme
) -> set[str]:
    """Take out what INT8 would slow down. Where no layer is worth it all are kept: INT8 was asked for, and its quarter
    of the bytes is had either way; the measured speed says what it costs."""
    assert scheme.costs is not None
    from edgecnn.quantize.place.paying import find_paying_layers

    inside = {}
    for node in graph.nodes():
        for value in node.outputs:
            if node.name in taken and _stored(value, scheme) != value.name:
                inside[next(reader.name or "" for reader, _ in value.uses())] = node.name or ""
    kept = set(find_paying_layers(graph, frozenset(taken), inside, table_of(scheme.costs)))
    if not kept & weights.keys():
        return taken
    for name in [name for name in weights if name not in kept]:
        del weights[name]
        why_float[name] = f"slower in INT8 than in float on this kind of CPU ({scheme.costs})"
    return kept


def _why_float(
    node: ir.Node, name: str, keep: frozenset[str], gates: frozenset[str], head: Head, found: Weight | str
) -> str:
    if name in keep:
        return "kept float by the recipe"
    if isinstance(found, str):
        return found
    if name in gates:
        return "gate of a squeeze-and-excitation block"
    if name in head.layers:
        return head.layers[name]
    if node.op_type == "ConvTranspose":
        return "onnxruntime's CPU has no INT8 ConvTranspose"
    return ""


def _before_first_layer(graph: Graph) -> frozenset[str]:
    """Nodes between the graph's inputs and the first layer: rounding the normalization would cost every layer."""
    early: set[str] = set()
    reached = {value.name for value in graph.model.graph.inputs}
    for node in graph.nodes():
        data = [value for value in node.inputs if value is not None and constant(value) is None]
        if data and node.op_type not in LAYERS and all(value.name in reached for value in data):
            early.add(node.name or "")
            reached.update(value.name for value in node.outputs)
    return frozenset(early)


def _fusible(node: ir.Node, graph: Graph) -> bool:
    if node.domain not in ("", "ai.onnx") or any(value.dtype != ir.DataType.FLOAT for value in node.outputs):
        return False
    if node.op_type in _OWN_KERNEL:
        return all(value is not None and constant(value) is None for value in node.inputs)
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return mode is None or mode.value == "nearest"
    return node.op_type in _SAME_SCALE


def _edges(graph: Graph, taken: set[str], scheme: Scheme) -> tuple[dict[str, set[Edge]], Groups]:
    edges: dict[str, set[Edge]] = {}
    groups = Groups()
    read: set[str] = set()
    for node in graph.nodes():
        if node.name not in taken:
            continue
        for index in range(len(node.inputs) if node.op_type in ("Add", "Mul", "Concat") else 1):
            read.add(node.inputs[index].name or "")
        for value in node.outputs:
            if not (node.op_type in _FLOAT_OUTPUT and value.is_graph_output()):
                read.add(_stored(value, scheme) or "")
    for node in graph.nodes():
        if node.op_type in _SAME_SCALE and node.name in taken:
            for value in node.outputs:
                groups.join(node.inputs[0].name or "", value.name or "")
    for node in graph.nodes():
        for index, value in enumerate(node.inputs):
            if value is None or value.name not in read or constant(value) is not None:
                continue
            if node.name in taken or _is_stored_int8(value, taken):  # what is float anyway is read as it is
                edges.setdefault(value.name, set()).add(Edge(node.name or "", index))
    for value in graph.model.graph.outputs:
        if value.name in read:
            edges.setdefault(value.name or "", set())
    return edges, groups


def _is_stored_int8(value: ir.Value, taken: set[str]) -> bool:
    maker = value.producer()
    if maker is not None and maker.name not in taken and maker.op_type in ("Relu", "Clip"):
        maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
    return maker is not None and maker.name in taken


def _stored(value: ir.Value, scheme: Scheme) -> str | None:
    """The tensor that a node's kernel stores: past a Relu or Clip that fuses into the QuantizeLinear."""
    uses = value.uses()
    if scheme.activations != "int8-symmetric" and len(uses) == 1 and not value.is_graph_output():
        consumer = next(iter(uses))[0]
        if consumer.op_type == "Relu" or (consumer.op_type == "Clip" and _bounds_are_constant(consumer)):
            return consumer.outputs[0].name
    return value.name


def _bounds_are_constant(clip: ir.Node) -> bool:
    return all(value is None or constant(value) is not None for value in clip.inputs[1:])
