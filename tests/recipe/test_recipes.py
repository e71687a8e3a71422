"""The packed recipes: planned where their data isn't here, and built on small stand-in data."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import edgecnn as run_here
from PIL import Image

pytestmark = [pytest.mark.train, pytest.mark.slow]


@pytest.fixture(autouse=True)
def no_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGECNN_DATA", raising=False)


def edgecnn(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_here(folder, *arguments, EDGECNN_CACHE=str(folder / "store"))


def picture(rng: np.random.Generator, label: int, classes: int, side: int, channels: int) -> np.ndarray:
    """Noise with a bright band whose place tells the class."""
    image = rng.integers(0, 90, (side, side, channels), dtype=np.uint8)
    band = side // classes
    image[label * band : (label + 1) * band] += 120
    return image


def arrays(path: Path, count: int, side: int) -> None:
    rng = np.random.default_rng(count)
    labels = np.arange(count) % 10
    np.savez(path, images=np.stack([picture(rng, int(label), 10, side, 3) for label in labels]), labels=labels)


def build(folder: Path, recipe: str, *sets: str, code: tuple[int, ...]) -> dict[str, Any]:
    options = [part for key in (*sets, "bench.min_seconds=0.1", "bench.max_seconds=0.2") for part in ("--set", key)]
    done = edgecnn(folder, "build", recipe, "--json", *options)
    assert done.returncode in code, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("cifar10_resnet20", ["cifar10-jpeg", "resnet20_jpeg_finetuned.pt"]),
        ("cifar10_distill", ["cifar10-jpeg"]),
        ("faces_gap", ["faces"]),
        ("mobilenetv3_jetson", ["images"]),
    ],
)
def test_plan_names_what_is_missing(tmp_path: Path, recipe: str, words: list[str]) -> None:
    done = edgecnn(tmp_path, "plan", recipe)
    assert done.returncode == 3, done.stderr
    for word in words:
        assert word in done.stdout
    assert "fix:" in done.stdout
    assert "will run" in done.stdout
    assert edgecnn(tmp_path, "build", recipe).returncode == 2


def test_faces_gap_on_a_small_label_table(tmp_path: Path) -> None:
    faces = tmp_path / "faces"
    faces.mkdir()
    rng = np.random.default_rng(0)
    with (faces / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label"])
        for number in range(160):
            label = number % 4
            image = picture(rng, label, 4, 40, 1)[..., 0]
            Image.fromarray(image).save(faces / f"{number}.png")
            table.writerow([f"{number}.png", ["front", "left", "right", "none"][label]])
    sets = (f"data.root={faces}", "model.image_size=32", "train.epochs=2", "quantize.images=32", "train.batch=16")
    document = build(tmp_path, "faces_gap", *sets, code=(0, 1, 3))
    assert document["report"]["conditions"]["images"] == 40
    check = next(check for check in document["report"]["checks"] if check["name"] == "max_accuracy_drop")
    assert check["state"] == "not-enough-evidence"  # 40 images decide nothing
    plan = ["plan", "faces_gap", "--json", *(part for key in sets for part in ("--set", key))]
    unchanged = json.loads(edgecnn(tmp_path, *plan).stdout)["stages"]
    assert {stage["stage"] for stage in unchanged if not stage["kept"]} <= {"speed"}  # bench.* was set for the build
    Image.fromarray(picture(rng, 0, 4, 40, 1)[..., 0]).save(faces / "0.png")
    changed = json.loads(edgecnn(tmp_path, *plan).stdout)["stages"]
    assert not any(stage["kept"] for stage in changed)
    assert changed[0]["why"] == ["data.root changed"]


@pytest.mark.full(reason="a large network; test_export takes its family, test_build a Jetson without a board")
def test_mobilenetv3_jetson_on_a_small_image_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for label, name in enumerate(("bolt", "nut", "washer")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(picture(rng, label, 3, 48, 3)).save(folder / f"{number}.jpg")
    sets = (
        f"data.root={tmp_path / 'images'}", "model.weights=null", "model.image_size=64", "train.epochs=1",
        "train.batch=16", "train.workers=0", "quantize.images=16",
        "budgets.max_accuracy_drop=null",  # a network that has learned nothing is refused a budget
    )  # fmt: skip
    document = build(tmp_path, "mobilenetv3_jetson", *sets, code=(3,))
    run = tmp_path / document["run"]
    assert (run / "model.int8.typed.onnx").is_file()
    checks = {check["name"]: check["state"] for check in document["report"]["checks"]}
    assert checks["engine"] == "incomplete"
    assert checks["min_speedup"] == "incomplete"


def test_cifar10_distill_on_few_images(tmp_path: Path) -> None:
    folder = tmp_path / "cifar"
    folder.mkdir()
    arrays(folder / "cifar10_train_jpeg.npz", 120, 32)
    arrays(folder / "cifar10_test_jpeg.npz", 40, 32)
    sets = (
        f"data.root={folder}", "train.epochs=1", "teacher.train.epochs=1", "teacher.width=1.0", "train.batch=32",
        "teacher.train.batch=32", "quantize.images=16", "train.warmup_epochs=0",
    )  # fmt: skip
    document = build(tmp_path, "cifar10_distill", *sets, "budgets.max_accuracy_drop=null", code=(1, 3))
    assert document["report"]["device"] == "rtx-4060"
    assert "teacher" in document["made"]
    refused = edgecnn(tmp_path, "build", "cifar10_distill", *(part for key in sets for part in ("--set", key)))
    assert refused.returncode == 2
    assert "not better than a constant answer" in refused.stderr  # one epoch on 120 images
