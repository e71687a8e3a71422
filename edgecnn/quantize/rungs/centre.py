"""The levels below zero put to use: what a Clip at 0 makes is stored less half of its range.

Symmetric INT8 has 255 levels, of which the output of ReLU6 reaches 128. Taken down by 128 steps it has a step of half
the size, as with UINT8, which TensorRT refuses. The layer before takes the shift into its bias, the Clip into its ends,
and the layers behind take it back: a constant times the sum of each row's weights, so into their biases. Nothing is
added to the graph. Exact where the readers pad nothing, since a padded zero would stand for half of the range.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgecnn.quantize.calibration.ranges import storable_scales
from edgecnn.quantize.graph.canonical import add_initializer, constant
from edgecnn.quantize.graph.names import Names
from edgecnn.quantize.ladder.candidate import Candidate, Tools, shift_bounds
from edgecnn.quantize.place.placement import Activation, Graph
from edgecnn.quantize.rungs.matrix import is_scalable, unfolded
from edgecnn.quantize.write.rewrite import BIAS
from edgecnn.recipe.device import Scheme


def centred(candidate: Candidate, tools: Tools) -> Candidate:
    """The same function with such tensors centred, their ranges with them; the candidate itself where there is none."""
    scheme = tools.scheme
    if scheme.placement != "tensorrt" or scheme.activations != "int8-symmetric":
        return candidate
    model = candidate.model.clone()
    graph, names = Graph(model, tools.graph.shapes), Names(model.graph)
    nodes = {node.name or "": node for node in model.graph}
    ranges, shifts = dict(candidate.ranges), dict[str, float]()
    for members in candidate.placement.groups().values():
        readers = _readers(members, nodes, candidate.placement.int8_layers, graph)
        before = _clipped_layer(readers[0].inputs[0], graph) if readers else None
        step = _step(ranges[members[0].tensor], scheme)
        if before is None or not step > 0:
            continue
        levels, tensor = 2 ** (scheme.activation_bits - 1), members[0].tensor
        shifts[tensor] = levels * step
        _shift(model.graph, before, readers, shifts[tensor], names)
        ranges[tensor] = -(levels - 1) * step, (levels - 1) * step
    if not shifts:
        return candidate
    shift_bounds(candidate.model, model, shifts, tools)
    return replace(candidate, model=model, ranges=ranges)


def _step(values: tuple[float, float], scheme: Scheme) -> float:
    """That of (0, high) over all levels, as the typed graph can store it; 0 of a range below zero, or of nothing."""
    low, high = values
    if low < 0 or not high > 0:
        return 0.0
    return float(storable_scales(np.asarray([high / (2**scheme.activation_bits - 1)]), scheme)[0])


def _readers(members: list[Activation], nodes: dict[str, ir.Node], int8: frozenset[str], graph: Graph) -> list[ir.Node]:
    """The INT8 layers that alone read a tensor with a scale of its own, if all of them can take up a shift."""
    (first, *others) = members
    readers = [nodes[edge.node] for edge in first.edges]
    if others or not readers or any(edge.index for edge in first.edges):
        return []
    value = readers[0].inputs[0]
    if value is None or value.is_graph_output() or len(value.uses()) != len(readers):
        return []
    fit = all(node.name in int8 and _has_bias(node, graph) and not _pads(node) for node in readers)
    return readers if fit else []


def _clipped_layer(value: ir.Value | None, graph: Graph) -> tuple[ir.Node, ir.Node] | None:
    """(layer, Clip) that make a value: nothing else reads the layer, and the Clip's ends are 0 and a constant."""
    clip = value.producer() if value is not None else None
    if clip is None or clip.op_type != "Clip" or len(clip.inputs) != 3:
        return None
    inside, low, high = clip.inputs[0], constant(clip.inputs[1]), constant(clip.inputs[2])
    layer = inside.producer() if inside is not None else None
    if inside is None or layer is None or inside.is_graph_output() or len(inside.uses()) != 1:
        return None
    if low is None or high is None or float(low) != 0.0 or not _has_bias(layer, graph):
        return None
    return layer, clip


def _has_bias(node: ir.Node, graph: Graph) -> bool:
    """A Conv or Gemm with its own weight, and a bias of one constant per output channel."""
    if node.op_type not in ("Conv", "Gemm") or not is_scalable(node, graph):
        return False
    if any(name in node.attributes and float(node.attributes[name].value) != 1.0 for name in ("alpha", "beta")):
        return False
    return len(node.inputs) > BIAS and constant(node.inputs[BIAS]) is not None


def _pads(node: ir.Node) -> bool:
    if node.op_type != "Conv":
        return False
    weight = constant(node.inputs[1])
    assert weight is not None
    auto, pads = node.attributes.get("auto_pad"), node.attributes.get("pads")
    if auto is not None and str(auto.value).startswith("SAME"):
        return any(size > 1 for size in weight.shape[2:])
    return pads is not None and any(int(n) for n in pads.value) and (auto is None or auto.value != "VALID")


def _shift(
    graph: ir.Graph, before: tuple[ir.Node, ir.Node], readers: list[ir.Node], amount: float, names: Names
) -> None:
    """Take `amount` from the Clip's values, and give it back behind their readers."""
    layer, clip = before
    _add_to_bias(graph, layer, -amount, names)
    for index in (1, 2):
        end = constant(clip.inputs[index])
        assert end is not None
        shifted = add_initializer(graph, f"{clip.inputs[index].name}.centred", (end - amount).astype(end.dtype), names)
        clip.replace_input_with(index, shifted)
    for reader in readers:
        weight = constant(reader.inputs[1])
        assert weight is not None
        _add_to_bias(graph, reader, amount * unfolded(reader, weight).sum(axis=(2, 3)).reshape(-1), names)


def _add_to_bias(graph: ir.Graph, node: ir.Node, change: np.ndarray | float, names: Names) -> None:
    bias = constant(node.inputs[BIAS])
    assert bias is not None
    moved = (bias.astype(np.float64) + change).astype(bias.dtype)
    name = f"{node.inputs[BIAS].name}.centred"
    node.replace_input_with(BIAS, add_initializer(graph, name, moved, names))
