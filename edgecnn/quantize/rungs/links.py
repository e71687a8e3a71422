"""Cross-layer equalization of a float graph: measure its channels, find the factors, move them into the weights."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.canonical import add_initializer, constant
from edgecnn.quantize.graph.sessions import open_session, run_each
from edgecnn.quantize.place.placement import LAYERS, Activation, Graph, Placement
from edgecnn.quantize.rungs import channels
from edgecnn.quantize.rungs.channels import Channels
from edgecnn.quantize.rungs.matrix import is_scalable, scaled, unfolded
from edgecnn.quantize.rungs.scales import Reader, Tensor, least_noise
from edgecnn.quantize.rungs.spread import Spread, measurable, spreads

TOLERANCE = 1e-4  # largest difference of the float outputs, relative to their largest magnitude
_CHECKED = 8  # images for that
_REACHED = 0.999  # of a Clip's bound
_LITTLE = 1e-3


def equalized(
    graph: Graph, placement: Placement, feeder: Feeder, sample: list[int], known: dict[str, Spread] | None = None
) -> ir.Model | None:
    """The same function with channels rescaled for least quantization noise; None: nothing worth rescaling.

    `balanced`, and afterwards the outputs are compared.
    """
    model = balanced(graph, placement, feeder, sample, {} if known is None else known)
    if model is None or _difference(graph.model, model, feeder, sample[:_CHECKED]) > TOLERANCE:
        return None
    return model


def balanced(
    graph: Graph, placement: Placement, feeder: Feeder, sample: list[int], known: dict[str, Spread]
) -> ir.Model | None:
    """As `equalized`, not compared.

    Through a Clip at zero and a bound, as ReLU6, only channels that stay below the bound with their factor, as measured
    over the sample. `known` holds what is measured of the graph's tensors already, and takes what is measured here.
    """
    found = channels.find(graph)
    if not found.free.any():
        return None
    nodes = {node.name or "": node for node in graph.nodes()}
    readers = [nodes[edge.node] for a in placement.activations for edge in a.edges]
    values = [nodes[a.edges[0].node].inputs[a.edges[0].index] for a in placement.activations if a.edges]
    wanted = [*values, *(node.inputs[0] for node in found.bounded), *(node.outputs[0] for node in readers)]
    names = [name for name in measurable(graph, wanted) if name in found.group]
    if missing := [name for name in names if name not in known]:
        known.update(spreads(feeder, graph, missing, sample))
    measured = {name: known[name] for name in names}
    free, highest = _limits(found, measured)
    tensors = []
    for members in placement.groups().values():
        if (tensor := _tensor(graph, members, nodes, found, measured)) is not None:
            tensors.append(tensor)
    factors = least_noise(tensors, free, highest)
    if np.abs(np.log(factors)).max() < _LITTLE:
        return None
    return rescaled(graph, found, factors)


def rescaled(graph: Graph, found: Channels, factors: np.ndarray) -> ir.Model:
    """A copy whose channels are multiplied by the factors of their groups; outputs stay what they are."""
    model = graph.model.clone()
    for node in model.graph:
        if node.op_type in LAYERS and is_scalable(node, graph):
            outputs = found.factors(node.outputs[0].name, factors)
            inputs = found.factors(node.inputs[0].name, factors)
            weight = constant(node.inputs[1])
            assert weight is not None
            _own(model.graph, node, 1, scaled(node, weight, inputs, outputs))
            bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
            if bias is not None:
                _own(model.graph, node, 2, (bias * outputs.reshape(bias.shape)).astype(bias.dtype))
    added = {node.name for node in found.added}
    for node in model.graph:
        if node.name in added:
            which = 0 if constant(node.inputs[0]) is not None else 1
            array = constant(node.inputs[which])
            assert array is not None
            rank = len(graph.shape(node.outputs[0]))
            factor = found.factors(node.outputs[0].name, factors).reshape((1, -1) + (1,) * (rank - 2))
            _own(model.graph, node, which, (array * factor).astype(array.dtype))
    return model


def _own(graph: ir.Graph, node: ir.Node, index: int, array: np.ndarray) -> None:
    value = node.inputs[index]
    assert value is not None
    if value.const_value is not None and len(value.uses()) == 1 and value.shape == ir.Shape(array.shape):
        value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    else:
        node.replace_input_with(index, add_initializer(graph, f"{value.name}.equalized", array))


def _limits(found: Channels, measured: dict[str, Spread]) -> tuple[np.ndarray, np.ndarray]:
    """Which groups may move, and by how much at most, so that no Clip is reached that was not."""
    free, highest = found.free.copy(), np.full(len(found.free), np.inf)
    for node in found.bounded:
        array = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if array is None:
            continue
        name = node.inputs[0].name or ""
        if name not in measured:
            free[found.group[name]] = False
            continue
        bound, groups, spread = float(array), found.group[name], measured[name]
        reached = spread.high >= _REACHED * bound
        free[groups[reached]] = False
        room = _REACHED * bound / np.maximum(np.maximum(spread.bound, spread.high), 1e-30)
        np.minimum.at(highest, groups[~reached], np.maximum(room[~reached], 1.0))
    return free, highest


def _tensor(
    graph: Graph, members: list[Activation], nodes: dict[str, ir.Node], found: Channels, measured: dict[str, Spread]
) -> Tensor | None:
    groups, bounds, readers = [], [], []
    for activation in members:
        if activation.tensor not in measured:
            continue
        group = found.group[activation.tensor]
        groups.append(group)
        bounds.append(measured[activation.tensor].bound)
        for edge in activation.edges:
            reader = _reader(graph, nodes[edge.node], edge.index, group, measured, activation.tensor)
            if reader is not None:
                readers.append(reader)
    return Tensor(np.concatenate(groups), np.concatenate(bounds), tuple(readers)) if readers else None


def _reader(
    graph: Graph, node: ir.Node, index: int, group: np.ndarray, measured: dict[str, Spread], tensor: str
) -> Reader | None:
    output = measured.get(node.outputs[0].name or "")
    if output is None:
        return None
    variation = (
        np.maximum(output.power - output.mean**2, 0.0) if len(graph.shape(node.outputs[0])) > 2 else output.power
    )
    power = max(float(variation.sum()), 1e-30)
    if node.op_type not in LAYERS:
        return Reader(group, np.full(len(group), 1.0 / power)) if node.op_type == "Add" else None
    weight = constant(node.inputs[1])
    if index != 0 or weight is None or not is_scalable(node, graph):
        return None
    matrix = unfolded(node, weight)
    gain = np.square(matrix).sum(axis=(1, 3)).reshape(-1) / power
    if matrix.shape[2] == 1:
        return Reader(group, gain)
    inputs = measured[tensor].power.reshape(matrix.shape[0], matrix.shape[2]) * matrix.shape[3] / power
    return Reader(group, gain, np.abs(matrix).max(axis=3), inputs)


def _difference(first: ir.Model, second: ir.Model, feeder: Feeder, sample: list[int]) -> float:
    feeds = list(feeder.feeds(sample))
    largest = 0.0
    for a, b in zip(run_each(open_session(first), feeds), run_each(open_session(second), feeds), strict=True):
        for x, y in zip(a, b, strict=True):
            if x.dtype.kind == "f" and x.size:
                apart = float(np.abs(x - y).max()) / max(float(np.abs(x).max()), 1e-30)
                largest = max(largest, apart) if math.isfinite(apart) else math.inf
    return largest
