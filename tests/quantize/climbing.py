"""A climb with rungs and a judge that a test writes itself: real functions in place of the learned ones."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from color_graphs import CONTRACT, as_ir, color_net, colors
from quantize_graphs import TENSORRT, Pictures

from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.sessions import observe
from edgecnn.quantize.ladder.candidate import Candidate, Tools
from edgecnn.quantize.ladder.ladder import Climb, Rung, climb
from edgecnn.quantize.place.placement import Graph, Placement, place
from edgecnn.recipe.recipe import RungName
from edgecnn.tasks import Drop
from edgecnn.tasks.classify.outcomes import paired_drop

IMAGES = 1000


@dataclass(frozen=True)
class Judged:
    """A judge that knows by heart how many of 1,000 images a candidate loses, by the last rung that made it."""

    losses: Mapping[str, int]
    how: str = "by heart"

    @property
    def images(self) -> int:
        return IMAGES

    @property
    def digest(self) -> str:
        return repr(sorted(self.losses.items()))

    def drop(self, candidate: Candidate) -> Drop:
        return paired_drop(_right(0), self._right(candidate))

    def lost(self, before: Candidate, after: Candidate) -> Drop:
        return paired_drop(self._right(before), self._right(after))

    def _right(self, candidate: Candidate) -> np.ndarray:
        return _right(self.losses[candidate.rungs[-1]])


def _right(lost: int) -> np.ndarray:
    """Which images are right where `lost` of the float model's are not."""
    right = np.ones(IMAGES, bool)
    right[: 100 - max(-lost, 0)] = False
    right[100 : 100 + max(lost, 0)] = False
    return right


def tools_of(folder: Path, lost: Mapping[str, int] | None, budget: float | None = 0.02, **given: object) -> Tools:
    """Tools for the colour classifier, with that budget and a judge that knows `lost`."""
    model = as_ir(color_net())
    feeder = Feeder(model, CONTRACT, Pictures(colors(16)[0]), 16)
    graph = Graph(model, observe(model, list(feeder.feeds([0])))[0])
    judge = None if lost is None else Judged(lost)
    return Tools(TENSORRT, graph, feeder, "minmax", folder, judge=judge, budget=budget, **given)  # type: ignore[arg-type]


def placed(tools: Tools) -> Placement:
    return place(tools.graph, tools.scheme)


def biased(name: str, shift: float) -> Rung:
    """A rung that adds `shift` to a bias: more shift, less SQNR."""

    def rung(candidate: Candidate, tools: Tools) -> Candidate:
        biases = {**candidate.overrides.biases, "second": np.full(9, shift, np.float32)}
        overrides = replace(candidate.overrides, biases=biases)
        return replace(candidate, overrides=overrides, rungs=(*candidate.rungs, name))

    return rung


def loader(**rungs: Rung) -> Callable[[RungName], Rung]:
    """Gives these rungs; any other leaves the candidate as it is."""

    def load(name: RungName) -> Rung:
        return rungs.get(name, lambda candidate, tools: candidate)

    return load


def climbed(folder: Path, lost: Mapping[str, int] | None, budget: float | None = 0.02, **rungs: Rung) -> Climb:
    tools = tools_of(folder, lost, budget)
    return climb(tools, placed(tools), load=loader(**rungs))


def in_float(candidate: Candidate, tools: Tools) -> Candidate:
    """Gives one layer back to float."""
    placement = replace(candidate.placement, weights=candidate.placement.weights[1:])
    kept = {weight.node for weight in placement.weights}
    activations = tuple(a for a in placement.activations if any(edge.node in kept for edge in a.edges))
    return replace(
        candidate, placement=replace(placement, activations=activations), rungs=(*candidate.rungs, "mixed")
    )  # fmt: skip


def names(found: Climb) -> list[tuple[str, bool]]:
    return [(step.rung, step.kept) for step in found.rungs]


# --- a child that is killed in its climb ---

LOST = {"ranges": 90, "equalize": 60, "bias": 30, "clip": 0}


def logged(name: str, shift: float, log: Path, *, forever: bool = False) -> Rung:
    """A rung that writes its name into `log` before it works, and may never end."""

    def rung(candidate: Candidate, tools: Tools) -> Candidate:
        with log.open("a") as file:
            file.write(f"{name}\n")
        while forever:
            time.sleep(0.05)
        return biased(name, shift)(candidate, tools)

    return rung


def logged_climb(folder: Path, log: Path, forever: str = "") -> Climb:
    shifts = {"equalize": 0.03, "bias": 0.02, "clip": 0.01}
    rungs = {name: logged(name, shift, log, forever=name == forever) for name, shift in shifts.items()}
    return climbed(folder, LOST, **rungs)


if __name__ == "__main__":
    logged_climb(Path(sys.argv[1]), Path(sys.argv[2]), forever=sys.argv[3])
