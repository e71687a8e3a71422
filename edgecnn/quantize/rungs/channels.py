"""Which channels of a float graph may be multiplied by a positive number without changing the graph's outputs.

Every channel of every tensor is a vertex. An operator that needs two channels to have one factor joins them: an
activation its input's and its output's, a residual Add those of its operands, Concat, Slice and Pad move them. A layer
with constant weights joins nothing, because its weight takes up any factors of its inputs and outputs (Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, for chains; a whole residual group,
with parameter-free shortcuts of ResNets on CIFAR, is the same thing). What an unknown operator touches stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.place.placement import LAYERS, Graph, zero_fill
from edgecnn.quantize.rungs.matrix import is_scalable

# One input, one output, f(s x) = s f(x) for s > 0, channels stay apart and in place.
_HOMOGENEOUS = frozenset({
    "Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity",
    "ReduceMean", "ReduceMax", "Resize", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Clip", "Mul", "Pad",
})  # fmt: skip
_BOUNDED = "Clip"  # homogeneous only while no value reaches its bound: see `Channels.bounded`


@dataclass(frozen=True)
class Channels:
    """Groups of channels that share a factor.

    Attributes:
        group: by tensor, the group number of each channel (axis 1), int64 (C,).
        free: by group, whether its factor may differ from 1, bool (groups,).
        bounded: by Clip node, whose input and output channels keep their factor where a value reaches the upper bound.
        added: Adds of a constant per channel; the constant takes the factors too.
    """

    group: dict[str, np.ndarray]
    free: np.ndarray
    bounded: tuple[ir.Node, ...]
    added: tuple[ir.Node, ...]

    def factors(self, tensor: str | None, scales: np.ndarray) -> np.ndarray:
        """Factor of each channel of a tensor, given one number per group."""
        return np.asarray(scales[self.group[tensor or ""]])


def find(graph: Graph) -> Channels:
    """Join channels operator by operator, then see which groups hold nothing fixed."""
    return _Finder(graph).found()


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.first: dict[str, int] = {}
        self.count = 0
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self.fixed: list[np.ndarray] = []
        self.bounded: list[ir.Node] = []
        self.added: list[ir.Node] = []
        self.sizes: dict[str, int] = {}

    def found(self) -> Channels:
        nodes = self.graph.nodes()
        inside = {id(node) for node in nodes}
        for value in [*self.graph.model.graph.inputs, *(v for node in nodes for v in node.outputs)]:
            shape = self.graph.shape(value)
            if value.name and len(shape) >= 2:
                self.first[value.name], self.sizes[value.name] = self.count, shape[1]
                self.count += shape[1]
                if value.is_graph_input() or value.is_graph_output() or any(
                    id(use.node) not in inside for use in value.uses()
                ):  # fmt: skip
                    self._fix(value)
        for node in nodes:
            if not self._joined(node):
                for value in (*node.inputs, *node.outputs):
                    self._fix(value)
        ones, others = (np.concatenate([p[k] for p in self.pairs] or [np.zeros(0, np.int64)]) for k in (0, 1))
        links = coo_matrix((np.ones(len(ones), bool), (ones, others)), (self.count, self.count))
        total, labels = connected_components(links, directed=False)
        free = np.ones(total, bool)
        if self.fixed:
            free[labels[np.concatenate(self.fixed)]] = False
        group = {name: labels[start : start + self.sizes[name]].astype(np.int64) for name, start in self.first.items()}
        return Channels(group, free, tuple(self.bounded), tuple(self.added))

    def _of(self, value: ir.Value | None) -> np.ndarray | None:
        """Vertices of a tensor's channels."""
        if value is None or value.name not in self.first:
            return None
        start = self.first[value.name]
        return np.arange(start, start + self.sizes[value.name])

    def _fix(self, value: ir.Value | None) -> None:
        vertices = self._of(value)
        if vertices is not None:
            self.fixed.append(vertices)

    def _join(self, first: np.ndarray, second: np.ndarray) -> bool:
        if len(first) != len(second):
            return False
        self.pairs.append((first, second))
        return True

    def _joined(self, node: ir.Node) -> bool:
        """Whether the node's rule is known and its channels have been joined."""
        if node.op_type in LAYERS:
            return is_scalable(node, self.graph)
        outputs = [self._of(value) for value in node.outputs]
        data = self._of(node.inputs[0]) if node.inputs else None
        match node.op_type:
            case "Add":
                return self._add(node, outputs[0])
            case "Concat":
                parts = [self._of(value) for value in node.inputs]
                return self._concat(node, parts, outputs[0])
            case "Split":
                if data is None or any(part is None for part in outputs) or _number(node, "axis", 0) != 1:
                    return False
                return self._join(data, np.concatenate([part for part in outputs if part is not None]))
            case "Slice":
                picked = self._sliced(node, data)
                return picked is not None and outputs[0] is not None and self._join(picked, outputs[0])
            case _:
                pass
        if node.op_type not in _HOMOGENEOUS or len(outputs) != 1 or outputs[0] is None:
            return False
        return self._homogeneous(node, outputs[0])

    def _homogeneous(self, node: ir.Node, output: np.ndarray) -> bool:
        variable = [value for value in node.inputs if value is not None and constant(value) is None]
        data = self._of(variable[0]) if len(variable) == 1 else None
        if data is None:
            return False
        before, after = self.graph.shape(variable[0]), self.graph.shape(node.outputs[0])
        match node.op_type:
            case "Clip":
                low = constant(node.inputs[1]) if len(node.inputs) > 1 else None
                if low is None or float(low) != 0.0:
                    return False
                self.bounded.append(node)
            case "Pad":
                return self._padded(node, data, output)
            case "Squeeze" | "Unsqueeze" | "Reshape" | "Flatten":
                if len(output) == len(data) * math.prod(before[2:]) and len(after) == 2:
                    return self._join(np.repeat(data, math.prod(before[2:])), output)
                if before[:2] != after[:2]:
                    return False
            case "Mul" | "PRelu":
                constants = [constant(value) for value in node.inputs if value is not variable[0]]
                if before != after or not all(_per_channel(array, before) for array in constants):
                    return False
            case _:
                if before[:2] != after[:2]:
                    return False
        return self._join(data, output)

    def _add(self, node: ir.Node, output: np.ndarray | None) -> bool:
        shapes = [self.graph.shape(value) for value in node.inputs]
        arrays = [constant(value) for value in node.inputs]
        if output is None:
            return False
        parts = [self._of(value) for value, array in zip(node.inputs, arrays, strict=True) if array is None]
        if any(part is None or len(part) != len(output) for part in parts) or not parts:
            return False
        if len(parts) == 1:
            which = 0 if arrays[0] is not None else 1
            if not _per_channel(arrays[which], shapes[1 - which]) or len(node.inputs[which].uses()) != 1:
                return False
            self.added.append(node)
        elif shapes[0][:2] != shapes[1][:2] or len(shapes[0]) != len(shapes[1]):
            return False
        return all(part is not None and self._join(part, output) for part in parts)

    def _concat(self, node: ir.Node, parts: list[np.ndarray | None], output: np.ndarray | None) -> bool:
        known = [part for part in parts if part is not None]
        if output is None or len(known) != len(parts):
            return False
        axis, rank = _number(node, "axis", 1), len(self.graph.shape(node.outputs[0]))
        if axis % rank == 1:
            return self._join(np.concatenate(known), output)
        return all(self._join(part, output) for part in known)

    def _sliced(self, node: ir.Node, data: np.ndarray | None) -> np.ndarray | None:
        arrays = [constant(value) for value in node.inputs[1:]]
        if data is None or any(array is None for array in arrays) or len(arrays) < 2:
            return None
        starts, ends = (np.asarray(array).reshape(-1) for array in arrays[:2])
        axes = np.arange(len(starts)) if len(arrays) < 3 else np.asarray(arrays[2]).reshape(-1)
        steps = np.ones(len(starts), np.int64) if len(arrays) < 4 else np.asarray(arrays[3]).reshape(-1)
        rank = len(self.graph.shape(node.inputs[0]))
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            if int(axis) % rank == 1:
                if step < 0:
                    return None
                data = data[int(start) : int(end) : int(step)]
        return data

    def _padded(self, node: ir.Node, data: np.ndarray, output: np.ndarray) -> bool:
        pads = constant(node.inputs[1])
        rank = len(self.graph.shape(node.inputs[0]))
        if pads is None or len(pads) != 2 * rank or not zero_fill(node) or (pads < 0).any():
            return False
        before = int(pads[1])  # added channels are zero: any factor does
        return self._join(data, output[before : before + len(data)])


def _per_channel(array: np.ndarray | None, shape: tuple[int, ...]) -> bool:
    """A constant with one value, or one per channel of an operand of this shape."""
    if array is None or len(shape) < 2:
        return False
    whole = (1,) * (len(shape) - array.ndim) + array.shape
    return len(whole) == len(shape) and all(n == 1 for i, n in enumerate(whole) if i != 1) and whole[1] in (1, shape[1])


def _number(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.value)


def layers(graph: Graph) -> Iterator[ir.Node]:
    """Layers whose weight takes up factors."""
    return (node for node in graph.nodes() if node.op_type in LAYERS and is_scalable(node, graph))
