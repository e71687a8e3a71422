"""A climb that was killed continues behind its finished rungs, and trusts nothing half-written or of another climb."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from climbing import LOST, biased, climbed, in_float, logged_climb, names, placed, tools_of
from color_graphs import as_ir, hard_net

from edgecnn.process.errors import EdgeError
from edgecnn.quantize.ladder import checkpoint
from edgecnn.quantize.ladder.candidate import Candidate, Tools, first
from edgecnn.quantize.write.rewrite import Overrides
from edgecnn.quantize.write.weights import IntegerWeight


def candidate_of(tools: Tools) -> Candidate:
    """A candidate that has everything a rung may change."""
    found, _ = first(tools.graph.model, placed(tools), tools)
    weight = IntegerWeight(np.full((9, 3, 1, 1), 7, np.int8), np.linspace(0.1, 0.9, 9, dtype=np.float32), 0)
    overrides = Overrides({"first.weight": weight}, {"second": np.arange(9, dtype=np.float32)})
    return replace(found, model=as_ir(hard_net()), overrides=overrides, rungs=("ranges", "equalize"), notes=("a note",))


def test_a_candidate_comes_back_as_it_was(tmp_path: Path) -> None:
    tools = tools_of(tmp_path, None)
    candidate = candidate_of(tools)
    checkpoint.write(tmp_path / "a.npz", candidate, tools.graph.model, {"step": 1})
    read = checkpoint.read(tmp_path / "a.npz", tools.graph.model)
    assert read is not None
    again, told = read
    assert told == {"step": 1}
    assert (again.placement, again.ranges, again.methods) == (candidate.placement, candidate.ranges, candidate.methods)
    assert (again.rungs, again.notes) == (candidate.rungs, candidate.notes)
    assert checkpoint.digest(again) == checkpoint.digest(candidate)
    model_bytes = checkpoint.model_bytes
    assert model_bytes(again.quantized(tools.scheme)) == model_bytes(candidate.quantized(tools.scheme))
    # Whoever adds a field must store it.
    assert {field.name for field in fields(Candidate)} == {
        "model", "placement", "ranges", "methods", "overrides", "rungs", "notes",
    }  # fmt: skip
    assert {field.name for field in fields(Overrides)} == {"weights", "biases"}
    assert {field.name for field in fields(IntegerWeight)} == {"values", "scales", "axis"}


def test_a_candidate_of_the_given_graph_comes_back_with_that_graph(tmp_path: Path) -> None:
    tools = tools_of(tmp_path, None)
    candidate, _ = first(tools.graph.model, placed(tools), tools)
    checkpoint.write(tmp_path / "a.npz", candidate, tools.graph.model, {})
    read = checkpoint.read(tmp_path / "a.npz", tools.graph.model)
    assert read is not None
    assert read[0].model is tools.graph.model


@pytest.mark.parametrize(
    "document",
    [
        [1], 3, {}, {"own_model": True},
        {"own_model": False, "axes": 3, "placement": {}, "ranges": {}, "methods": {}, "rungs": [], "notes": [],
         "told": {}},
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_not_taken(document: object, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", document=np.frombuffer(json.dumps(document).encode(), np.uint8))
    assert checkpoint.read(tmp_path / "a.npz", as_ir(hard_net())) is None


def test_digests_tell_candidates_apart(tmp_path: Path) -> None:
    tools = tools_of(tmp_path, None)
    candidate = candidate_of(tools)
    changed = [
        replace(candidate, model=tools.graph.model),
        replace(candidate, overrides=Overrides(candidate.overrides.weights)),
        replace(candidate, overrides=Overrides(biases=candidate.overrides.biases)),
        replace(candidate, ranges={name: (low, 2 * high) for name, (low, high) in candidate.ranges.items()}),
        in_float(candidate, tools),
    ]
    assert len({checkpoint.digest(one) for one in (candidate, *changed)}) == 1 + len(changed)
    assert checkpoint.digest(replace(candidate, rungs=(), notes=(), methods={})) == checkpoint.digest(candidate)


def wait_for(condition: object, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, "the child ended by itself"
        assert time.monotonic() < deadline, "the child did not come so far in a minute"
        time.sleep(0.02)


def test_a_climb_killed_in_a_rung_continues_behind_the_finished_ones(tmp_path: Path) -> None:
    folder, log = tmp_path / "resume", tmp_path / "log"
    log.touch()
    here = Path(__file__).parent
    child = subprocess.Popen(
        [sys.executable, str(here / "climbing.py"), str(folder), str(log), "bias"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])},
    )
    try:
        wait_for(lambda: "bias" in log.read_text(), child)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert log.read_text().split() == ["equalize", "bias"]
    log.write_text("")
    found = logged_climb(folder, log)
    assert log.read_text().split() == ["bias", "clip"]  # ranges and equalize were kept
    unbroken = logged_climb(tmp_path / "fresh", tmp_path / "other log")
    assert names(found) == names(unbroken)
    assert [step.drop for step in found.rungs] == [step.drop for step in unbroken.rungs]
    assert checkpoint.digest(found.candidate) == checkpoint.digest(unbroken.candidate)
    assert found.counted.digest == unbroken.counted.digest


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "partial"])
def test_a_half_written_rung_is_made_again(tmp_path: Path, damage: str) -> None:
    log = tmp_path / "log"
    whole = logged_climb(tmp_path / "resume", log)
    (stored,) = (tmp_path / "resume").rglob("bias-*.npz")
    content = stored.read_bytes()
    match damage:
        case "cut":
            stored.write_bytes(content[: len(content) // 2])
        case "changed":
            middle = len(content) // 3
            stored.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        case "empty":
            stored.write_bytes(b"")
        case "partial":
            stored.rename(stored.with_name(f".{stored.name}.123"))  # killed before the rename
    log.write_text("")
    again = logged_climb(tmp_path / "resume", log)
    assert log.read_text().split() == ["bias"]
    assert checkpoint.digest(again.candidate) == checkpoint.digest(whole.candidate)


def test_a_climb_on_other_ground_starts_anew(tmp_path: Path) -> None:
    calls: list[str] = []

    def equalize(candidate: Candidate, tools: Tools) -> Candidate:
        calls.append("equalize")
        return biased("equalize", 0.1)(candidate, tools)

    climbed(tmp_path, LOST, 0.02, equalize=equalize)
    climbed(tmp_path, LOST, 0.02, equalize=equalize)
    assert len(calls) == 1
    climbed(tmp_path, LOST, 0.03, equalize=equalize)
    assert len(calls) == 2
    climbed(tmp_path, {**LOST, "equalize": 61}, 0.02, equalize=equalize)
    assert len(calls) == 3


def test_a_failed_rung_is_tried_again(tmp_path: Path) -> None:
    def failing(candidate: Candidate, tools: Tools) -> Candidate:
        raise EdgeError("no memory")

    climbed(tmp_path, {"ranges": 50, "equalize": 10}, equalize=failing)
    found = climbed(tmp_path, {"ranges": 50, "equalize": 10}, equalize=biased("equalize", 0.1))
    assert names(found)[1] == ("equalize", True)
