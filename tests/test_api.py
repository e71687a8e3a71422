"""What a program does with edgecnn: the steps of the command line as functions, with no state of the process."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_files import write_desk

import edgecnn
from edgecnn.api import quantize
from edgecnn.process.progress import Plain


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_desk(tmp_path_factory.mktemp("api"))


def test_a_build_in_a_program(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment, folder = dict(os.environ), os.getcwd()
    kept = {"cache": tmp_path / "store", "out": tmp_path / "runs"}
    decisions, missing = edgecnn.plan(desk / "own.yaml", cache=tmp_path / "store")
    assert not any(need.stops for need in missing)
    assert not any(decision.kept for decision in decisions)
    built = edgecnn.build(desk / "own.yaml", set={"budgets.max_accuracy_drop": 0.04}, **kept)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert built.report is not None
    assert built.report.verdict == "pass"
    speedup = built.report.figure("speedup")
    assert speedup is not None
    assert (speedup.unit, isinstance(speedup.value, float)) == ("x", True)
    assert built.run is not None
    assert edgecnn.read_report(built.run) == built.report
    again = edgecnn.build(desk / "own.yaml", set=["budgets.max_accuracy_drop=0.04"], progress=Plain(), **kept)
    assert again.made == ()
    assert "kept" in capsys.readouterr().err
    settled, _ = edgecnn.plan(desk / "own.yaml", set={"budgets.max_accuracy_drop": 0.04}, cache=tmp_path / "store")
    assert all(decision.kept for decision in settled)
    assert {k: v for k, v in os.environ.items() if environment.get(k) != v} == {}
    assert os.getcwd() == folder
    timed = edgecnn.bench(built.run / "model.int8.onnx", built.run / "model.onnx", set={"bench.min_pairs": 4,
                          "bench.min_seconds": 0.02, "bench.max_seconds": 0.1})  # fmt: skip
    assert timed.document["speedup"]["lower"] <= timed.document["speedup"]["pair_median"]


def test_errors_say_what_and_how(desk: Path, tmp_path: Path) -> None:
    with pytest.raises(edgecnn.EdgeError, match=r"no recipe|does not exist") as caught:
        edgecnn.build(tmp_path / "none.yaml")
    assert caught.value.hint
    recipe = edgecnn.Recipe.model_validate({
        "name": "own", "data": {"format": "digits", "color": "gray"}, "device": "cpu-x86",
        "model": {"family": "small", "name": "gap-s", "image_size": 16}, "train": {"epochs": 1},
    })  # fmt: skip
    with pytest.raises(edgecnn.EdgeError, match="`set` and `device` are for a recipe's file"):
        edgecnn.plan(recipe, device="rtx-4060")
    with pytest.raises(edgecnn.EdgeError, match="holds no run"):
        edgecnn.check(desk, tmp_path / "none.zip")
    with pytest.raises(edgecnn.EdgeError, match="--set: nope: Extra inputs are not permitted") as caught:
        edgecnn.bench(desk / "colours.onnx", set={"bench.nope": 1})
    assert caught.value.message.count("\n") == 0
    with pytest.raises(AttributeError, match="no attribute `train`"):
        _ = edgecnn.train


def test_values_of_a_program_reach_the_recipe_as_they_are(desk: Path, tmp_path: Path) -> None:
    values = {"model.weights": desk / "colours.onnx", "quantize.images": np.int64(24), "name": "2026", "device": None}
    with pytest.raises(edgecnn.EdgeError, match="`device` is None"):
        edgecnn.plan(str(desk / "own.yaml"), set=values, cache=str(tmp_path / "store"))
    values["device"] = "cpu-x86"
    decisions, _ = edgecnn.plan(str(desk / "own.yaml"), set=values, cache=str(tmp_path / "store"))
    assert not any(decision.kept for decision in decisions)
    built = edgecnn.build(desk / "own.yaml", set=values, until="data", cache=str(tmp_path / "store"),
                          out=str(tmp_path / "runs"))  # fmt: skip
    assert built.made == ("data",)
    with pytest.raises(edgecnn.EdgeError, match="cannot read"):
        edgecnn.read_report(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"set": "quantize.images=24"}, "`set` is one text"),
        ({"hosts": "me@127.0.0.1"}, "`hosts` is one text"),
        ({"set": {"compile_for": {"rtx-4060"}}}, "is a set"),
    ],
)
def test_an_argument_of_another_kind_is_told(desk: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(edgecnn.EdgeError, match=words):
        edgecnn.plan(desk / "own.yaml", **arguments)


def test_a_wrong_number_of_images_is_not_called_a_range_method(desk: Path, tmp_path: Path) -> None:
    with pytest.raises(edgecnn.EdgeError, match="`images` is -1"):
        quantize(desk / "colours.onnx", data=desk / "images", images=-1, input="range=1", out=tmp_path / "out")


def test_an_import_costs_next_to_nothing() -> None:
    def seconds(code: str) -> float:
        found = []
        for _ in range(5):
            before = os.times()
            subprocess.run([sys.executable, "-c", code], check=True)
            after = os.times()  # of the processor: on a busy machine a clock tells how busy it is
            found.append(after.children_user + after.children_system - before.children_user - before.children_system)
        return min(found)

    loaded = "import sys, edgecnn; print(sorted(one for one in sys.modules if one.startswith(('edgecnn', 'numpy'))))"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['edgecnn']"
    assert seconds("import edgecnn") - seconds("pass") < 0.05


def test_builds_of_several_threads_do_not_meet(desk: Path, tmp_path: Path) -> None:
    def run(number: int) -> str:
        return edgecnn.build(desk / "own.yaml", cache=tmp_path / "store", out=tmp_path / f"runs{number}").report.verdict

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == ["pass", "pass"]
    assert not [path for path in tmp_path.rglob(".*") if path.name.split(".")[-1].isdecimal()]
