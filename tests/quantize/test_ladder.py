"""The climb: which rungs are tried, which are kept, where it stops and what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from climbing import biased, climbed, in_float, loader, names, placed, tools_of
from quantize_graphs import CPU, TENSORRT

from edgecnn.process import progress
from edgecnn.process.errors import EdgeError, InternalError
from edgecnn.process.versions import install_command
from edgecnn.quantize.ladder.candidate import Candidate, Drop, Network, Tools
from edgecnn.quantize.ladder.ladder import climb, load_rung
from edgecnn.quantize.ladder.steps import expected_speed, state_of, support_note
from edgecnn.quantize.write.rewrite import Overrides
from edgecnn.quantize.write.weights import IntegerWeight
from edgecnn.recipe.recipe import EffortName, RungName

QAT_NETWORK = Network(None, None, None, Path("data"), Path("train"), None)  # type: ignore[arg-type]  # only that there is one


class Notes:
    """A Progress that keeps its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def task(self, name: str, total: float | None) -> Iterator[Notes]:
        yield self

    def update(self, done: float, text: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


def refuse(name: RungName) -> object:
    raise AssertionError(f"rung {name} was climbed")


# --- where it stops ---


def test_recovery_off_is_ranges_alone(tmp_path: Path) -> None:
    tools = tools_of(tmp_path / "never", None, None)
    found = climb(tools, placed(tools), stop_at="ranges", load=refuse)  # type: ignore[arg-type]
    assert names(found) == [("ranges", True)]
    assert (found.state, found.rungs[0].drop, found.rungs[0].sqnr_db) == ("unasked", None, None)
    assert list(tmp_path.rglob("*.npz")) == []


@pytest.mark.parametrize(
    ("effort", "tried"),
    [
        ("fast", ["equalize"]),
        ("balanced", ["equalize", "bias"]),
        ("thorough", ["equalize", "bias", "clip", "adaround"]),
    ],
)
@pytest.mark.parametrize("budget", [None, 0.02])
def test_rungs_without_labels_are_always_climbed(
    tmp_path: Path, budget: float | None, effort: EffortName, tried: list[str]
) -> None:
    """Without a budget, and with one that is held: each kept by the outputs of held calibration images."""
    heard = Notes()
    tools = tools_of(tmp_path, {"ranges": 0, "bias": 0} if budget else None, budget, effort=effort)
    with progress.showing(heard):
        found = climb(tools, placed(tools), load=loader(bias=biased("bias", 0.5)))
    assert [step.rung for step in found.rungs] == ["ranges", *tried]
    assert found.best.rung == "ranges"  # the shifted bias only adds noise
    assert all(step.sqnr_db is not None for step in found.rungs)
    assert found.state == ("held" if budget else "unasked")
    said = [note for note in heard.notes if f"effort {effort}" in note]
    assert len(said) == 1
    assert re.search(r"about \d+ s", said[0])


def test_a_named_rung_is_climbed_to_without_a_budget(tmp_path: Path) -> None:
    tools = tools_of(tmp_path, None, None, effort="fast")
    found = climb(tools, placed(tools), stop_at="clip", asked=True, load=loader())
    assert [step.rung for step in found.rungs] == ["ranges", "equalize", "bias", "clip"]


def test_a_budget_without_labels_is_refused(tmp_path: Path) -> None:
    tools = tools_of(tmp_path, None, 0.01)
    with pytest.raises(EdgeError, match="needs labelled images"):
        climb(tools, placed(tools))


def test_a_budget_held_by_ranges_buys_nothing(tmp_path: Path) -> None:
    tools = tools_of(tmp_path, {"ranges": 10}, effort="fast")
    found = climb(tools, placed(tools), load=loader(mixed=refuse, qat=refuse))  # type: ignore[arg-type]
    assert names(found) == [("ranges", True), ("equalize", False)]
    assert (found.state, found.best.rung) == ("held", "ranges")
    assert found.best.drop is not None
    assert found.best.drop.point == pytest.approx(0.01)  # half of the budget, exactly


def test_it_stops_at_the_first_rung_that_holds_half_the_budget(tmp_path: Path) -> None:
    lost = {"ranges": 60, "equalize": 25, "bias": 10, "clip": 0}
    rungs = {name: biased(name, 0.01 * number) for number, name in enumerate(("equalize", "bias", "clip"), 1)}
    tools = tools_of(tmp_path, lost, effort="fast")
    found = climb(tools, placed(tools), load=loader(**rungs))
    assert names(found) == [("ranges", True), ("equalize", True), ("bias", True)]
    assert (found.state, found.best.rung, found.candidate.rungs) == ("held", "bias", ("ranges", "equalize", "bias"))


@pytest.mark.parametrize(
    ("stop_at", "tried"),
    [("ranges", ["ranges"]), ("bias", ["ranges", "equalize", "bias"]), ("qat", list(get_args(RungName)))],
)
def test_stop_at_bounds_it(tmp_path: Path, stop_at: RungName, tried: list[str]) -> None:
    tools = tools_of(tmp_path, {"ranges": 90}, network=QAT_NETWORK)
    found = climb(tools, placed(tools), stop_at=stop_at, load=loader())
    assert [step.rung for step in found.rungs] == tried


def test_a_budget_of_zero_is_held_only_without_a_drop(tmp_path: Path) -> None:
    found = climbed(tmp_path, {"ranges": 9, "equalize": 0}, 0.0, equalize=biased("equalize", 0.01))
    assert (found.state, found.best.rung) == ("held", "equalize")
    assert climbed(tmp_path, {"ranges": -1}, 0.0).state == "held"
    missed = climbed(tmp_path, {"ranges": 1}, 0.0)
    assert missed.state == "missed"
    assert any("budget of 0" in note for note in missed.notes)


def test_a_budget_that_no_rung_holds_keeps_and_names_the_best(tmp_path: Path) -> None:
    rungs = {"equalize": biased("equalize", 0.01), "bias": biased("bias", 0.02)}
    found = climbed(tmp_path, {"ranges": 90, "equalize": 50, "bias": 70}, **rungs)
    assert (found.state, found.best.rung, found.candidate.rungs) == ("missed", "equalize", ("ranges", "equalize"))
    assert "no rung up to `qat` holds the budget: the best, `equalize`, has a drop of 5.00 points" in found.notes[-1]


def test_within_the_budget_but_above_its_half_is_told_apart(tmp_path: Path) -> None:
    found = climbed(tmp_path, {"ranges": 15})
    assert found.state == "within"
    assert "within, but above half of" in found.notes[-1]


# --- which rungs are kept ---


def test_a_worse_rung_is_left_out_and_the_next_is_given_the_best(tmp_path: Path) -> None:
    given: dict[str, tuple[str, ...]] = {}

    def bias(candidate: Candidate, tools: Tools) -> Candidate:
        given["bias"] = candidate.rungs
        return biased("bias", 0.02)(candidate, tools)

    found = climbed(tmp_path, {"ranges": 50, "equalize": 51, "bias": 9}, equalize=biased("equalize", 0.5), bias=bias)
    assert names(found)[:3] == [("ranges", True), ("equalize", False), ("bias", True)]
    assert given["bias"] == ("ranges",)
    assert "0.10 points higher than with `ranges`" in found.rungs[1].why


@pytest.mark.parametrize(
    ("more", "shift", "kept", "why"),
    [
        (2, 1e-4, True, "dB, the drop 0.20 points higher"),  # within the bounds: noise, and the outputs are cleaner
        (-2, 0.5, False, "no cleaner"),  # 0.2 points of luck do not buy dirtier outputs
        (20, 1e-4, False, "a loss beyond chance"),
        (-20, 0.5, True, "a gain beyond chance"),
        (0, 0.5, False, "no cleaner"),
        (0, 1e-4, True, "dB"),
    ],
)
def test_within_the_paired_bounds_the_cleaner_outputs_win(
    tmp_path: Path, more: int, shift: float, kept: bool, why: str
) -> None:
    """`equalize` is dirtier but surely better than `ranges`; `bias` loses `more` images of 1,000 than it."""
    rungs = {"equalize": biased("equalize", 0.1), "bias": biased("bias", shift)}
    found = climbed(tmp_path, {"ranges": 90, "equalize": 50, "bias": 50 + more}, **rungs)
    assert names(found)[:3] == [("ranges", True), ("equalize", True), ("bias", kept)]
    assert why in found.rungs[2].why


@pytest.mark.parametrize(("lost", "kept"), [(50, False), (49, True)])
def test_float_layers_must_buy_a_lower_drop(tmp_path: Path, lost: int, kept: bool) -> None:
    found = climbed(tmp_path, {"ranges": 50, "mixed": lost}, mixed=in_float)
    step = next(step for step in found.rungs if step.rung == "mixed")
    assert (step.kept, step.float_nodes) == (kept, 1)
    assert step.int8_macs == pytest.approx(0.75)  # the second layer has three times the first's channels in
    assert step.expected_speed == pytest.approx(1 / 1.25)
    assert found.rungs[0].expected_speed == 1.0


def test_a_rung_that_changes_nothing_says_so(tmp_path: Path) -> None:
    def equalize(candidate: Candidate, tools: Tools) -> Candidate:
        return replace(candidate, rungs=(*candidate.rungs, "equalize"), notes=("no link could be equalized",))

    found = climbed(tmp_path, {"ranges": 50}, equalize=equalize)
    assert found.rungs[1].why == "changed nothing; no link could be equalized"
    assert not found.rungs[1].kept
    assert found.candidate.notes == ()


def test_a_rung_that_fails_is_left_out_and_told(tmp_path: Path) -> None:
    def equalize(candidate: Candidate, tools: Tools) -> Candidate:
        raise EdgeError("the graph has a loop")

    def adaround(candidate: Candidate, tools: Tools) -> Candidate:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    found = climbed(
        tmp_path, {"ranges": 50, "bias": 20}, equalize=equalize, bias=biased("bias", 0.1), adaround=adaround
    )
    why = {step.rung: step.why for step in found.rungs}
    assert why["equalize"] == "failed: the graph has a loop"
    assert f"needs `torch`, which is not installed: {install_command('train')}" in why["adaround"]
    assert why["qat"] == "this ONNX file has no torch model that could be trained"
    assert found.best.rung == "bias"


@pytest.mark.parametrize("fault", [KeyError("c.weight"), InternalError("two outputs of one name"), RuntimeError()])
def test_a_fault_of_ours_in_a_rung_leaves_what_stands(tmp_path: Path, fault: Exception) -> None:
    def equalize(candidate: Candidate, tools: Tools) -> Candidate:
        raise fault

    found = climbed(tmp_path, {"ranges": 50, "bias": 20}, equalize=equalize, bias=biased("bias", 0.1))
    assert found.rungs[1].why.startswith("failed by a fault of edgecnn, not of the model")
    assert found.best.rung == "bias"


def test_a_graph_that_onnx_refuses_is_left_out(tmp_path: Path) -> None:
    def equalize(candidate: Candidate, tools: Tools) -> Candidate:
        narrow = IntegerWeight(np.ones((9, 2, 1, 1), np.int8), np.ones(9, np.float32), 0)  # the graph has 9 channels
        overrides = Overrides({"second.weight": narrow})
        return replace(candidate, overrides=overrides, rungs=(*candidate.rungs, "equalize"))

    found = climbed(tmp_path, {"ranges": 50}, equalize=equalize)
    assert "onnx refuses" in found.rungs[1].why


def test_every_rung_is_a_function_of_its_modules_name() -> None:
    pytest.importorskip("torch")
    for name in get_args(RungName)[1:]:
        rung = load_rung(name)
        assert rung.__name__ == name
        assert rung.__module__.rsplit(".", 1)[1] == name


# --- what it says ---


def test_images_that_cannot_support_the_budget_are_told_before_the_climb(tmp_path: Path) -> None:
    heard = Notes()
    order: list[int] = []

    def bias(candidate: Candidate, tools: Tools) -> Candidate:
        order.append(len(heard.notes))
        return candidate

    tools = tools_of(tmp_path, {"ranges": 50}, 0.002, effort="fast")
    with progress.showing(heard):
        found = climb(tools, placed(tools), load=loader(bias=bias))
    assert any("1,000 select images cannot support a budget" in note for note in heard.notes[: order[0]])
    assert "0.2 points" in found.notes[0]
    assert "about 1,351" in found.notes[0]  # 1.645² (1 - 0.002) / 0.002
    assert climbed(tmp_path, {"ranges": 0}, 0.002).notes == ()  # the budget drives nothing, so nothing follows noise


@pytest.mark.parametrize(("asked", "tried"), [(False, ["ranges", "equalize"]), (True, list(get_args(RungName)))])
def test_too_few_select_images_stop_a_default_climb(tmp_path: Path, asked: bool, tried: list[str]) -> None:
    """A drop of 0.3 points on 1,000 images, budget 0.2: whether it is missed they cannot tell."""
    tools = tools_of(tmp_path, {"ranges": 3}, 0.002, effort="fast", network=QAT_NETWORK)
    found = climb(tools, placed(tools), asked=asked, load=loader())
    assert [step.rung for step in found.rungs] == tried
    assert any("recovery stops" in note for note in found.notes) is not asked


def test_support_note_keeps_silent_where_images_are_enough() -> None:
    drop = Drop(0.9, 0.9, -0.001, 0.001, 10_000, disc=0.01)
    assert support_note(drop, 0.01) == ""
    assert "takes about 62,001 (float and INT8 disagree both ways on 1.0%" in support_note(drop, 0.001)
    lost = Drop(0.9, 0.5, 0.35, 0.45, 10_000, disc=0.41)  # most of the disagreement is the drop itself
    assert support_note(lost, 0.01) == ""


def test_states() -> None:
    def at(lost: float) -> Drop:
        return Drop(0.9, 0.9 - lost, 0.0, 1.0, 1000)

    assert [state_of(at(lost), 0.02) for lost in (-0.01, 0.01, 0.011, 0.02, 0.021)] == [
        "held", "held", "within", "within", "missed",
    ]  # fmt: skip
    assert state_of(None, 0.02) == state_of(at(0.5), None) == "unasked"


def test_expected_speed_counts_macs() -> None:
    assert expected_speed(0.4, 0.4, TENSORRT) == 1.0
    assert expected_speed(0.0, 1.0, TENSORRT) == 0.5  # all FP16
    assert expected_speed(0.0, 1.0, CPU) == 0.25  # all FP32
    assert expected_speed(0.9, 1.0, TENSORRT) == pytest.approx(1 / 1.1)
    assert expected_speed(0.5, 0.75, TENSORRT) == pytest.approx(1.25 / 1.5)
    assert expected_speed(1.0, 0.5, TENSORRT) == pytest.approx(1.5)  # a later rung may take layers back
