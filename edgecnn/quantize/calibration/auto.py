"""`ranges: auto`: every tensor gets the range of least error, measured behind its consumers on calibration images.

For every candidate range of a tensor x the error QDQ(x) - x goes through the layers that read x (without bias; they are
linear, so this is exactly the error at their outputs) and is compared with the output's own power. A last look compares
the whole model, with the ranges so chosen and with each method alone, by the SQNR of its outputs, and keeps the best.
Both look at a few calibration images, each at others, chosen by content; sums are exact (math.fsum), so order does not
matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgecnn.measure.stats import decibel, powers
from edgecnn.process.progress import track
from edgecnn.quantize.calibration.calibrate import Calibration, Feeder
from edgecnn.quantize.calibration.histogram import merged
from edgecnn.quantize.calibration.last_layers import ends
from edgecnn.quantize.calibration.ranges import METHODS, Grid, Method, activation_grid, activation_type, choose
from edgecnn.quantize.calibration.swap import simulations
from edgecnn.quantize.graph.canonical import add_initializer, opset
from edgecnn.quantize.graph.names import Names
from edgecnn.quantize.graph.sessions import expose, open_session, run_each
from edgecnn.quantize.place.placement import LAYERS, Activation, Edge, Placement
from edgecnn.quantize.write.rewrite import Grids
from edgecnn.recipe.device import Scheme

# Images for the error per tensor and for the comparison of whole models, at 224 x 224; of smaller images, which hold
# fewer values each, as many more, up to MOST: on 32 x 32 images 32 of them choose ranges that fit only those 32. Of
# larger images as many fewer.
PROBED = 32
COMPARED = 48
LEAST, MOST = 12, 256
_FOREMOST = 3  # sets of ranges that are compared on all images
Range = tuple[float, float]
_TINY = 1e-30
_AXES_AS_INPUT = 18  # the opset since which the reductions take their axes as an input


@dataclass(frozen=True)
class Chosen:
    """Range of each scale group, and which method it came from."""

    ranges: dict[int, Range]
    methods: dict[int, str]

    def grids(self, placement: Placement, scheme: Scheme) -> Grids:
        """Scale and zero-point by tensor."""
        return {
            activation.tensor: activation_grid(*self.ranges[activation.group], scheme)
            for activation in placement.activations
        }


def by_method(method: Method, placement: Placement, calibration: Calibration, scheme: Scheme) -> Chosen:
    """Every tensor by one method; a group by the sum of its histograms."""
    ranges = {}
    for group, members in placement.groups().items():
        histogram = merged([calibration.histograms[member.tensor] for member in members if not member.pooled])
        ranges[group] = choose(method, histogram, scheme)
    return Chosen(ranges, dict.fromkeys(ranges, method))


def automatic(feeder: Feeder, placement: Placement, calibration: Calibration, scheme: Scheme) -> Chosen:
    """Choose per tensor by measured error, then keep the best whole."""
    candidates = {method: by_method(method, placement, calibration, scheme) for method in METHODS}
    probed, held = _shared_out(feeder)
    errors = _measured(feeder, probed, placement, [candidates[method] for method in METHODS], scheme)
    mixed = []
    for measure in (0, 1):
        ranges: dict[int, Range] = {}
        methods: dict[int, str] = {}
        for group in candidates["minmax"].ranges:
            best = METHODS[int(np.argmin([errors[group, number][measure] for number in range(len(METHODS))]))]
            ranges[group], methods[group] = candidates[best].ranges[group], best
        mixed.append(Chosen(ranges, methods))
    return _best(feeder, held, placement, [*mixed, *candidates.values()], scheme)


def _shared_out(feeder: Feeder) -> tuple[list[int], list[int]]:
    """(images for the error per tensor, others for the comparison of whole models), by content."""
    order = feeder.sample(feeder.count)
    scale = 224 * 224 / feeder.pixels
    held = order[-min(round(float(np.clip(COMPARED * scale, LEAST, MOST))), max(1, len(order) // 2)) :]
    probed = order[: round(float(np.clip(PROBED * scale, LEAST, MOST)))]
    return [number for number in probed if number not in held] or probed, held


def _best(feeder: Feeder, held: list[int], placement: Placement, whole: list[Chosen], scheme: Scheme) -> Chosen:
    """The whole of the cleanest outputs: all on a few images, then the foremost on the others too."""
    few = max(1, len(held) // 3)
    quality = output_decibels(feeder, held[:few], placement, [one.grids(placement, scheme) for one in whole], scheme)
    foremost = np.argsort(-quality.mean(axis=1), kind="stable")[:_FOREMOST]
    if len(held) > few:
        grids = [whole[number].grids(placement, scheme) for number in foremost]
        more = output_decibels(feeder, held[few:], placement, grids, scheme)
        quality = np.concatenate([quality[foremost], more], axis=1)
    else:
        quality = quality[foremost]
    return whole[foremost[int(np.argmax(quality.mean(axis=1)))]]


def output_decibels(
    feeder: Feeder, sample: list[int], placement: Placement, grids: list[Grids], scheme: Scheme
) -> np.ndarray:
    """How clean several sets of scales leave the model, float-simulated: dB (sets, inferences).

    By inference, so that a few that explode don't decide; see `Looked`.
    """
    looked = Looked.of(feeder.model)
    feeds = list(feeder.feeds(sample))
    exact = list(run_each(open_session(expose(feeder.model, list(looked.names))), feeds))
    found = []
    for number, simulated in enumerate(simulations(feeder.model, placement, grids, scheme, feeds, list(looked.names))):
        steps = track(simulated, f"compare {number + 1}/{len(grids)}", len(feeds))
        found.append([looked.decibel(want, got) for want, got in zip(exact, steps, strict=True)])
    return np.asarray(found)


@dataclass(frozen=True)
class Looked:
    """The tensors by which candidates are compared: the graph's outputs, then its ends.

    In the ends a detector's class scores count as much as its boxes, which in the outputs are hundreds of pixels.
    """

    names: tuple[str, ...]
    outputs: int

    @classmethod
    def of(cls, model: ir.Model) -> Looked:
        """Those of a float graph."""
        outputs = [value.name or "" for value in model.graph.outputs]
        return cls((*outputs, *(name for name in ends(model) if name not in outputs)), len(outputs))

    def decibel(self, want: list[np.ndarray], got: list[np.ndarray]) -> float:
        """Of one inference: the SQNR of all floating outputs together and the mean of the ends' own, half and half."""
        pairs = [signal_and_noise(a, b) for a, b in zip(want, got, strict=True)]
        given, last = pairs[: self.outputs], pairs[self.outputs :]
        whole = decibel(math.fsum(one for one, _ in given), math.fsum(other for _, other in given))
        return (whole + math.fsum(decibel(*pair) for pair in last) / len(last)) / 2 if last else whole


def signal_and_noise(want: np.ndarray, got: np.ndarray) -> tuple[float, float]:
    """Sum of squares of a float output and of its error; (0, 0) of what is not compared as numbers (indices).

    An output whose shape depends on the data (kept boxes) and differs counts as lost.
    """
    signal, noise = powers(want[None], got[None])
    return float(signal[0]), float(noise[0])


def _measured(
    feeder: Feeder, sample: list[int], placement: Placement, candidates: list[Chosen], scheme: Scheme
) -> dict[tuple[int, int], np.ndarray]:
    """Error behind the consumers over their output's power, by (group, candidate).

    Two measures: of the outputs as a whole, and the mean over their channels, each against its own power.
    """
    model = feeder.model.clone()
    probes = _Probes(model, scheme)
    for activation in placement.counted:
        for number, chosen in enumerate(candidates):
            grid = activation_grid(*chosen.ranges[activation.group], scheme)
            probes.add(activation, grid, (activation.group, number))
    session = open_session(expose(model, probes.outputs))
    sums: dict[str, list[np.ndarray]] = {name: [] for name in probes.outputs}
    for outputs in track(run_each(session, feeder.feeds(sample)), "ranges", math.ceil(len(sample) / feeder.batch)):
        for name, value in zip(probes.outputs, outputs, strict=True):
            sums[name].append(value.astype(np.float64).reshape(-1))
    totals = {name: np.asarray([math.fsum(c) for c in zip(*values, strict=True)]) for name, values in sums.items()}
    errors: dict[tuple[int, int], np.ndarray] = {}
    for noise, power, key in probes.terms:
        a, b = totals[noise], totals[power]
        whole = a.sum() / max(b.sum(), _TINY)
        # A channel that is almost silent must not decide: its power counts as a thousandth of the mean at least.
        each = float(np.mean(a / np.maximum(b, max(1e-3 * b.mean(), _TINY))))
        errors[key] = errors.get(key, np.zeros(2)) + np.asarray([whole, each])
    return errors


class _Probes:
    """Error measurements added to a copy of the float graph; each is a scalar output."""

    def __init__(self, model: ir.Model, scheme: Scheme) -> None:
        self.graph = model.graph
        self.opset = opset(model)
        self.names = Names(model.graph)
        self.nodes = {node.name or "": node for node in model.graph}
        self.kind = activation_type(scheme)
        self.outputs: list[str] = []
        self.terms: list[tuple[str, str, tuple[int, int]]] = []
        self.values = {value.name: value for node in model.graph for value in (*node.inputs, *node.outputs) if value}
        self.known: dict[tuple[str, str, float, int], str] = {}
        self.powers: dict[str, str] = {}

    def add(self, activation: Activation, grid: Grid, key: tuple[int, int]) -> None:
        """Measure one grid for one tensor behind its layers and Adds; behind other readers, at the tensor itself."""
        value = self.values[activation.tensor]
        readers = [self.nodes[edge.node] for edge in activation.edges if edge.index == 0 or self._adds(edge)]
        judged = [node for node in readers if node.op_type in LAYERS or self._keeps_rank(node, value)]
        for reader in dict.fromkeys(judged) or [None]:
            rank = len((value if reader is None else reader.outputs[0]).shape or ())
            behind = reader.name or "" if reader is not None and reader.op_type in LAYERS else ""
            same = (activation.tensor, behind, grid.scale, grid.zero_point)
            if same not in self.known:
                error = self._error(value, grid)
                if behind and reader is not None:
                    layer = ir.node(reader.op_type, [error, reader.inputs[1]], dict(reader.attributes))
                    self.graph.append(self.names.give(layer, "edgecnn.probe"))
                    error = layer.outputs[0]
                self.known[same] = self._power(error, rank)
            self.terms.append((self.known[same], self._signal(value if reader is None else reader.outputs[0]), key))

    def _keeps_rank(self, node: ir.Node, value: ir.Value) -> bool:
        """An Add that doesn't give its output more dimensions than the tensor has: channels are one axis of both."""
        return node.op_type == "Add" and len(node.outputs[0].shape or ()) == len(value.shape or ())

    def _adds(self, edge: Edge) -> bool:
        return self.nodes[edge.node].op_type == "Add"

    def _error(self, value: ir.Value, grid: Grid) -> ir.Value:
        scale = add_initializer(self.graph, "probe_scale", np.asarray(grid.scale, np.float32), self.names)
        zero = add_initializer(self.graph, "probe_zero", np.asarray(grid.zero_point, self.kind), self.names)
        quantize = ir.node("QuantizeLinear", [value, scale, zero])
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero])
        minus = ir.node("Sub", [dequantize.outputs[0], value])
        self.graph.extend([self.names.give(node, "edgecnn.probe") for node in (quantize, dequantize, minus)])
        return minus.outputs[0]

    def _power(self, value: ir.Value, rank: int) -> str:
        node = self.names.give(self._sum_square(value, rank), "edgecnn.probe")
        name = node.outputs[0].name or ""
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        self.graph.append(node)
        self.outputs.append(name)
        return name

    def _sum_square(self, value: ir.Value, rank: int) -> ir.Node:
        axes = [axis for axis in range(rank) if axis != 1]
        if self.opset < _AXES_AS_INPUT:
            return ir.node("ReduceSumSquare", [value], {"keepdims": 0, "axes": axes})
        listed = add_initializer(self.graph, "probe_axes", np.asarray(axes, np.int64), self.names)
        return ir.node("ReduceSumSquare", [value, listed], {"keepdims": 0})

    def _signal(self, value: ir.Value) -> str:
        name = value.name or ""
        if name not in self.powers:
            self.powers[name] = self._power(value, len(value.shape or ()))
        return self.powers[name]
