"""A detector through the whole page: boxes to a verdict, kept on a rerun, comparable with a baseline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from dots import write_dots

from edgecnn.io_contract import read_contract

pytestmark = [pytest.mark.train, pytest.mark.slow]
if find_spec("ultralytics") is None:
    pytest.skip("the extra [yolo] is not installed", allow_module_level=True)

RECIPE = """
name: dots
task: detect
data: {format: yolo, root: data.yaml, train: train, calibrate: 8}
model: {family: ultralytics, name: yolov8n, image_size: 64}
train: {epochs: 1, batch: 8, augment: none, device: cpu, threads: 1}
quantize: {images: 8, ranges: minmax}
score: {metric: map50_95}
bench: {min_pairs: 4, min_seconds: 0.1, max_seconds: 0.2}
device: cpu-x86
budgets: {max_size_mb: 13}
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, 60 images with a bright square each, and a store."""
    folder = tmp_path_factory.mktemp("desk")
    write_dots(folder, 60)
    (folder / "dots.yaml").write_text(RECIPE)
    return folder


def edgecnn(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EDGECNN_CACHE": str(folder / "store"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "edgecnn", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_from_boxes_to_a_verdict(desk: Path) -> None:
    built = edgecnn(desk, "build", "dots.yaml", "--json")
    assert built.returncode == 3, built.stderr  # one epoch finds nothing yet, so nothing is proved
    report: dict[str, Any] = json.loads(built.stdout)["report"]
    checks = {check["name"]: check["state"] for check in report["checks"]}
    assert (checks["engine"], checks["accuracy"]) == ("pass", "not-enough-evidence")
    figures = {figure["name"]: figure for figure in report["figures"]}
    assert {"reference_accuracy", "int8_accuracy", "int8_accuracy_map50", "accuracy_drop"} <= figures.keys()
    assert "20 images" in figures["int8_accuracy"]["conditions"]
    assert 0 < figures["coverage_macs"]["value"] < 100
    head = [layer for layer in report["layers"] if "dfl" in layer["name"]]
    assert head
    assert not any(layer["int8"] for layer in head)
    again = json.loads(edgecnn(desk, "build", "dots.yaml", "--json").stdout)
    assert again["made"] == []
    suppressing_in_the_graph(desk, desk / again["run"])
    run = Path(again["run"])
    for name in ("model.onnx", "model.int8.onnx", "report.html", "outcomes.npz"):
        assert (desk / run / name).exists(), name
    assert edgecnn(desk, "check", str(run), "--baseline", "b.zip", "--update").returncode == 0
    checked = edgecnn(desk, "check", str(run), "--baseline", "b.zip", "--json")
    found = {check["name"]: check for check in json.loads(checked.stdout)["checks"]}
    assert found["max_regression"]["measured"] == 0.0


def suppressing_in_the_graph(folder: Path, plain: Path) -> None:
    """With `export.nms` the quantized graph is the kept one, and the same boxes come out of it."""
    inside = json.loads(edgecnn(folder, "build", "dots.yaml", "--json", "--set", "export.nms=onnx").stdout)
    assert not {"data", "train", "export", "quantize"} & set(inside["made"])
    for name in ("model.onnx", "model.int8.onnx"):
        contract = read_contract(folder / inside["run"] / name)
        assert contract is not None
        assert contract.nms is not None
    with np.load(plain / "outcomes.npz") as ours, np.load(folder / inside["run"] / "outcomes.npz") as theirs:
        assert ours.files == theirs.files
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours.files)
        assert len(ours["int8_scores"])
    board = ("--device", "jetson-orin-nano", "--set", "export.nms=tensorrt")
    built = edgecnn(folder, "build", "dots.yaml", "--json", *board)
    assert built.returncode == 3, built.stderr
    document = json.loads(built.stdout)
    (engine,) = [check for check in document["report"]["checks"] if check["name"] == "engine"]
    assert "TensorRT 10.3 rules: passed" in engine["detail"]
    if find_spec("tensorrt_rtx") is not None:
        assert "saw the graph in front of EfficientNMS_TRT" in engine["detail"]
        assert "parser: passed" in engine["detail"]
    typed = onnx.load(folder / document["run"] / "model.int8.typed.onnx")
    assert typed.graph.node[-1].op_type == "EfficientNMS_TRT"


def test_a_budget_against_a_detector_that_finds_nothing_is_refused(desk: Path) -> None:
    done = edgecnn(desk, "build", "dots.yaml", "--set", "budgets.max_accuracy_drop=0.01", "--until", "quantize")
    assert done.returncode == 2
    assert "proves nothing" in done.stderr
