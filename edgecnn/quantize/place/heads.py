"""A detector's head, found by the shape of the graph: what must stay float, because boxes are sums of what it computes.

Two patterns, whatever the nodes are called:

* an expected value over bins (Distribution Focal Loss, Li et al. 2020, arXiv:2006.04388): Softmax, reshaping, then a
  Conv, MatMul or Gemm with one output channel;
* the last convolutions before the outputs (no other layer behind them), at two or more image scales, whose answers
  meet in one Concat, flattened to a list of anchors (YOLO, SSD, RetinaNet, NanoDet); or, exported without decoding,
  the last 1x1 convolutions at two or more scales, each an output of its own.

A map that is resized, pooled or rearranged into pixels on its way out is no detector's: segmentation heads, auxiliary
classifiers and feature pyramids are left alone. Source of the rule: the DFL and the output convolutions cost most of
the INT8 accuracy for a small share of the time (Ultralytics' INT8 export keeps the same layers float by node name).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.place.coverage import macs
from edgecnn.quantize.place.placement import LAYERS, Graph

# The head stays float up to this share of the model's MACs, so that INT8 coverage stays above 85 %. Where it is more
# (3x3 output convolutions of SSD and RetinaNet), kinds of outputs are kept from the smallest up: boxes before classes.
MOST_MACS = 0.10
BINS = "expected value over the bins of a box side (DFL)"
OUTPUT = "a detector's output convolution"
_LEAVES = frozenset({
    "Resize", "Upsample", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "DepthToSpace",
    "SpaceToDepth", "GridSample",
})  # fmt: skip
_RESHAPING = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class Head:
    """`layers`: MAC layers that stay float, with the reason. `nodes`: all that is computed from them."""

    layers: dict[str, str]
    nodes: frozenset[str]


def head_of(graph: Graph) -> Head:
    """The detector's head of a canonical graph; empty where it has none."""
    bins = {node.name or "": BINS for node in graph.nodes() if _over_bins(node)}
    last = _last_layers(graph, frozenset(bins))
    found = _meeting(graph, last, frozenset(bins))
    kept = _cheapest(graph, [node for node in last if node.name in found])
    layers = {**bins, **{node.name or "": OUTPUT for node in kept}}
    return Head(layers, _behind(graph, frozenset(layers)))


def _over_bins(node: ir.Node) -> bool:
    """Softmax → (reshaping) → a layer with a constant weight and one output channel."""
    if node.op_type not in LAYERS or len(node.inputs) < 2 or (weight := constant(node.inputs[1])) is None:
        return False
    match node.op_type:
        case "Conv":
            outputs = weight.shape[0]
        case "MatMul":
            outputs = weight.shape[-1] if weight.ndim > 1 else 1
        case "Gemm":
            transposed = node.attributes.get("transB")
            outputs = weight.shape[0] if transposed is not None and transposed.value else weight.shape[1]
        case _:
            return False
    value = node.inputs[0]
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in _RESHAPING and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return outputs == 1 and producer is not None and producer.op_type == "Softmax"


def _last_layers(graph: Graph, bins: frozenset[str]) -> list[ir.Node]:
    """Convs with an image-shaped output and nothing behind them but arithmetic, in the order of the graph."""
    open_end: dict[str, bool] = {}  # value: only arithmetic between it and the outputs
    last = []
    for node in reversed(graph.nodes()):
        ends = all(
            value.name is not None and all(open_end.get(f"node {use[0].name}", False) for use in value.uses())
            for value in node.outputs
        )
        layer = node.op_type in LAYERS and node.name not in bins
        if layer and ends and node.op_type == "Conv" and len(_scale(graph, node)) == 2:
            last.append(node)
        open_end[f"node {node.name}"] = ends and not layer and node.op_type not in _LEAVES
    return last[::-1]


def _scale(graph: Graph, node: ir.Node) -> tuple[int, ...]:
    """Height and width of a Conv's output; () where it is not an image, or a single pixel."""
    shape = graph.shape(node.outputs[0])
    return shape[2:] if len(shape) == 4 and shape[2:] != (1, 1) else ()


def _meeting(graph: Graph, last: list[ir.Node], bins: frozenset[str]) -> set[str]:
    """Names of the last Convs that a detector's pattern takes together."""
    by_name = {node.name or "": node for node in last}
    reached: dict[str | None, frozenset[str]] = {}  # value: the last Convs that it is computed from
    found: set[str] = set()
    for node in graph.nodes():
        own = frozenset[str]().union(*(reached.get(v.name, frozenset()) for v in node.inputs if v is not None))
        if node.name in bins:
            found |= own
        anchors = node.op_type == "Concat" and len(graph.shape(node.outputs[0])) < 4
        if anchors and (own & found or len({_scale(graph, by_name[name]) for name in own}) > 1):
            found |= own
        if node.name in by_name:
            own = frozenset({node.name or ""})
        for value in node.outputs:
            reached[value.name] = own
    outputs = [reached.get(value.name, frozenset()) for value in graph.model.graph.outputs]
    raw = [by_name[name] for names in outputs if len(names) == 1 for name in names]
    raw = [node for node in raw if set(graph.shape(node.inputs[1])[2:]) == {1}]
    if len({_scale(graph, node) for node in raw}) > 1:
        found |= {node.name or "" for node in raw}
    return found


def _cheapest(graph: Graph, head: list[ir.Node]) -> list[ir.Node]:
    """As many as MOST_MACS allows: all of one number of output channels (a kind of output) or none."""
    whole = sum(macs(node, graph) for node in graph.nodes())
    kinds: dict[int, list[ir.Node]] = {}
    for node in head:
        kinds.setdefault(graph.shape(node.inputs[1])[0], []).append(node)
    costs = {kind: sum(macs(node, graph) for node in nodes) for kind, nodes in kinds.items()}
    kept: list[ir.Node] = []
    spent = 0
    for kind in sorted(kinds, key=lambda kind: (costs[kind], kind)):
        spent += costs[kind]
        if spent > MOST_MACS * whole:
            break
        kept += kinds[kind]
    return kept


def _behind(graph: Graph, layers: frozenset[str]) -> frozenset[str]:
    """The layers and every node computed from them."""
    behind: set[str | None] = set()
    names: set[str] = set()
    for node in graph.nodes():
        if node.name in layers or any(value is not None and value.name in behind for value in node.inputs):
            names.add(node.name or "")
            behind.update(value.name for value in node.outputs)
    return frozenset(names)
