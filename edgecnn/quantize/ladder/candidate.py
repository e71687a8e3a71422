"""What a recovery rung takes and gives: a candidate INT8 model, and the tools to judge and improve it.

A rung is a function `(Candidate, Tools) -> Candidate` in a file of its own. It looks only at the calibrate and select
splits, and it never changes what it was given: `dataclasses.replace` makes the next candidate.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import onnx_ir as ir

from edgecnn.quantize.calibration.auto import Chosen, Range, automatic, by_method
from edgecnn.quantize.calibration.calibrate import Calibration, Feeder, calibrate
from edgecnn.quantize.calibration.histogram import merged
from edgecnn.quantize.calibration.ranges import METHODS, Method, activation_grid, choose
from edgecnn.quantize.place.placement import Graph, Placement
from edgecnn.quantize.write.rewrite import NOTHING, Grids, Overrides, rewrite
from edgecnn.recipe.device import Scheme
from edgecnn.tasks import Drop

if TYPE_CHECKING:
    from edgecnn.recipe.recipe import DataSpec, EffortName, ModelSpec, QatSpec, RangeMethod, TrainSpec


@dataclass(frozen=True)
class Candidate:
    """An INT8 model in the making.

    Attributes:
        model: the float graph it is made from: the canonical graph, or one that computes the same outputs (equalized).
            Node and tensor names are those of the canonical graph.
        placement: where Q/DQ goes.
        ranges: (low, high) by activation tensor; the tensors of one scale group have the same.
        methods: where each range came from, by activation tensor.
        overrides: integer weights and biases that replace the model's own.
        rungs: the rungs that made it, in order.
        notes: what they have to say to the user.
    """

    model: ir.Model
    placement: Placement
    ranges: dict[str, Range]
    methods: dict[str, str]
    overrides: Overrides = NOTHING
    rungs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def grids(self, scheme: Scheme) -> Grids:
        """Scale and zero-point by activation tensor."""
        return {a.tensor: activation_grid(*self.ranges[a.tensor], scheme) for a in self.placement.activations}

    def quantized(self, scheme: Scheme) -> ir.Model:
        """The Q/DQ graph."""
        return rewrite(self.model, self.placement, self.grids(scheme), scheme, self.overrides)

    def with_chosen(self, chosen: Chosen) -> Candidate:
        """The same with other ranges."""
        ranges = {a.tensor: chosen.ranges[a.group] for a in self.placement.activations}
        methods = {a.tensor: chosen.methods[a.group] for a in self.placement.activations}
        return replace(self, ranges=ranges, methods=methods)


class Judge(Protocol):
    """The task's metric on the select split, never on the scored one."""

    @property
    def images(self) -> int:
        """How many labelled images decide."""

    @property
    def how(self) -> str:
        """What computes a candidate's answers, such as `float simulation`."""

    @property
    def digest(self) -> str:
        """Of everything that decides its answers: a resumed climb trusts only what this judge has judged."""

    def drop(self, candidate: Candidate) -> Drop:
        """What INT8 loses against the float model."""

    def lost(self, before: Candidate, after: Candidate) -> Drop:
        """What the later of two candidates loses against the one before, paired by image."""


@dataclass(frozen=True)
class Network:
    """Where the float graph came from: what the qat rung trains further, through the family that `model` names.

    Attributes:
        model, train, images: the recipe's sections; `train` as the float model was trained.
        data: folder of the data artifact.
        trained: folder of the train artifact, with weights.safetensors and model.json.
        qat: how it is trained.
    """

    model: ModelSpec
    train: TrainSpec
    images: DataSpec
    data: Path
    trained: Path
    qat: QatSpec


@dataclass(frozen=True)
class Tools:
    """What every rung may use.

    Attributes:
        scheme: the device's, resolved.
        graph: the canonical float graph as given, and its shapes: the reference of every error.
        feeder: calibration images for `graph.model`; `feeder_of(model)` gives the same images to another graph.
        ranges: the recipe's range method.
        judge: None where there are no labels.
        budget: the largest drop allowed, a fraction of 1; None: none asked.
        folder: scratch that outlives a killed climb; a rung keeps what it needs to continue in a subfolder of its name.
        seed: of every random choice.
        network: the torch network behind the graph; None for a foreign ONNX file.
        effort: how long the rungs that need no labels may take.
    """

    scheme: Scheme
    graph: Graph
    feeder: Feeder
    ranges: RangeMethod
    folder: Path
    judge: Judge | None = None
    budget: float | None = None
    seed: int = 0
    network: Network | None = None
    effort: EffortName = "thorough"
    made: dict[str, object] = field(default_factory=dict)  # results that several rungs share, by name

    def feeder_of(self, model: ir.Model) -> Feeder:
        """The same calibration images for another graph with the same inputs."""
        return replace(self.feeder, model=model)


def again(candidate: Candidate, model: ir.Model, tools: Tools, chosen: list[int] | None = None) -> Candidate:
    """The candidate on a graph with other channel sizes: calibrated anew, every range by the method it had.

    Args:
        chosen: the images to calibrate on; None: all, and what they show is kept, see `bounds_of`.
    """
    placement = candidate.placement
    calibration = calibrate(tools.feeder_of(model), [activation.tensor for activation in placement.counted], chosen)
    if chosen is None:
        tools.made[f"bounds {id(model)}"] = (
            model,
            {name: histogram.bound for name, histogram in calibration.histograms.items()},
        )
    found: dict[int, tuple[Range, Method]] = {}
    for group, members in placement.groups().items():
        named = candidate.methods[members[0].tensor]
        method: Method = next((each for each in METHODS if each == named), "mse")
        histogram = merged([calibration.histograms[member.tensor] for member in members if not member.pooled])
        found[group] = choose(method, histogram, tools.scheme), method
    ranges = {activation.tensor: found[activation.group][0] for activation in placement.activations}
    methods: dict[str, str] = {activation.tensor: found[activation.group][1] for activation in placement.activations}
    return replace(candidate, model=model, ranges=ranges, methods=methods, overrides=NOTHING)


def bounds_of(model: ir.Model, tensors: list[str], tools: Tools) -> dict[str, float]:
    """Largest magnitude by tensor over the calibration images."""
    kept = tools.made.get(f"bounds {id(model)}")  # which holds the model: no other has its number
    if isinstance(kept, tuple) and set(tensors) <= set(kept[1]):
        return {name: kept[1][name] for name in tensors}
    return {name: found.bound for name, found in calibrate(tools.feeder_of(model), tensors).histograms.items()}


def shift_bounds(model: ir.Model, moved: ir.Model, shifts: dict[str, float], tools: Tools) -> None:
    """What `bounds_of` knows of a graph holds for another, whose tensors (none below 0) stand lower by a shift."""
    kept = tools.made.get("bounds")
    if isinstance(kept, tuple) and kept[0] is model:
        lowered = {name: max(shift, kept[1][name] - shift) for name, shift in shifts.items() if name in kept[1]}
        tools.made["bounds"] = moved, {**kept[1], **lowered}


def first(model: ir.Model, placement: Placement, tools: Tools) -> tuple[Candidate, Calibration]:
    """Calibrate a float graph and choose its ranges: where a climb begins, and again after the graph was changed."""
    feeder = tools.feeder_of(model)
    calibration = calibrate(feeder, [activation.tensor for activation in placement.counted])
    tools.made["bounds"] = model, {name: histogram.bound for name, histogram in calibration.histograms.items()}
    if tools.ranges == "auto":
        chosen = automatic(feeder, placement, calibration, tools.scheme)
    else:
        chosen = by_method(tools.ranges, placement, calibration, tools.scheme)
    return Candidate(model, placement, {}, {}).with_chosen(chosen), calibration
