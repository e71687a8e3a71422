"""Which layers cost a model its accuracy in INT8: each quantized alone, and the noise that this makes at the outputs.

The noises of single layers nearly add up to the noise of the whole (`explained` says how nearly), so a layer's share of
their sum is its share of the blame. Quantizing only the layer's weights, or only its input, tells which of both it is:
weights ask for equalization or AdaRound, an activation for another range or clipping, and both can be left in float.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from edgecnn.measure.stats import decibel
from edgecnn.process.errors import EdgeError
from edgecnn.process.progress import track
from edgecnn.quantize.calibration.arrays import NamedArrays
from edgecnn.quantize.calibration.calibrate import Calibration, Feeder, ImageSource
from edgecnn.quantize.calibration.histogram import Histogram
from edgecnn.quantize.calibration.ranges import Grid, activation_grid
from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.graph.macs import layers_in
from edgecnn.quantize.graph.same import IMAGES as COMPARED
from edgecnn.quantize.graph.same import require_same
from edgecnn.quantize.graph.sessions import observe
from edgecnn.quantize.ladder.candidate import Candidate, Tools, first
from edgecnn.quantize.noise.layers import layer_errors
from edgecnn.quantize.noise.noise import Noise, Part, Reference, of_edges, partly
from edgecnn.quantize.noise.split import integer_weights, only_activations, only_weights
from edgecnn.quantize.place.coverage import macs
from edgecnn.quantize.place.placement import LAYERS, Edge, Graph, Placement, place
from edgecnn.quantize.write.weights import require_finite
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.io_contract import IoContract
from edgecnn.recipe.recipe import QuantizeSpec

ENOUGH = 100  # measured images from which an accuracy says something
_SHAPED = 2  # images that tell the shapes
_WATCHED = 8  # images for the errors in place

Blame = Literal["weights", "activation"]


@dataclass(frozen=True)
class Row:
    """One layer, or another operation that reads a quantized tensor (the skip input of a residual Add).

    Attributes:
        macs: its share of the model's multiply-accumulates, 0..1.
        why_float: why it stays float; None: it is INT8. A float layer has no numbers.
        tensor, method, low, high: its quantized input and the range chosen for it.
        saturation: share of the input's calibration values beyond the ends of its integer grid, 0..1.
        in_place_db: SQNR of the layer's own output with the whole model quantized.
        alone_db: SQNR of the model's outputs (the mean of their noise-to-signal ratios) with only this layer quantized.
        weights_db, activation_db: the same with only its weights, only its input.
        outputs_db: `alone_db` of each output.
        share: of the summed noise of all rows, 0..1. The rows are sorted by it.
        blame: the worse of weights and activation.
        changed: measured images whose first answer differs from float's.
        top1: accuracy on the measured images, fraction of 1; None without labels or with too few images.
    """

    name: str
    op: str
    macs: float
    why_float: str | None = None
    tensor: str | None = None
    method: str | None = None
    low: float | None = None
    high: float | None = None
    saturation: float | None = None
    in_place_db: float | None = None
    alone_db: float | None = None
    weights_db: float | None = None
    activation_db: float | None = None
    outputs_db: dict[str, float] | None = None
    share: float = 0.0
    blame: Blame | None = None
    changed: int | None = None
    top1: float | None = None


@dataclass(frozen=True)
class Sensitivity:
    """The rows, the most to blame first, and what everything quantized makes.

    Attributes:
        outputs_db: SQNR of each output with everything quantized, in float simulation.
        weights_db, activations_db: of the outputs together, with only all weights, only all activations quantized.
        explained: noise of the whole over the sum of the rows' noises; 1: the layers' errors add up.
        images: calibration images; `measured`: those that the noises come from.
        digest: of the calibration images.
        changed: measured images whose first answer differs from float's with everything quantized.
        float_top1, top1: accuracy on the measured images, float and everything quantized.
    """

    rows: tuple[Row, ...]
    outputs_db: dict[str, float]
    weights_db: float
    activations_db: float
    explained: float
    images: int
    measured: int
    digest: str
    changed: int
    float_top1: float | None = None
    top1: float | None = None

    def as_json(self) -> dict[str, Any]:
        """JSON-ready, floats as they are."""
        return asdict(self)


def sensitivity(
    model: Path, contract: IoContract | None, images: ImageSource | NamedArrays, scheme: Scheme, spec: QuantizeSpec,
    labels: np.ndarray | None = None,
) -> Sensitivity:  # fmt: skip
    """Measure a float ONNX file.

    Args:
        contract: None with arrays, which the graph takes as they are.
        images: uint8 NHWC of the contract's size, or arrays by input name; the first `spec.images` are used.
        labels: int64 class number of each image, or None.

    Raises:
        EdgeError: what `quantize_model` refuses.
    """
    spec = spec.with_images(len(images))
    float_model = canonical(model)
    feeder = Feeder(float_model, contract, images, spec.images)
    require_same(model, float_model, list(feeder.feeds(feeder.sample(COMPARED))))
    shapes, _ = observe(float_model, list(feeder.feeds(feeder.sample(_SHAPED))))
    graph = Graph(float_model, shapes)
    placement = place(graph, scheme, spec.keep_float)
    for weight in placement.weights:
        require_finite(weight.tensor, float_model.graph.initializers[weight.tensor].const_value.numpy())
    with TemporaryDirectory(prefix="edgecnn-") as scratch:
        tools = Tools(scheme=scheme, graph=graph, feeder=feeder, ranges=spec.ranges, folder=Path(scratch))
        candidate, calibration = first(float_model, placement, tools)
    return measured(candidate, calibration, tools, labels)


def measured(
    candidate: Candidate, calibration: Calibration, tools: Tools, labels: np.ndarray | None = None
) -> Sensitivity:
    """Measure a candidate; see `sensitivity`."""
    scheme, graph = tools.scheme, tools.graph
    reference = Reference(tools.feeder)
    contract = tools.feeder.contract
    truth = _truth(reference, contract=contract, labels=labels) if contract is not None else None
    quantized = candidate.quantized(scheme)
    whole = reference.noise(quantized, simulate=True)
    if not whole.ratios:
        raise EdgeError(
            "no output of the graph holds numbers that noise could be measured in: all are integers or truth values",
            "export it with its scores as an output too",
        )
    in_place = layer_errors(tools.feeder, graph, quantized, reference.sample[:_WATCHED])
    halves = [reference.noise(made(candidate, scheme), simulate=True).mean for made in (only_weights, only_activations)]
    operations = _operations(graph, candidate.placement)
    found = _each(candidate, scheme, reference, operations)
    total = math.fsum(alone.mean for alone, _, _ in found.values())
    saturations = _saturations(candidate, calibration, scheme)
    whole_macs = sum(macs(node, graph) for node in graph.nodes()) or 1
    rows = []
    for node in graph.nodes():
        name = node.name or ""
        if name not in operations and node.op_type not in LAYERS:
            continue
        row = Row(name, node.op_type, macs(node, graph) / whole_macs, candidate.placement.why_float.get(name))
        if name in operations:
            tensor = operations[name].activations[0].tensor
            alone, weights, activation = found[name]
            low, high = candidate.ranges[tensor]
            row = replace(
                row, tensor=tensor, method=candidate.methods[tensor], low=low, high=high,
                saturation=saturations[tensor], in_place_db=in_place.get(name), alone_db=_db(alone.mean),
                weights_db=_db(weights.mean) if weights else None, activation_db=_db(activation.mean),
                outputs_db={output: _db(ratio) for output, ratio in alone.ratios.items()},
                share=alone.mean / total if total > 0.0 else 0.0,
                blame="weights" if weights and weights.mean > activation.mean else "activation",
                changed=_changed(reference, alone), top1=_top1(truth, alone.answers),
            )  # fmt: skip
        rows.append(row)
    rows += [
        Row(layer.name, layer.op, layer.macs / whole_macs, candidate.placement.why_float.get(layer.name))
        for node in graph.nodes()
        if node.op_type not in LAYERS and node.name not in operations
        for layer in layers_in(node, graph.shape)
    ]
    rows.sort(key=lambda row: -row.share)  # stable: equal ones stay in the order of the graph
    return Sensitivity(
        tuple(rows), {name: _db(ratio) for name, ratio in whole.ratios.items()}, _db(halves[0]), _db(halves[1]),
        whole.mean / total if total > 0.0 else 1.0, calibration.images, len(reference.sample), calibration.digest,
        _changed(reference, whole), _top1(truth, reference.answers), _top1(truth, whole.answers),
    )  # fmt: skip


def _each(
    candidate: Candidate, scheme: Scheme, reference: Reference, operations: dict[str, Part]
) -> dict[str, tuple[Noise, Noise | None, Noise]]:
    """By operation: noise with both, only its weights (None: it has none), only its activations quantized."""
    integers = integer_weights(candidate, scheme)
    found: dict[str, tuple[Noise, Noise | None, Noise]] = {}

    def noise(part: Part) -> Noise:
        return reference.noise(partly(candidate, scheme, part, integers))

    for name, part in track(operations.items(), "layers alone", len(operations)):
        activation = noise(replace(part, weights=()))
        if part.weights:
            found[name] = noise(part), noise(replace(part, activations=())), activation
        else:
            found[name] = activation, None, activation
    return found


def _operations(graph: Graph, placement: Placement) -> dict[str, Part]:
    """What each operation reads through Q/DQ; those that only pass one scale on make no noise of their own."""
    group = {activation.tensor: activation.group for activation in placement.activations}
    source = {edge: activation.tensor for activation in placement.activations for edge in activation.edges}
    found: dict[str, Part] = {}
    for node in graph.nodes():
        name = node.name or ""
        edges = [Edge(name, index) for index in range(len(node.inputs)) if Edge(name, index) in source]
        made = {group[value.name] for value in node.outputs if value.name in group}
        edges = [edge for edge in edges if group[source[edge]] not in made]
        if edges:
            found[name] = of_edges(placement, edges, (name,) if name in placement.int8_layers else ())
    return found


def _saturations(candidate: Candidate, calibration: Calibration, scheme: Scheme) -> dict[str, float]:
    found = {}
    for activation in candidate.placement.activations:
        histogram = calibration.histograms.get(activation.tensor)
        grid = activation_grid(*candidate.ranges[activation.tensor], scheme)
        found[activation.tensor] = saturation(histogram, grid) if histogram is not None else 0.0
    return found


def saturation(histogram: Histogram, grid: Grid) -> float:
    """Share of the values whose nearest integer lies beyond the grid, to the width of a bin."""
    total = int(histogram.counts.sum())
    steps = np.rint(histogram.centres() / grid.scale) + grid.zero_point
    clipped = int(histogram.counts[(steps < grid.lowest) | (steps > grid.highest)].sum())
    return clipped / total if total else 0.0


def _truth(reference: Reference, contract: IoContract, labels: np.ndarray | None) -> np.ndarray | None:
    """Labels of the measured images, where they are many and the first output is logits."""
    if labels is None or contract.task != "classify" or len(reference.sample) < ENOUGH:
        return None
    logits = reference.exact[0][0]
    if logits.ndim != 2:
        return None
    chosen = np.asarray(labels)[reference.sample]
    if int(chosen.min()) < 0 or int(chosen.max()) >= logits.shape[1]:
        raise EdgeError(
            f"the images have the class numbers {chosen.min()} to {chosen.max()}, the model {logits.shape[1]} classes",
            "give images of the model's classes, or a flat folder without labels",
        )
    return chosen


def _top1(truth: np.ndarray | None, answers: np.ndarray) -> float | None:
    return None if truth is None else float(np.mean(truth == answers))


def _changed(reference: Reference, noise: Noise) -> int:
    return int(np.sum(reference.answers != noise.answers))


def _db(ratio: float) -> float:
    return decibel(1.0, ratio)
