"""Which layers go back to float together: the smallest groups that add the fewest conversions between INT8 and float.

A conversion is a pass over a tensor that no layer does on the way (TensorRT calls it a reformat). An INT8 layer writes
INT8 or float, whichever its readers want; it can't write both, and a float layer writes only float. So:

- an INT8 tensor that a float operation makes: one conversion (the Q);
- a tensor that an INT8 operation makes, and that INT8 and float operations read: one conversion (Q or DQ).

With TensorRT an island inside a network needs one at least: the Q behind its last layer. Of a residual pair one layer
alone costs two, both together one, because the block's input then has only float readers. With onnxruntime's CPU, which
stores every tensor between INT8 kernels as INT8, an island needs two: a DQ before it and a Q behind it; there a tensor
is rounded as long as anything that makes or reads it is INT8, so these operations leave together as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from edgecnn.process.errors import EdgeError
from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.place.placement import LAYERS, Edge, Graph, Placement, place
from edgecnn.recipe.device import Scheme

_LARGEST = 4  # layers of a group: an inverted residual has three
_REACH = 4  # operations between two layers of a group: activation functions and an Add
_TRIED = 40  # groups tried for a layer
_NEEDED = {"tensorrt": 1}  # conversions of an island inside a network; elsewhere two


@dataclass(frozen=True)
class Island:
    """Nodes (by name, in graph order) that go back to float together, and how many conversions that adds."""

    layers: tuple[str, ...]
    conversions: int


def conversions(graph: Graph, placement: Placement) -> int:
    """How many conversions a placement has."""
    return _Conversions(graph).count(placement)


def without(graph: Graph, scheme: Scheme, placement: Placement, layers: Iterable[str]) -> Placement | None:
    """The placement with more layers in float; None where none would be left in INT8."""
    try:
        return place(graph, scheme, (*placement.kept, *sorted(set(layers) - set(placement.kept))))
    except EdgeError:
        return None


def islands(graph: Graph, scheme: Scheme, placement: Placement) -> list[Island]:
    """For each INT8 layer the smallest group around it that adds the fewest conversions; each group once.

    With rules for CPUs also for each stored tensor all operations that make or read it.
    """
    order = {node.name or "": number for number, node in enumerate(graph.nodes())}
    counter = _Conversions(graph)
    base = counter.count(placement)
    near = _neighbours(graph, placement.int8_layers)
    known: dict[frozenset[str], int | None] = {}

    def added(layers: frozenset[str]) -> int | None:
        if layers not in known:
            placed = without(graph, scheme, placement, layers)
            known[layers] = None if placed is None else counter.count(placed) - base
        return known[layers]

    found: dict[tuple[str, ...], Island] = {}
    for layer in sorted(placement.int8_layers, key=order.__getitem__):
        best: tuple[int, frozenset[str]] | None = None
        for group in _growing(frozenset({layer}), near, order):
            if best is not None and best[0] <= _NEEDED.get(scheme.placement, 2) and len(group) > len(best[1]):
                break
            more = added(group)
            if more is not None and (best is None or more < best[0]):
                best = more, group
        if best is not None:
            layers = tuple(sorted(best[1], key=order.__getitem__))
            found[layers] = Island(layers, best[0])
    for group in _around_tensors(graph, placement) if scheme.placement != "tensorrt" else ():
        layers = tuple(sorted(group, key=order.__getitem__))
        more = added(group)
        if more is not None and layers not in found:
            found[layers] = Island(layers, more)
    return list(found.values())


def _around_tensors(graph: Graph, placement: Placement) -> Iterator[frozenset[str]]:
    """For each scale group the nodes that make or read its tensors; a ReLU or Clip is part of what is before it."""
    values = {value.name: value for node in graph.nodes() for value in node.outputs}
    for members in placement.groups().values():
        nodes: set[str] = set()
        for member in members:
            nodes.update(edge.node for edge in member.edges)
            value = values.get(member.tensor)
            producer = value.producer() if value is not None else None
            while producer is not None and producer.op_type in ("Relu", "Clip"):
                before = producer.inputs[0]
                producer = before.producer() if before is not None else None
            if producer is not None:
                nodes.add(producer.name or "")
        if nodes:
            yield frozenset(nodes)


def _growing(seed: frozenset[str], near: dict[str, list[str]], order: dict[str, int]) -> Iterator[frozenset[str]]:
    """Connected groups around a layer, smallest first."""
    seen = {seed}
    wave = [seed]
    for _ in range(_LARGEST):
        following: list[frozenset[str]] = []
        for group in wave:
            yield group
            first = min(order[member] for member in group)
            beside = {name for member in group for name in near[member]} - group
            for layer in sorted(beside, key=lambda name: (order[name] < first, abs(order[name] - first))):
                larger = group | {layer}
                if larger not in seen and len(seen) < _TRIED:
                    seen.add(larger)
                    following.append(larger)
        wave = following


def _neighbours(graph: Graph, layers: frozenset[str]) -> dict[str, list[str]]:
    """INT8 layers with only a few other operations between them, whichever way the data goes."""
    near: dict[str, list[str]] = {}
    for node in graph.nodes():
        if node.name not in layers:
            continue
        seen, wave, found = {node}, [node], []
        for _ in range(_REACH + 1):
            following = []
            for current in wave:
                for other in _beside(current):
                    if other in seen:
                        continue
                    seen.add(other)
                    if other.name in layers:
                        found.append(other.name or "")
                    elif other.op_type not in LAYERS:
                        following.append(other)
            wave = following
        near[node.name or ""] = found
    return near


def _beside(node: ir.Node) -> Iterator[ir.Node]:
    """Who makes, reads, or reads beside this node, its data."""
    for value in node.inputs:
        if value is None or constant(value) is not None:
            continue
        producer = value.producer()
        if producer is not None:
            yield producer
        yield from (use[0] for use in value.uses())
    for value in node.outputs:
        yield from (use[0] for use in value.uses())


class _Conversions:
    """Counts the conversions of placements of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = graph.nodes()
        self.data = {
            node.name or "": [(i, v) for i, v in enumerate(node.inputs) if v is not None and constant(v) is None]
            for node in self.nodes
        }
        self.values = [*graph.model.graph.inputs, *(value for node in self.nodes for value in node.outputs)]

    def count(self, placement: Placement) -> int:
        """How many; see the module."""
        through = {edge for activation in placement.activations for edge in activation.edges}
        quantized = {activation.tensor for activation in placement.activations}
        layers, kept = placement.int8_layers, set(placement.kept)
        integer: set[str] = set()  # nodes whose kernel computes in INT8, or ends one that does
        for node in self.nodes:
            if node.name not in kept and self._computes(node, layers, through, integer):
                integer.add(node.name or "")
        total = 0
        for value in self.values:
            producer = value.producer()
            made = producer is not None and producer.name in integer
            plain = value.is_graph_output() and value.name not in quantized
            dequantized = False
            for node, index in ((use[0], use[1]) for use in value.uses()):
                if Edge(node.name or "", index) not in through:
                    plain = True
                elif node.name in kept or (node.op_type in LAYERS and node.name not in layers):
                    dequantized = True  # onnxruntime's rules let every reader of a stored tensor read it
            if value.name not in quantized:
                continue
            total += (not made) + (made and (plain or dequantized)) + (not made and dequantized)
        return total

    def _computes(self, node: ir.Node, layers: frozenset[str], through: set[Edge], integer: set[str]) -> bool:
        if node.op_type in LAYERS:
            return node.name in layers
        data = self.data[node.name or ""]
        if not data:
            return False
        if all(Edge(node.name or "", index) in through for index, _ in data):
            return True
        # An activation function or Add behind an INT8 layer is the end of its kernel.
        return node.op_type in _FUSED and any(
            Edge(node.name or "", index) not in through
            and (producer := value.producer()) is not None
            and producer.name in integer
            and _read_by_one_kernel(value)
            for index, value in data
        )


def _read_by_one_kernel(value: ir.Value) -> bool:
    """One reader, or a gated activation (x · sigmoid(x)): a tensor with more readers is stored."""
    readers = {use[0] for use in value.uses()}
    return not value.is_graph_output() and len([node for node in readers if node.op_type not in _GATES]) <= 1


_FUSED = frozenset({
    "Add", "Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Mul", "Elu", "Tanh",
    "Softplus", "Mish", "Gelu",
})  # fmt: skip
_GATES = frozenset({"Sigmoid", "HardSigmoid", "Softplus", "Tanh"})
