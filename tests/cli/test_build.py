"""Builds through the command line, from images to a verdict: what is made, kept, published and said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import edgecnn as run_here

pytestmark = [pytest.mark.train, pytest.mark.slow]

RECIPE = """\
name: small
data: {format: digits, color: gray}
model: {family: small, name: gap-s, image_size: 8, normalize: half}
train: {epochs: 4, batch: 64, lr: 0.005, augment: shift}
quantize: {images: 64}
bench: {min_pairs: 64, min_seconds: 0.2, max_seconds: 0.5}
device: cpu-x86
budgets: {max_accuracy_drop: 0.08}
"""


class Edgecnn:
    """The command line, in a folder and a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = folder / "small.yaml"
        self.recipe.write_text(RECIPE)
        self.environment = {"EDGECNN_CACHE": str(folder / "store"), "OMP_NUM_THREADS": "1"}

    def __call__(self, *arguments: str, code: int | tuple[int, ...] = 0) -> subprocess.CompletedProcess[str]:
        done = run_here(self.folder, *arguments, **self.environment)
        codes = (code,) if isinstance(code, int) else code
        assert done.returncode in codes, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The same in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "edgecnn", *arguments], cwd=self.folder, env={**os.environ, **self.environment},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def build(self, *arguments: str, code: int | tuple[int, ...] = 0) -> dict[str, Any]:
        done = self("build", "small.yaml", "--json", *arguments, code=code)
        document: dict[str, Any] = json.loads(done.stdout)
        return document


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Edgecnn:
    edgecnn = Edgecnn(tmp_path_factory.mktemp("build"))
    edgecnn("build", "small.yaml")
    return edgecnn


def test_run_folder_holds_everything(built: Edgecnn) -> None:
    run = built.folder / "runs" / "small" / "cpu-x86" / "latest"
    assert run.is_symlink()
    assert {path.name for path in run.iterdir()} == {
        "model.onnx", "model.int8.onnx", "report.json", "report.html", "report.md", "junit.xml", "outcomes.npz",
        "recipe.lock.yaml",
    }  # fmt: skip
    report = json.loads((run / "report.json").read_text())
    assert report["schema_version"] == 1
    figures = {figure["name"]: figure["value"] for figure in report["figures"]}
    assert figures["int8_accuracy"] > 80
    assert figures["coverage_macs"] > 80
    assert report["ladder"]["state"] == "held"
    assert [rung["rung"] for rung in report["ladder"]["rungs"]] == ["ranges", "equalize", "bias"]
    assert "INT8 kernels of" in report["ladder"]["judged"]
    assert "digits" in (run / "recipe.lock.yaml").read_text()


def test_again_makes_nothing(built: Edgecnn) -> None:
    runs = sorted((built.folder / "runs" / "small" / "cpu-x86").iterdir())
    document = built.build()
    assert document["made"] == []
    assert sorted((built.folder / "runs" / "small" / "cpu-x86").iterdir()) == runs


def test_plan_says_what_and_why(built: Edgecnn) -> None:
    plan = json.loads(built("plan", "small.yaml", "--json").stdout)
    assert all(stage["kept"] for stage in plan["stages"])
    assert plan["missing"] == []
    plan = json.loads(built("plan", "small.yaml", "--json", "--set", "train.epochs=5").stdout)
    stages = {stage["stage"]: stage for stage in plan["stages"]}
    assert stages["data"]["kept"]
    assert not stages["train"]["kept"]
    assert stages["train"]["why"] == ["train.epochs 4 → 5"]
    assert stages["export"]["why"] == ["train changed"]
    assert not stages["speed"]["kept"]


def test_quantize_change_reruns_only_what_follows(built: Edgecnn) -> None:
    plan = json.loads(built("plan", "small.yaml", "--json", "--set", "quantize.ranges=minmax").stdout)
    run = [stage["stage"] for stage in plan["stages"] if not stage["kept"]]
    assert run == ["quantize", "compile-int8", "score-int8", "speed"]


def test_another_onnxruntime_reruns_what_it_decides(built: Edgecnn) -> None:
    from edgecnn.pipeline import build
    from edgecnn.recipe.load import load_device, load_recipe
    from edgecnn.store.stage import Stopped, Store, installed_version
    from edgecnn.targets.target import connect

    def another(library: str) -> str:
        return "99.0" if library == "onnxruntime" else installed_version(library)

    store = Store(built.folder / "store", recipe="small", rehearse=True, versions=another)
    with pytest.raises(Stopped):
        build(load_recipe(str(built.recipe)), connect(load_device("cpu-x86")), store)
    kept = [decision.stage for decision in store.decisions if decision.kept]
    assert kept == ["data", "train", "export"]
    why = {decision.stage: decision.reasons for decision in store.decisions}
    assert why["quantize"] == (f"onnxruntime (library) {installed_version('onnxruntime')} → 99.0",)


def test_remeasure_takes_only_the_time_again(built: Edgecnn) -> None:
    assert built.build("--remeasure")["made"] == ["speed", "verdict"]


def test_changed_bytes_are_said_and_made_again(built: Edgecnn) -> None:
    (model,) = (built.folder / "store" / "stages" / "quantize").glob("*/model.onnx")
    content = model.read_bytes()
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = built("build", "small.yaml", "--json")
    assert "stored file `model.onnx` was changed; making it again" in done.stderr
    assert json.loads(done.stdout)["made"] == ["quantize"]
    assert model.read_bytes() == content


def test_until_stops_early(built: Edgecnn) -> None:
    done = built("build", "small.yaml", "--until", "export")
    assert "stopped after `export`" in done.stdout
    assert "no stage `exprot`" in built("build", "small.yaml", "--until", "exprot", code=2).stderr


def test_report_in_every_form(built: Edgecnn) -> None:
    run = "runs/small/cpu-x86"
    assert built("report", run, "--html").stdout.startswith("<!DOCTYPE html>")
    assert "<testsuite" in built("report", run, "--junit").stdout
    assert "small" in built("report", run, "--md").stdout
    assert json.loads(built("report", run, "--json").stdout)["recipe"] == "small"
    assert "max_accuracy_drop" in built("report", run).stdout
    assert "holds no run" in built("report", "nowhere", code=2).stderr


def test_check_against_its_own_baseline(built: Edgecnn) -> None:
    built("check", "runs/small/cpu-x86", "--baseline", "small.baseline.zip", "--update")
    done = built(
        "check", "runs/small/cpu-x86", "--baseline", "small.baseline.zip", "--max-regression", "0.02", code=(0, 3)
    )
    assert "max_regression" in done.stdout
    assert "FAIL" not in done.stdout


def test_bench_times_pairs(built: Edgecnn) -> None:
    run = "runs/small/cpu-x86/latest"
    short = ["--set", "min_pairs=32", "--set", "min_seconds=0.1", "--set", "max_seconds=0.3", "--json"]
    document = json.loads(built("bench", f"{run}/model.int8.onnx", "--baseline", f"{run}/model.onnx", *short).stdout)
    assert document["model"]["p50_ms"] > 0
    assert document["speedup"]["lower"] <= document["speedup"]["pair_median"] <= document["speedup"]["upper"]
    assert "no model or engine" in built("bench", "nothing.onnx", code=2).stderr
    assert "cannot be timed here" in built("bench", f"{run}/model.onnx", "--device", "jetson-thor", code=2).stderr


def test_jetson_without_board_is_incomplete(built: Edgecnn) -> None:
    document = built.build("--device", "jetson-orin-nano", code=3)
    engine = next(check for check in document["report"]["checks"] if check["name"] == "engine")
    assert engine["state"] == "incomplete"
    assert "not built (no board)" in engine["detail"]
    run = built.folder / document["run"]
    assert (run / "model.int8.typed.onnx").is_file()
    figures = {figure["name"]: figure for figure in document["report"]["figures"]}
    for name, least in (("typed_sqnr", 10), ("float_typed_sqnr", 40)):  # both were run in FP16 arithmetic
        assert figures[name]["value"] > least
        assert "8 calibration images" in figures[name]["conditions"]
    made = document["made"]
    assert "train" not in made
    assert "quantize" in made
    built.build("--device", "jetson-orin-nano", "--strict", code=1)


def test_compile_for_a_device_file_of_ones_own(built: Edgecnn) -> None:
    device = built.folder / "board.yaml"
    text = built("devices", "show", "jetson-orin-nano").stdout
    device.write_text(text.replace("name: jetson-orin-nano", "name: my-board"))
    document = built.build("--set", "compile_for=[./board.yaml]", code=(0, 3))
    assert [found["device"] for found in document["report"]["compiled_for"]] == ["my-board"]
    assert "compile-int8@my-board" in document["made"]
    device.unlink()


def test_two_builds_at_once_both_finish(built: Edgecnn, tmp_path: Path) -> None:
    edgecnn = Edgecnn(tmp_path)
    shutil.copytree(built.folder / "store", tmp_path / "store")
    both = [edgecnn.start("build", "small.yaml", "--json", "--set", "quantize.images=48") for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert any("waiting for it" in errors for _, errors in outputs)
    made = [json.loads(text)["made"] for text, _ in outputs]
    assert not set(made[0]) & set(made[1])
    assert {"quantize", "speed", "verdict"} <= set(made[0] + made[1])


def test_scored_labels_do_not_reach_the_model(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * 15.9).astype(np.uint8)[..., None]
    folder = tmp_path / "digits"
    folder.mkdir()
    np.savez(folder / "train.npz", images=images[:1000], labels=digits.target[:1000])
    models = []
    for seed in (None, 0):
        labels = digits.target[1000:].copy()
        if seed is not None:
            np.random.default_rng(seed).shuffle(labels)
        np.savez(folder / "test.npz", images=images[1000:], labels=labels)
        (tmp_path / f"{seed}").mkdir()
        edgecnn = Edgecnn(tmp_path / f"{seed}")
        edgecnn.recipe.write_text(
            RECIPE.replace("format: digits", f"format: arrays, root: {folder}, train: train.npz, scored: test.npz")
        )
        edgecnn("build", "small.yaml", "--until", "quantize")
        stages = edgecnn.folder / "store" / "stages"
        models.append(
            [path.read_bytes() for name in ("export", "quantize") for path in stages.glob(f"{name}/*/*.onnx")]
        )
    assert models[0] == models[1]
    assert len(models[0]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "small.yaml", "--set", "device=cpu-x99"], "no device `cpu-x99`"),
        (
            ["build", "small.yaml", "--host", "nvidia@board.invalid"],
            "no address is known for board `nvidia@board.invalid`",
        ),
        (["bench", "small.yaml", "--set", "lock_clocks=true"], "whose modes edgecnn leaves alone"),
        (["build", "small.yaml", "--out", "small.yaml/runs"], "cannot write to the output folder"),
        (["build", "small.yaml", "--out", "/proc/runs"], "cannot write to the output folder"),
        (["build", "small.yaml", "--set", "model.name=gap-z"], "no model `gap-z`"),
        (["build", "small.yaml", "--set", "model.weights=./none.pt"], "none.pt"),
        (["build", "small.yaml", "--set", "quantize.keep_float=[nothing]"], "nothing"),
        (["quantize", "small.yaml", "--data", "x", "--device", "cpu-x86"], "small.yaml"),
        (["check", "none", "--baseline", "none.zip"], "`none` holds no run"),
        (["devices", "show", "jetson-orin-nan"], "no device `jetson-orin-nan`"),
    ],
)
def test_bad_input_exits_2_with_one_error(built: Edgecnn, arguments: list[str], words: str) -> None:
    before = sorted(path for path in built.folder.rglob("*") if "store" not in path.parts)
    done = built(*arguments, code=2)
    assert words in done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    assert sorted(path for path in built.folder.rglob("*") if "store" not in path.parts) == before


def test_missing_data_is_named_by_plan_and_stops_build(built: Edgecnn) -> None:
    sets = ["--set", "data.format=image-folder", "--set", "data.root=./pictures", "--set", "data.color=rgb"]
    done = built("plan", "small.yaml", *sets, code=3)
    assert "missing:" in done.stdout
    assert "pictures" in done.stdout
    assert "needs what is not here" in built("build", "small.yaml", *sets, code=2).stderr


@pytest.mark.parametrize("device", ["cpu-x86", "jetson-orin-nano"])
def test_init_writes_a_recipe_that_plans(tmp_path: Path, device: str) -> None:
    edgecnn = Edgecnn(tmp_path)
    edgecnn("init", "mine.yaml", "--task", "classify", "--data", "digits", "--device", device)
    assert "#" in (tmp_path / "mine.yaml").read_text()
    edgecnn("plan", "mine.yaml")
    assert (
        "exists"
        in edgecnn("init", "mine.yaml", "--task", "classify", "--data", "digits", "--device", device, code=2).stderr
    )
