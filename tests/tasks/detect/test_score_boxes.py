"""Scoring detectors on what real data holds: images of nothing, boxes of a pixel, huge originals, 1 to 1,000 classes.

The model is an oracle: it answers the labelled boxes, seen through the letterbox of its input, as float32. What it is
given back on the original image must be what was labelled, so any loss is ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scoring import score_detector, write_detections

from edgecnn.backends import Arrays, TensorInfo
from edgecnn.data.letterbox import Letterbox
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.io_contract import InputContract, IoContract, OutputContract
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.tasks.detect.average_precision import map_drop, match
from edgecnn.tasks.detect.boxes import Boxes
from edgecnn.tasks.detect.coco_eval import coco_figures

pytest.importorskip("faster_coco_eval")
SIZE, ANCHORS = 64, 12
SPEC = ScoreSpec(metric="map50_95", batch=4)
Labels = list[tuple[list[float], int]]  # box, class


def contract(classes: int) -> IoContract:
    return IoContract(
        task="detect",
        input=InputContract(
            name="images", layout="NHWC", dtype="uint8", range=(0.0, 255.0), size=(SIZE, SIZE), channels=3,
            color="rgb", fit="letterbox",
        ),
        normalization=None, normalization_inside=True, classes=tuple(f"class {number}" for number in range(classes)),
        outputs=(OutputContract(name="boxes", meaning="boxes"), OutputContract(name="scores", meaning="scores")),
    )  # fmt: skip


def truth_of(*images: tuple[tuple[int, int], Labels]) -> Boxes:
    rows = [row for _, labels in images for row in labels]
    return Boxes(
        np.cumsum([0, *(len(labels) for _, labels in images)]).astype(np.int64),
        np.asarray([box for box, _ in rows], np.float32).reshape(-1, 4),
        np.asarray([kind for _, kind in rows], np.int64), np.zeros(len(rows), bool),
        np.asarray([size for size, _ in images], np.int32),
    )  # fmt: skip


class Oracle:
    """A Runner that answers the labels; the first pixel of an image is its number. `wrong` moves every box away."""

    how = "an oracle"

    def __init__(self, truth: Boxes, classes: int, *, wrong: bool = False) -> None:
        self.inputs = (TensorInfo("images", "uint8", (None, SIZE, SIZE, 3)),)
        self.truth, self.classes, self.wrong = truth, classes, wrong

    def __call__(self, feeds: Mapping[str, Any]) -> Arrays:
        count = len(feeds["images"])
        boxes, scores = np.zeros((count, ANCHORS, 4), np.float32), np.zeros((count, ANCHORS, self.classes), np.float32)
        for row, image in enumerate(feeds["images"]):
            number = int(image[0, 0, 0])
            height, width = (int(side) for side in self.truth.sizes[number])
            labelled, kinds, _ = self.truth.of(number)
            moved = Letterbox(height, width, (SIZE, SIZE)).to_model(labelled)
            boxes[row, : len(kinds)] = moved * 0.3 if self.wrong else moved
            scores[row, np.arange(len(kinds)), kinds] = 0.9
        return {"boxes": boxes, "scores": scores}

    def prepared(self, feeds: Mapping[str, Any]) -> Callable[[], None]:
        return lambda: None


class Numbers:
    """Images whose first pixel is their number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, start: int, stop: int) -> np.ndarray:
        found = np.zeros((stop - start, SIZE, SIZE, 3), np.uint8)
        found[:, 0, 0, 0] = np.arange(start, stop)
        return found


PIXEL: Labels = [([17, 23, 18, 24], 0), ([0, 0, 1, 1], 0), ([79, 39, 80, 40], 0)]
FAR: Labels = [([8000, 7000, 8001, 7001], 0), ([8999, 0, 9000, 1], 0), ([0, 4000, 8500, 4001], 0)]
CASES: dict[str, tuple[int, Boxes]] = {
    "one class": (1, truth_of(((40, 80), [([8, 4, 40, 36], 0)]), ((64, 32), [([0, 0, 20, 20], 0)]))),
    "a thousand classes": (
        1000, truth_of(*(((50, 50), [([5, 5, 25, 45], 250 * number), ([30, 2, 48, 9], 999)]) for number in range(4)))
    ),
    "images without objects": (2, truth_of(((40, 80), []), ((40, 80), [([8, 4, 40, 36], 1)]), ((9, 9), []))),
    "boxes of one pixel": (1, truth_of(((40, 80), PIXEL))),
    "boxes of one pixel in an image of 9,000": (1, truth_of(((8200, 9000), FAR))),
    "an image one pixel high": (1, truth_of(((1, 500), [([100, 0, 300, 1], 0)]))),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_an_oracle_finds_is_found(case: str, tmp_path: Path) -> None:
    classes, truth = CASES[case]
    told = contract(classes)
    found = score_detector(Oracle(truth, classes), told, Numbers(len(truth)), truth, SPEC)
    order = np.argsort(found.boxes[:, 0] + 10_000 * found.classes, kind="stable")
    wanted = np.argsort(truth.boxes[:, 0] + 10_000 * truth.classes, kind="stable")
    assert found.boxes[order] == pytest.approx(truth.boxes[wanted], abs=2e-3)
    figures = coco_figures(found, truth, told.classes, "map50_95")
    assert figures.map50_95 == pytest.approx(1.0)
    assert match(found, truth, classes).mean_ap("map50_95")[0] == pytest.approx(1.0)
    present = {told.classes[kind] for kind in truth.classes}
    assert {name for name, value in figures.by_class.items() if value is not None} == present
    write_detections(tmp_path, found, truth, told.classes, "map50_95")
    assert json.loads((tmp_path / "score.json").read_text())["value"] == pytest.approx(1.0)


@pytest.mark.parametrize("case", CASES)
def test_what_is_lost_counts(case: str) -> None:
    classes, truth = CASES[case]
    told = contract(classes)
    right, wrong = (
        score_detector(Oracle(truth, classes, wrong=given), told, Numbers(len(truth)), truth, SPEC)
        for given in (False, True)
    )
    drop = map_drop(match(right, truth, classes), match(wrong, truth, classes), "map50_95", resamples=50)
    assert drop.point > 0.2
    assert drop.point == pytest.approx(1 - coco_figures(wrong, truth, told.classes, "map50_95").map50_95, abs=1e-9)


def test_a_set_without_any_object_has_no_precision_and_no_drop() -> None:
    truth = truth_of(((40, 80), []), ((30, 30), []))
    found = score_detector(Oracle(truth, 2), contract(2), Numbers(2), truth, SPEC)
    figures = coco_figures(found, truth, ("a", "b"), "map50_95")
    assert (figures.map50_95, figures.by_class, len(found.scores)) == (0.0, {"a": None, "b": None}, 0)
    matches = match(found, truth, 2)
    assert map_drop(matches, matches, "map50_95", resamples=10).point == 0.0
    assert not matches.precisions(0.5).any()


def test_images_and_boxes_must_be_as_many() -> None:
    truth = truth_of(((40, 80), []))
    with pytest.raises(EdgeError, match="2 images and 1 labels"):
        score_detector(Oracle(truth, 2), contract(2), Numbers(2), truth, SPEC)
