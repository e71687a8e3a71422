"""Where Q/DQ goes: a pure function graph × scheme → Placement. The rules of each runtime stand in its own file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from difflib import get_close_matches

import numpy as np
import onnx_ir as ir

from edgecnn.process.errors import EdgeError
from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.graph.macs import layers_in
from edgecnn.recipe.device import Scheme

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Edge:
    """Input `index` of the node `node`: this reading of the tensor goes through Q/DQ."""

    node: str
    index: int


@dataclass(frozen=True)
class Activation:
    """A tensor with Q/DQ, the readings that take the dequantized value, and its group: one scale for a group."""

    tensor: str
    edges: tuple[Edge, ...]
    group: int
    clamped: bool = False  # a ReLU or Clip makes it: its lowest value must be exactly representable
    pooled: bool = False  # read only by MaxPools of its group: what matters of it are the values that they pass on


@dataclass(frozen=True)
class Weight:
    """A constant weight with per-channel Q/DQ along `axis`; `bias` is the constant bias's input index or None."""

    node: str
    tensor: str
    axis: int
    index: int = 1
    bias: int | None = None


@dataclass(frozen=True)
class Placement:
    """The whole decision. `why_float` tells of every MAC layer that stays float why; `kept` was asked for, by name."""

    activations: tuple[Activation, ...]
    weights: tuple[Weight, ...]
    why_float: dict[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()

    @property
    def int8_layers(self) -> frozenset[str]:
        """Names of the MAC layers computed in INT8."""
        return frozenset(weight.node for weight in self.weights)

    @property
    def counted(self) -> tuple[Activation, ...]:
        """Activations whose values decide their group's range."""
        return tuple(activation for activation in self.activations if not activation.pooled)

    def groups(self) -> dict[int, list[Activation]]:
        """Activations by scale group, in the order of the graph."""
        grouped: dict[int, list[Activation]] = {}
        for activation in self.activations:
            grouped.setdefault(activation.group, []).append(activation)
        return grouped


@dataclass(frozen=True)
class Graph:
    """What placement reads: the canonical model and the shapes of its tensors for one image (batch 1)."""

    model: ir.Model
    shapes: Shapes

    def nodes(self) -> list[ir.Node]:
        """The main graph's nodes in order."""
        return list(self.model.graph)

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """The shape of a tensor or constant; () when unknown."""
        if value is None or value.name is None:
            return ()
        if value.const_value is not None and not value.is_graph_input():
            return tuple(int(size) for size in value.const_value.shape)
        return self.shapes.get(value.name, ())


def place(graph: Graph, scheme: Scheme, keep_float: tuple[str, ...] = ()) -> Placement:
    """Decide the edges.

    Args:
        graph: the canonical graph.
        scheme: the device's scheme; `placement` chooses the rules.
        keep_float: exact node names that stay float.

    Raises:
        EdgeError: `keep_float` names no node; or no layer can be quantized.
    """
    names = [node.name or "" for node in graph.nodes()]
    for name in keep_float:
        if name not in names:
            near = get_close_matches(name, names, n=1, cutoff=0.3)
            raise EdgeError(
                f"`quantize.keep_float` names `{name}`, which is not a node of the graph",
                f"the nearest is `{near[0]}`" if near else "see the layer names in quantize.json",
            )
    placed = _placed(graph, scheme, frozenset(keep_float))
    placed = replace(placed, why_float={**placed.why_float, **_never_placed(graph)})
    if not placed.weights:
        reasons = "; ".join(sorted({f"{why}" for why in placed.why_float.values()})) or "it has no layer with weights"
        raise EdgeError(
            f"every layer of the graph would stay float: {reasons}", "nothing to quantize: use the float model"
        )
    return replace(placed, kept=keep_float)


def _never_placed(graph: Graph) -> dict[str, str]:
    """What multiplies and accumulates, and no rules quantize: other operators, and what stands in a subgraph."""
    return {
        layer.name: f"inside {layer.outer.op_type} `{layer.outer.name}`" if layer.inside else f"{layer.op} stays float"
        for node in graph.nodes()
        if node.op_type not in LAYERS
        for layer in layers_in(node, graph.shape)
    }


def _placed(graph: Graph, scheme: Scheme, keep_float: frozenset[str]) -> Placement:
    from edgecnn.quantize.place import (
        onnxruntime as placement_onnxruntime,
    )
    from edgecnn.quantize.place import (
        openvino as placement_openvino,
    )
    from edgecnn.quantize.place import (
        tensorrt as placement_tensorrt,
    )

    match scheme.placement:
        case "tensorrt":
            return placement_tensorrt.place(graph, keep_float)
        case "onnxruntime":
            return placement_onnxruntime.place(graph, keep_float, scheme)
        case "openvino":
            return placement_openvino.place(graph, keep_float)


# --- what both sets of rules ask of a graph ---


def layer_weight(node: ir.Node, graph: Graph) -> Weight | str:
    """The weight of a MAC layer with its output axis, or why it can't be quantized.

    Axes: Conv (M, C/g, …) 0; ConvTranspose (C, M/g, …) 1, the groups sharing their scales; Gemm by transB; MatMul last.
    """
    array = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    name = node.inputs[1].name if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if array is None or name is None:
        return "its weight is computed, not constant"
    if constant(node.inputs[0]) is not None:
        return "its input is constant: it is computed once"
    if array.dtype not in (np.float32, np.float16):
        return f"its weight is {array.dtype}"
    match node.op_type:
        case "Conv":
            axis = 0
        case "ConvTranspose":
            axis = 1
        case "Gemm":
            if _attribute(node, "transA", 0):
                return "its input is transposed"
            axis = 0 if _attribute(node, "transB", 0) else 1
        case _:
            if array.ndim != 2:
                return f"its weight has {array.ndim} dimensions"
            axis = 1
    bias = 2 if len(node.inputs) > 2 and constant(node.inputs[2]) is not None else None
    return Weight(node.name or "", name, axis, 1, bias)


def _attribute(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.value)


def gate_nodes(graph: Graph) -> frozenset[str]:
    """Nodes of squeeze-and-excitation gates (Hu et al. 2018): global pool → layers → sigmoid → Mul over the image.

    Found by shape: a Mul whose one operand has one value per channel, all of it computed from a global pool.
    """
    found: set[str] = set()
    for node in graph.nodes():
        if node.op_type != "Mul":
            continue
        for gate, other in ((0, 1), (1, 0)):
            gate_shape, other_shape = graph.shape(node.inputs[gate]), graph.shape(node.inputs[other])
            if len(gate_shape) < 3 or len(gate_shape) != len(other_shape) or constant(node.inputs[gate]) is not None:
                continue
            if set(gate_shape[2:]) == {1} and set(other_shape[2:]) != {1}:
                path = _back_to_pool(node.inputs[gate])
                found |= path or set()
    return frozenset(found)


def _back_to_pool(value: ir.Value | None) -> set[str] | None:
    """Names of the nodes between a gate and its global pool, or None when a path misses the pool."""
    seen: set[str] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if current is None or constant(current) is not None:
            continue
        node = current.producer()
        if node is None or node.op_type in ("MaxPool", "Concat"):
            return None
        if node.name in seen:
            continue
        if node.op_type in ("GlobalAveragePool", "ReduceMean", "GlobalMaxPool", "AveragePool"):
            continue
        seen.add(node.name or "")
        waiting.extend(node.inputs[:1] if node.op_type in LAYERS or node.op_type == "Reshape" else node.inputs)
    return seen


def zero_fill(node: ir.Node) -> bool:
    """A Pad that adds zeros only."""
    mode = node.attributes.get("mode")
    if mode is not None and mode.value != "constant":
        return False
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(fill)
    return fill is None or (array is not None and not array.any())


class Groups:
    """Union-find over tensor names: which tensors share a scale."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        """The representative of a tensor's group."""
        while self.parent.get(name, name) != name:
            name = self.parent[name]
        return name

    def join(self, first: str, second: str) -> None:
        """Make two tensors share a scale."""
        self.parent[self.find(second)] = self.find(first)


def assembled(
    graph: Graph, edges: dict[str, set[Edge]], groups: Groups, clamped: frozenset[str] = frozenset()
) -> tuple[Activation, ...]:
    """Activations in graph order, groups numbered in that order."""
    order = [value.name for value in graph.model.graph.inputs]
    order += [value.name for node in graph.nodes() for value in node.outputs]
    readers_by_name = {node.name or "": node for node in graph.nodes()}
    numbers: dict[str, int] = {}
    result = []
    for name in order:
        if name not in edges:
            continue
        number = numbers.setdefault(groups.find(name), len(numbers))
        sorted_edges = tuple(sorted(edges[name], key=lambda edge: (edge.node, edge.index)))
        readers = [readers_by_name[edge.node] for edge in sorted_edges]
        pooled = bool(readers) and all(
            node.op_type == "MaxPool" and node.outputs[0].name in edges
            and groups.find(node.outputs[0].name) == groups.find(name)
            for node in readers
        )  # fmt: skip
        result.append(Activation(name, sorted_edges, number, name in clamped, pooled))
    return tuple(result)
