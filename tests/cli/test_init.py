"""`edgecnn init`: what a path holds becomes a recipe that builds; wrong answers are asked again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from edgecnn.cli.app import app
from edgecnn.cli.init import ask_and_write
from edgecnn.data import read_index
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.load import load_recipe
from edgecnn.tasks.missing import missing
from edgecnn.tasks.prepare import prepare

SIDE = 40


def picture(path: Path, seed: int = 0, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 255, (SIDE, SIDE + 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def classes(root: Path, count: int = 6) -> None:
    for number, name in enumerate(("no", "yes")):  # truth values to YAML
        for image in range(count):
            picture(root / name / f"{image}.png", 10 * number + image)


def flat(root: Path) -> None:
    classes(root)


def sets(root: Path) -> None:
    for part in ("train", "val"):
        classes(root / part)


def three_sets(root: Path) -> None:
    for part in ("Train", "valid", "test"):
        classes(root / part)


def table(root: Path) -> None:
    for image in range(12):
        picture(root / f"{image}.png", image, "L")
    (root / "labels.tsv").write_text("".join(f"{image}.png\t{'ab'[image % 2]}\n" for image in range(12)))


def tables(root: Path) -> None:
    table(root)
    lines = (root / "labels.tsv").read_text().splitlines(keepends=True)
    (root / "labels.tsv").unlink()
    (root / "my_train.tsv").write_text("".join(lines[:8]))
    (root / "my_test.tsv").write_text("".join(lines[8:]))


def arrays(root: Path) -> None:
    root.mkdir()
    for part in ("train", "val"):
        images = np.random.RandomState(0).randint(0, 255, (12, SIDE, SIDE, 1)).astype(np.uint8)
        np.savez(root / f"{part}.npz", images=images, labels=np.arange(12) % 2)


def yolo(root: Path) -> None:
    for part in ("train", "val"):
        for image in range(6):
            picture(root / "images" / part / f"{image}.png", image)
            label = root / "labels" / part / f"{image}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 .5 .5 .4 .4\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [no]\n")


def coco_of(images: Path, prefix: str = "") -> str:
    for image in range(6):
        picture(images / f"{image}.png", image)
    return json.dumps({
        "images": [{"id": n, "file_name": f"{prefix}{n}.png"} for n in range(6)],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 2, 20, 20]} for n in range(6)],
    })  # fmt: skip


def coco(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    for part in ("train2017", "val2017"):
        (root / "annotations" / f"instances_{part}.json").write_text(coco_of(root / part))
        (root / "annotations" / f"captions_{part}.json").write_text('{"images": [], "annotations": []}')


def coco_beside(root: Path) -> None:
    for part in ("train", "valid"):
        content = coco_of(root / part)
        (root / part / "_annotations.coco.json").write_text(content)


def voc(root: Path) -> None:
    for image in range(9):
        picture(root / "JPEGImages" / f"{image}.png", image)
        path = root / "Annotations" / f"{image}.xml"
        path.parent.mkdir(exist_ok=True)
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        path.write_text(f"<annotation><object><name>a</name>{box}</object></annotation>")


@pytest.mark.parametrize(
    ("make", "task", "split", "color"),
    [
        (flat, "classify", "train", "rgb"), (sets, "classify", "scored", "rgb"),
        (three_sets, "classify", "select", "rgb"), (table, "classify", "train", "gray"),
        (tables, "classify", "scored", "gray"), (arrays, "classify", "scored", "gray"),
        (yolo, "detect", "scored", "rgb"), (coco, "detect", "scored", "rgb"), (coco_beside, "detect", "scored", "rgb"),
        (voc, "detect", "train", "rgb"),
    ],
)  # fmt: skip
def test_every_layout_becomes_a_recipe_whose_data_are_read(
    make: Callable[[Path], None], task: str, split: str, color: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    name = "my data: #1"
    make(tmp_path / name)
    command = ["init", "recipes/mine.yaml", "--data", name, "--device", "cpu-x86"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    recipe = load_recipe("recipes/mine.yaml")
    assert (recipe.task, recipe.data.color) == (task, color)
    (tmp_path / "out").mkdir()
    prepare(tmp_path / "out", recipe.data, 32)
    index = read_index(tmp_path / "out")
    assert all(len(index.splits[part]) for part in ("train", "select", "scored"))
    assert split == "train" or getattr(recipe.data, split) or recipe.data.format == "yolo"
    assert missing(recipe.data) == []


def test_wrong_answers_are_told_and_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    yolo(tmp_path / "y")
    sets(tmp_path / "s")
    answers = iter(["segment", "classify", "nowhere", "y", "~nobodyatall/x", "s", "gameboy", "cpu-x86"])
    asked = []

    def ask(text: str, default: str) -> str:
        asked.append(text.split()[0])
        return next(answers)

    written = ask_and_write(None, task=None, data=None, device=None, ask=ask)
    assert asked == ["task", "task", "data", "data", "data", "data", "device", "device"]
    assert written == Path("s_cpu-x86.yaml")
    assert load_recipe(str(written)).data.scored == "val"


@pytest.mark.parametrize("given", [[], ["--task", "classify"], ["--data", "digits"]])
def test_without_answers_it_is_bad_input(given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init", *given], input="")
    assert isinstance(done.exception, EdgeError)  # exit 2 of the program
    assert "no answer to" in done.exception.message
    assert "give all three" in done.exception.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("empty", "is not data that edgecnn reads"),
        ("unnamed", "no data.yaml that names the classes"),
        ("unclear", "which of `a.csv`, `b.csv` are for training"),
        ("two.npz", "which of `a`, `b` are for training"),
        ("broken", "broken label"),
        ("notes.txt", "is not data"),
    ],
)
def test_data_that_would_not_build_is_refused_at_once(
    data: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "unnamed/images", "unnamed/labels", "unclear"):
        (tmp_path / name).mkdir(parents=True)
    for name in "ab":
        (tmp_path / "unclear" / f"{name}.csv").write_text("x.png,1\n")
    np.savez(tmp_path / "two.npz", a_images=np.zeros(1), b_images=np.zeros(1))
    (tmp_path / "notes.txt").write_text("x")
    yolo(tmp_path / "broken")
    (tmp_path / "broken" / "labels" / "train" / "0.txt").write_text("what")
    with pytest.raises(EdgeError, match=words):
        ask_and_write(None, task=None, data=data, device="cpu-x86", ask=lambda *_: "")
    assert not list(tmp_path.glob("*.yaml"))
