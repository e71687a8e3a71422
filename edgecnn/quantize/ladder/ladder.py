"""The recovery ladder, the cheapest rung first. Those that `effort` names need no labels and are always climbed.

The others, which cost minutes, speed or training, are climbed only while the accuracy budget is missed: until the drop
on the select images, as a point estimate, is at most half of it, and while these images can tell a gain. A rung is
a function `(Candidate, Tools) -> Candidate`; its candidate replaces the one before if that is a gain beyond chance on
select, or no loss beyond chance and the outputs are cleaner (`steps.better`). The last candidate kept is the best.

Every finished rung is kept under `tools.folder` by a key of its own: a killed climb continues behind it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

from edgecnn.process import progress
from edgecnn.process.disk import is_full
from edgecnn.process.errors import EdgeError, InternalError
from edgecnn.process.versions import code_version, install_command, installed_version
from edgecnn.quantize import LIBRARIES
from edgecnn.quantize.ladder import checkpoint
from edgecnn.quantize.ladder.candidate import Candidate, Tools, first
from edgecnn.quantize.ladder.effort import EFFORTS
from edgecnn.quantize.ladder.quality import fidelity
from edgecnn.quantize.ladder.steps import State, Step, better, expected_speed, restored, state_of, support_note
from edgecnn.quantize.place.coverage import coverage
from edgecnn.quantize.place.placement import LAYERS, Placement
from edgecnn.quantize.write.rewrite import serialized
from edgecnn.recipe.recipe import RungName
from edgecnn.tasks import Drop

Rung = Callable[[Candidate, Tools], Candidate]
RUNGS: tuple[RungName, ...] = get_args(RungName)
_MORE = "give more labelled images, or name the last rung with `recover: {stop_at: …}` (--recover)"
# What a mistake of ours in a rung raises; not what the machine says (memory, disk, Ctrl-C).
_FAULTS = (InternalError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def load_rung(name: RungName) -> Rung:
    """The function of a rung; its file, and what that needs (torch for the learned ones), is imported here.

    Raises:
        ModuleNotFoundError: what it needs is not installed.
    """
    match name:
        case "ranges":
            return lambda candidate, tools: first(candidate.model, candidate.placement, tools)[0]
        case "equalize":
            from edgecnn.quantize.rungs.equalize import equalize

            return equalize
        case "bias":
            from edgecnn.quantize.rungs.bias import bias

            return bias
        case "clip":
            from edgecnn.quantize.rungs.clip import clip

            return clip
        case "adaround":
            from edgecnn.quantize.rungs.learned.adaround import adaround

            return adaround
        case "mixed":
            from edgecnn.quantize.rungs.mixed import mixed

            return mixed
        case "qat":
            from edgecnn.quantize.rungs.qat import qat

            return qat


@dataclass(frozen=True)
class Counted:
    """What calibration of the given graph counted; `bounds`: largest magnitude by tensor."""

    images: int
    digest: str
    batch: int
    seconds: float
    bounds: dict[str, float]


@dataclass(frozen=True)
class Climb:
    """The best candidate, every rung on the way to it, and where it stands to the budget."""

    candidate: Candidate
    rungs: tuple[Step, ...]
    counted: Counted
    state: State
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Step:
        """The rung that the candidate came from."""
        return [step for step in self.rungs if step.kept][-1]


def climb(
    tools: Tools, placement: Placement, *, stop_at: RungName = "qat", asked: bool = False,
    load: Callable[[RungName], Rung] = load_rung,
) -> Climb:  # fmt: skip
    """Calibrate, climb the rungs of the effort, and the others while the budget is missed.

    Args:
        tools: with a budget it needs a judge; without one the rungs of its effort are climbed.
        placement: of the canonical graph.
        stop_at: the last rung that may be climbed; `asked`: by the user. Then, without a budget, all up to it that need
            no labels are climbed; and with one, select images too few to tell whether it is missed stop nothing.
        load: gives a rung's function.

    Raises:
        EdgeError: a budget without a judge; see `first`. A rung's own EdgeError, or a fault of ours in it, leaves that
            rung out, and is told.
    """
    if tools.budget is not None and tools.judge is None:
        raise EdgeError("an accuracy budget needs labelled images", "give labels, or leave the budget out")
    allowed, budget = RUNGS[1 : RUNGS.index(stop_at) + 1], tools.budget
    effort = EFFORTS["thorough" if asked and budget is None else tools.effort]
    always = [name for name in allowed if name in effort.rungs]
    climber = _Climber(tools, load, compares=bool(always) or budget is not None)
    current, standing, counted = climber.begin(placement)
    if always:
        _say(f"{', '.join(always)}: about {effort.passes * counted.seconds:.0f} s (effort {tools.effort})")
    steps: list[Step] = [standing]
    notes: list[str] = []
    driven = False
    for name in (*always, *(name for name in allowed if name not in always)):
        if name not in always:
            if standing.drop is None or budget is None or state_of(standing.drop, budget) == "held":
                break
            if not driven:
                driven = True
                notes = _warnings(standing.drop, budget, asked)
                if len(notes) > 1:
                    break
        candidate, step = climber.rung(name, current, standing)
        steps.append(step)
        progress.current().note(step.describe())
        if step.kept:
            current, standing = candidate, step
    state = state_of(standing.drop, budget)
    if state in ("within", "missed") and standing.drop is not None and budget is not None:
        where = "above" if state == "missed" else "within, but above half of,"
        note = (
            f"no rung up to `{steps[-1].rung}` holds the budget: the best, `{standing.rung}`, has a drop of"
            f" {100 * standing.drop.point:.2f} points on {standing.drop.images:,} select images, {where}"
            f" {100 * budget:g}"
        )
        notes.append(note)
        _say(note)
    return Climb(current, tuple(steps), counted, state, tuple(notes))


def _warnings(drop: Drop, budget: float, asked: bool) -> list[str]:
    """What is said before the budget drives the climb: that its images cannot support it, and where it stops then."""
    notes = [note for note in [support_note(drop, budget)] if note]
    if notes and not asked and drop.lower <= budget:
        notes.append(f"recovery stops: these images cannot show whether the budget is missed; {_MORE}")
    for note in notes:
        _say(note)
    return notes


def _say(note: str) -> None:
    progress.current().note(f"quantize: {note}")


class _Climber:
    """One climb's tools, and what its rungs share."""

    def __init__(self, tools: Tools, load: Callable[[RungName], Rung], *, compares: bool) -> None:
        self.load, self.given, self.compares = load, tools, compares
        # What a killed climb left is found only by a climb that rests on the same.
        self.tools = replace(tools, folder=tools.folder / self._ground()[:16]) if compares else tools

    def begin(self, placement: Placement) -> tuple[Candidate, Step, Counted]:
        """The first candidate: calibration and ranges."""
        self.tools.folder.mkdir(parents=True, exist_ok=True)
        key = repr(placement)
        if (found := self._kept("ranges", key)) is not None:
            candidate, kept = found
            return candidate, restored(kept["step"]), Counted(**kept["counted"])
        start = time.monotonic()
        candidate, calibration = first(self.tools.graph.model, placement, self.tools)
        candidate = replace(candidate, rungs=("ranges",))
        bounds = {name: histogram.bound for name, histogram in calibration.histograms.items()}
        counted = Counted(calibration.images, calibration.digest, calibration.batch, calibration.seconds, bounds)
        step = replace(self._measured("ranges", candidate, None, start), kept=True, why=f"ranges {self.tools.ranges}")
        self._keep("ranges", key, candidate, {"step": step.stored(), "counted": asdict(counted)})
        return candidate, step, counted

    def rung(self, name: RungName, given: Candidate, before: Step) -> tuple[Candidate, Step]:
        """One rung's candidate, and what it brought against the one before."""
        key = f"{checkpoint.digest(given)} {given.rungs}"
        if (found := self._kept(name, key)) is not None:
            return found[0], restored(found[1]["step"])
        if name == "qat" and self.tools.network is None:
            why = "this ONNX file has no torch model that could be trained"
            return given, replace(before, rung=name, kept=False, why=why, seconds=0.0)
        start = time.monotonic()
        try:
            candidate = self.load(name)(given, self.tools)
            serialized(candidate.quantized(self.tools.scheme))  # refused here, not after the climb
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("edgecnn"):
                raise
            why = f"needs `{error.name}`, which is not installed: {install_command('train')}"
        except EdgeError as error:
            if is_full(error, self.tools.folder):
                raise
            why = f"failed: {error.message}"
        except _FAULTS as error:  # what stands already is not lost to a fault in a later rung
            said = str(error).split("\n")[0]
            why = f"failed by a fault of edgecnn, not of the model: {type(error).__name__}: {said}"
        else:
            step = self._judged(name, given, candidate, before, start)
            self._keep(name, key, candidate, {"step": step.stored()})
            return candidate, step
        # Nothing is stored: what was missing may be there at the next try.
        return given, replace(before, rung=name, kept=False, why=why, seconds=time.monotonic() - start)

    def _judged(self, name: RungName, given: Candidate, candidate: Candidate, before: Step, start: float) -> Step:
        own = "".join(f"; {note}" for note in candidate.notes if note not in given.notes)
        if checkpoint.digest(candidate) == checkpoint.digest(given):
            why = f"changed nothing{own}"
            return replace(before, rung=name, kept=False, why=why, seconds=time.monotonic() - start)
        step = self._measured(name, candidate, before, start)
        judge = self.tools.judge
        kept, why = better(before, step, judge.lost(given, candidate) if step.drop is not None and judge else None)
        return replace(step, kept=kept, why=why + own)

    def _measured(self, name: RungName, candidate: Candidate, before: Step | None, start: float) -> Step:
        tools, placement = self.tools, candidate.placement
        layers = [node.name for node in tools.graph.nodes() if node.op_type in LAYERS]
        share = coverage(tools.graph, placement).macs
        speed = before.expected_speed * expected_speed(share, before.int8_macs, tools.scheme) if before else 1.0
        drop = sqnr = None
        if tools.judge is not None and tools.budget is not None:
            drop = tools.judge.drop(candidate)
        if self.compares:
            sqnr = fidelity(tools, candidate)
        return Step(
            rung=name, kept=False, why="", seconds=time.monotonic() - start,
            float_nodes=sum(layer not in placement.int8_layers for layer in layers), int8_macs=share,
            expected_speed=speed, drop=drop, sqnr_db=sqnr,
        )  # fmt: skip

    def _ground(self) -> str:
        """A digest of everything that the whole climb rests on."""
        tools, judge = self.given, self.given.judge
        content = hashlib.sha256(checkpoint.model_bytes(tools.graph.model))
        content.update("".join(tools.feeder.digests).encode())
        facts = [
            tools.scheme.model_dump(), tools.ranges, tools.budget, tools.effort, tools.seed,
            judge.digest if judge else "", code_version(), [installed_version(library) for library in LIBRARIES],
            str(tools.network.trained) if tools.network else "",
            # How pixels become the input, and outputs boxes: the images' digests don't hold it.
            tools.feeder.contract.model_dump(mode="json") if tools.feeder.contract else "",
        ]  # fmt: skip
        content.update(json.dumps(facts).encode())
        return content.hexdigest()

    def _kept(self, name: RungName, key: str) -> tuple[Candidate, checkpoint.Json] | None:
        """What an interrupted climb finished, or None."""
        if not self.compares:
            return None
        found = checkpoint.read(self._path(name, key), self.tools.graph.model)
        if found is not None:
            progress.current().note(f"rung {name}: kept from an interrupted climb")
        return found

    def _keep(self, name: RungName, key: str, candidate: Candidate, content: checkpoint.Json) -> None:
        if self.compares:
            checkpoint.write(self._path(name, key), candidate, self.tools.graph.model, content)

    def _path(self, name: RungName, key: str) -> Path:
        return self.tools.folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
