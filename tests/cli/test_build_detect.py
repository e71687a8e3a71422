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
from PIL import Image

from edgecnn.recipe.io_contract import read_contract

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


# In every process of a build: whatever goes beyond this machine is refused and noted, as are imports of what reports
# trainings to services.
WATCH = """
import os, sys
SERVICES = {"clearml", "comet_ml", "mlflow", "dvclive", "ray", "wandb", "neptune", "tensorboard", "sentry_sdk"}
def watch(event, arguments):
    told = ""
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        told = "" if str(arguments[1][0]) in ("127.0.0.1", "::1", "localhost") else f"{event} {arguments[1]}"
    elif event == "socket.getaddrinfo" and arguments[0] not in (None, "127.0.0.1", "::1", "localhost"):
        told = f"{event} {arguments[0]}"
    elif event == "import" and arguments[0].split(".")[0] in SERVICES:
        told = f"import {arguments[0]}"
    elif event == "open" and os.path.dirname(str(arguments[0])) == os.environ["WATCH_DESK"]:
        told = "" if str(arguments[0]).endswith(("dots.yaml", "data.yaml")) else f"open {arguments[0]}"
    if told:
        with open(os.environ["WATCH_LOG"], "a") as log:
            log.write(told + "\\n")
        raise OSError(told)
sys.addaudithook(watch)
"""
# Files of the user's that have the names of what Ultralytics' package looks for.
PLANTED = (
    "yolov8.yaml",
    "yolov8n.yaml",
    "yolov8n.pt",
    "default.yaml",
    "settings.json",
    "Arial.ttf",
    "torch.py",
    "cv2.py",
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, 60 images with a bright square each, and a store; home and temporary folder beside it."""
    base = tmp_path_factory.mktemp("detect")
    for name in ("desk", "home", "tmp", "watch"):
        (base / name).mkdir()
    folder = base / "desk"
    write_dots(folder, 60)
    for number in range(0, 60, 4):  # formats that their trainer repairs, or does not take
        path = folder / f"images/train/{number:02d}.png"
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"))
            image.save(path.with_name(f"{number + 1:02d}.ppm"))
        with path.with_suffix(".jpg").open("ab") as file:
            file.write(b"SEFT\0\0")
        path.unlink()
        path.with_name(f"{number + 1:02d}.png").unlink()
        (folder / f"labels/train/{number + 1:02d}.txt").write_text(
            (folder / f"labels/train/{number:02d}.txt").read_text()
        )
    for name in PLANTED:
        (folder / name).write_text("activation: open('was_run', 'w')\n")
    (folder / "dots.yaml").write_text(RECIPE)
    (base / "watch" / "sitecustomize.py").write_text(WATCH)
    return folder


def edgecnn(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the command there; EDGECNN_TEST_ULTRALYTICS names a folder with another version of Ultralytics."""
    base = folder.parent
    environment = {
        **os.environ, "EDGECNN_CACHE": str(folder / "store"), "OMP_NUM_THREADS": "1", "HOME": str(base / "home"),
        "TMPDIR": str(base / "tmp"), "WATCH_LOG": str(base / "log"), "WATCH_DESK": str(folder),
        "PYTHONPATH": f"{base / 'watch'}{os.pathsep}{os.environ.get('EDGECNN_TEST_ULTRALYTICS', '')}",
    }  # fmt: skip
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "YOLO_CONFIG_DIR", "MPLCONFIGDIR"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "edgecnn", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def of_the_user(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file that a build finds."""
    found = [path for path in folder.rglob("*") if path.is_file() and not {"store", "runs"} & set(path.parts)]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


def test_from_boxes_to_a_verdict(desk: Path) -> None:
    before = of_the_user(desk)
    built = edgecnn(desk, "build", "dots.yaml", "--json")
    assert built.returncode == 3, built.stderr  # one epoch finds nothing yet, so nothing is proved
    assert of_the_user(desk) == before
    assert not (desk.parent / "log").exists(), (desk.parent / "log").read_text()
    assert {path.name for path in desk.iterdir()} == {
        *PLANTED,
        "dots.yaml",
        "data.yaml",
        "images",
        "labels",
        "store",
        "runs",
    }
    assert not list((desk.parent / "home").rglob("*"))
    assert not list((desk.parent / "tmp").rglob("*"))
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


@pytest.mark.full(reason="one more quantization; test_heads, test_suppression and test_trt_rules hold its parts")
def test_suppressing_on_a_board(desk: Path) -> None:
    folder, board = desk, ("--device", "jetson-orin-nano", "--set", "export.nms=tensorrt")
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
