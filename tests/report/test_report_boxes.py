"""A detector's report: the images that changed most, precision over recall, where the time of an image goes."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evidence_folders import CPU, HERE, NO_BOARD, evidence
from PIL import Image
from scoring import DETECT, write_detections

from edgecnn.backends.cpu import read_cpu
from edgecnn.data.index import Index, write_index
from edgecnn.recipe.recipe import Recipe
from edgecnn.report import as_json, parse_report, write_report
from edgecnn.report.pictures import SIDE, pictures
from edgecnn.tasks.detect.boxes import Boxes
from edgecnn.tasks.detect.changes import MOST_IMAGES, changed_images
from edgecnn.tasks.detect.detect import Detections
from edgecnn.verdict.accuracy_checks import drop_check
from edgecnn.verdict.evidence import Evidence, collect_outcomes, outcomes_bytes
from edgecnn.verdict.gate import judge

CLASSES = ("cell", "<blob>")
Found = list[tuple[list[float], float, int]]  # box, score, class
HERE_TOO = HERE.model_copy(update={"hardware": read_cpu().name})


def detections(*images: Found) -> Detections:
    return Detections.joined(
        [
            (
                np.asarray([box for box, _, _ in rows], np.float32).reshape(-1, 4),
                np.asarray([score for _, score, _ in rows], np.float32),
                np.asarray([kind for _, _, kind in rows], np.int64),
            )
            for rows in images
        ]
    )


def truth_of(count: int) -> Boxes:
    """A labelled box on each image of 40 x 60 pixels."""
    boxes = np.tile(np.asarray([[10, 10, 30, 30]], np.float32), (count, 1))
    sizes = np.full((count, 2), (40, 60), np.int32)
    return Boxes(np.arange(count + 1), boxes, np.zeros(count, np.int64), np.zeros(count, bool), sizes)


BOX, FAR = [10.0, 10.0, 30.0, 30.0], [32.0, 10.0, 52.0, 30.0]


def changes(first: Found, second: Found) -> tuple[float, list[tuple[str, bool]]]:
    """The change of one image, and (model, whether it alone) of every box drawn."""
    found = changed_images(detections(first), detections(second), truth_of(1), CLASSES, ("a.png",))
    return (found[0].change, [(box.by, box.only) for box in found[0].boxes]) if found else (0.0, [])


def test_what_changed_is_counted() -> None:
    sure: Found = [(BOX, 0.9, 0)]
    both = [("float", False), ("int8", False)]
    assert changes(sure, sure) == (0.0, [])
    assert changes(sure, []) == (0.81, [("float", True)])
    assert changes([], sure) == (0.81, [("int8", True)])
    assert changes(sure, [(BOX, 0.6, 0)]) == (0.09, both)
    assert changes(sure, [([10, 10, 30, 26], 0.9, 0)]) == (0.04, both)  # an overlap of 0.8
    # Another class, or too little overlap: two objects.
    assert changes(sure, [(BOX, 0.9, 1)])[0] == changes(sure, [(FAR, 0.9, 0)])[0] == 1.62
    # Passed by a hair: drawn as one model's own, hardly counted. Below it: nothing.
    assert changes([(BOX, 0.26, 0)], [(BOX, 0.24, 0)]) == (0.0, [("float", True)])
    assert changes([(BOX, 0.2, 0)], []) == (0.0, [])
    # The surest pair first: the second box is left over.
    near: Found = [(BOX, 0.9, 0), ([10, 12, 30, 32], 0.8, 0)]
    assert changes(near, sure) == (0.64, [("float", True), *both])


def test_the_most_changed_come_first_and_no_more_than_a_dozen() -> None:
    lost = [0.3 + 0.02 * number for number in range(20)]
    first = detections(*([(BOX, score, 0)] for score in lost), [(BOX, 0.9, 0)])
    second = detections(*([] for _ in lost), [(BOX, 0.9, 0)])
    found = changed_images(first, second, truth_of(21), CLASSES, tuple(map(str, range(21))))
    assert [one.number for one in found] == list(range(19, 19 - MOST_IMAGES, -1))
    assert found[0].name == "19"
    assert (found[0].count("float"), found[0].count("int8")) == (1, 0)


@pytest.fixture
def detector(tmp_path: Path) -> Callable[..., Evidence]:
    """Evidence of a detector on 60 images of which INT8 loses some boxes."""

    def make(host: dict[str, Any] | None = None, speed: dict[str, Any] | None = None, **more: Any) -> Evidence:
        made = evidence(tmp_path / "stages", images=60, classes=CLASSES, speed=speed, **more)
        truth, data = truth_of(60), made.data.path
        for path in data.iterdir():
            path.unlink()
        numbers = np.arange(60)
        index = Index(
            CLASSES, 3, "rgb", "letterbox", 64, tuple(f"images/{number}.jpg" for number in numbers),
            np.zeros(60, np.int64),
            {"train": numbers[:0], "select": numbers[:0], "scored": numbers, "calibrate": numbers[:0]}, "d" * 64, (),
        )  # fmt: skip
        write_index(data, index)
        pixels = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3)).astype(np.uint8)
        np.save(data / "scored-00000.npy", pixels)
        truth.write(data / "scored_boxes.npz")
        whole = detections(*([(BOX, 0.9, 0), (FAR, 0.5, 1)] for _ in numbers))
        less = detections(*([(BOX, 0.8, 0)] if number < 20 else [(FAR, 0.5, 1)] for number in numbers))
        for artifact, found in ((made.reference, whole), (made.before, whole), (made.after, less)):
            write_detections(artifact.path, found, truth, CLASSES, "map50_95", how="onnxruntime 1.32.0", host=host)
        return made

    return make


def host(**more: Any) -> dict[str, Any]:
    step = {"images": 60, "p50_ms": 2.0, "p90_ms": 3.0}
    return {"hardware": read_cpu().name, "preprocess": step, "nms": {**step, "p50_ms": 0.5, "confidence": 0.25}, **more}


def recipe(metric: str = "map50_95", **budgets: float) -> Recipe:
    return Recipe.model_validate({
        "name": "cells", "task": "detect", "data": {"format": "yolo", "root": "data.yaml"}, "device": "cpu-x86",
        "model": {"family": "ultralytics", "name": "yolov8n", "image_size": 64}, "score": {"metric": metric},
        "budgets": budgets,
    })  # fmt: skip


def test_the_page_shows_curves_changed_images_and_the_split(detector: Callable[..., Evidence], tmp_path: Path) -> None:
    made = detector(host(), {"hardware": read_cpu().name})
    report = judge(recipe(), CPU, HERE_TOO, made)
    assert parse_report(as_json(report), "here") == report
    assert report.curve is not None
    coco = json.loads((made.reference.path / "score.json").read_text())["coco"]
    assert np.mean(report.curve.float_precision) == pytest.approx(coco["map50"], abs=1e-4)
    assert len(report.changed) == MOST_IMAGES
    assert report.changed[0].name == "images/20.jpg"
    figures = {figure.name: figure for figure in report.figures}
    total, engine = figures["int8_image_ms"].value, figures["int8_p50_ms"].value
    assert total is not None
    assert engine is not None
    assert total == pytest.approx(2.0 + engine + 0.5)
    assert "confidence 0.25" in figures["nms_p50_ms"].conditions
    write_report(report, tmp_path / "run", outcomes=outcomes_bytes(collect_outcomes(made)), data=made.data.path)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<figure>") == MOST_IMAGES
    assert page.count('href="data:image/jpeg;base64,') == MOST_IMAGES
    assert "20.jpg · 1 only FP32, 0 only INT8" in page
    assert "Where the time of one image goes" in page
    assert f"2.0 + {engine:.1f} + 0.5 = {total:.1f} ms" in page
    assert "&lt;blob&gt;" in page
    assert "<blob>" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert len(page) < 2_000_000


@pytest.mark.parametrize(("metric", "shown", "state"), [("map50", "mAP50", "pass"), ("map50_95", "mAP50-95", "fail")])
def test_every_figure_and_verdict_is_of_the_recipes_metric(
    detector: Callable[..., Evidence], metric: str, shown: str, state: str
) -> None:
    """INT8's boxes lie 4 pixels off, an overlap of 0.67: nothing is lost at 0.5, most of it above."""
    made, truth = detector(host(), {"measured": False, "why": "no board"}), truth_of(60)
    for artifact, shift in ((made.reference, 0), (made.before, 0), (made.after, 4)):
        found = detections(*([([10.0 + shift, 10, 30.0 + shift, 30], 0.9, 0)] for _ in range(60)))
        write_detections(artifact.path, found, truth, CLASSES, metric)
    report = judge(recipe(metric, max_accuracy_drop=0.02), CPU, HERE, made)
    lost = 0.0 if metric == "map50" else 60.0
    check = next(check for check in report.checks if check.name == "max_accuracy_drop")
    assert check.state == state
    assert check.measured == pytest.approx(lost)
    assert check.detail.startswith(shown)
    figures = {figure.name: figure for figure in report.figures}
    for name, value in (("reference_accuracy", 100.0), ("int8_accuracy", 100.0 - lost), ("accuracy_drop", lost)):
        assert figures[name].value == pytest.approx(value)
        assert figures[name].title.startswith(shown)
    assert figures["drop_small"].value == pytest.approx(lost)
    assert report.classes[0].int8_accuracy == pytest.approx(100.0 - lost)
    kept = collect_outcomes(made)
    against = {**kept, **{key.replace("reference", "int8"): kept[key] for key in kept if key.startswith("reference")}}
    first, second = DETECT.restore(against), DETECT.restore(kept)
    regression = drop_check("max_regression", DETECT, first, second, metric, 0.02)
    assert (regression.state, regression.measured) == (state, pytest.approx(lost))


@pytest.mark.parametrize("labelled", [True, False])
def test_a_detector_that_finds_nothing_proves_nothing(detector: Callable[..., Evidence], labelled: bool) -> None:
    made, truth = detector(host(), {"measured": False, "why": "no board"}), truth_of(60)
    none = Boxes(np.zeros(61, np.int64), truth.boxes[:0], truth.classes[:0], truth.crowd[:0], truth.sizes)
    if not labelled:
        none.write(made.data.path / "scored_boxes.npz")
    nothing = detections(*([(FAR, 0.9, 0)] for _ in range(60)))
    for artifact in (made.reference, made.before, made.after):
        write_detections(artifact.path, nothing, truth if labelled else none, CLASSES, "map50")
    for budgets in ({}, {"max_accuracy_drop": 0.02}):
        report = judge(recipe("map50", **budgets), CPU, HERE, made)
        assert report.verdict == "not-enough-evidence"
        words = "mAP50 is 0.00 % of 60 labelled boxes" if labelled else "no labelled box"
        assert words in next(check for check in report.checks if check.name == "accuracy").detail
    assert words in DETECT.nothing_proved(DETECT.restore(collect_outcomes(made)), "map50")


def test_the_least_accuracy_of_a_detector_is_bounded_by_a_bootstrap(detector: Callable[..., Evidence]) -> None:
    made = detector(host(), {"measured": False, "why": "no board"})
    states = []
    for least in (0.05, 0.9):
        report = judge(recipe(min_accuracy=least), CPU, HERE, made)
        check = next(check for check in report.checks if check.name == "min_accuracy")
        assert check.lower is not None
        assert check.upper is not None
        assert check.measured is not None
        assert check.lower <= check.measured <= check.upper
        states.append(check.state)
    assert states == ["pass", "fail"]


@pytest.mark.parametrize(
    ("name", "value"), [("int8_scores", np.nan), ("int8_boxes", np.inf), ("truth_boxes", np.nan), ("int8_classes", -1)]
)
def test_a_baseline_of_detections_that_are_no_numbers_is_refused(
    detector: Callable[..., Evidence], name: str, value: float
) -> None:
    made = detector(host(), {"measured": False, "why": "no board"})
    kept = collect_outcomes(made)
    DETECT.restore(kept)
    kept[name] = np.full_like(kept[name], value)
    with pytest.raises(ValueError, match="its "):
        DETECT.restore(kept)


def test_where_the_engine_ran_elsewhere_nothing_is_added_up(detector: Callable[..., Evidence]) -> None:
    report = judge(recipe(), CPU, HERE_TOO, detector(host(), {"hardware": "a board"}))
    assert report.figure("nms_p50_ms") is not None
    assert report.figure("int8_image_ms") is None


def test_suppression_in_the_graph_is_in_the_engines_time(detector: Callable[..., Evidence]) -> None:
    report = judge(recipe(), CPU, HERE_TOO, detector(host(nms=None), {"hardware": read_cpu().name}))
    nms, total, engine = (report.figure(name) for name in ("nms_p50_ms", "int8_image_ms", "int8_p50_ms"))
    assert nms is not None
    assert nms.value is None
    assert "inside the engine" in nms.conditions
    assert total is not None
    assert engine is not None
    assert total.value == pytest.approx(2.0 + (engine.value or 0.0))


def test_without_a_device_the_host_still_says_its_part(detector: Callable[..., Evidence], tmp_path: Path) -> None:
    made = detector(host(), {"measured": False, "why": "no board"})
    report = judge(recipe(), CPU, NO_BOARD, made)
    write_report(report, tmp_path / "run", outcomes=outcomes_bytes(collect_outcomes(made)), data=made.data.path)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Letterbox p50" in page
    assert "Where the time" not in page


def test_a_picture_is_what_the_letterbox_shows(tmp_path: Path) -> None:
    boxed = np.full((1, 1000, 1000, 3), 114, np.uint8)
    boxed[0, 250:750] = 255  # an image of 500 x 1,000
    np.save(tmp_path / "scored-00000.npy", boxed)
    truth = replace(truth_of(1), sizes=np.asarray([[500, 1000]], np.int32))
    changed = changed_images(detections([(BOX, 0.9, 0)]), detections([]), truth, CLASSES, ("a",))
    address = pictures(tmp_path, changed)[0]
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
        assert picture.size == (SIDE, SIDE // 2)
        assert np.asarray(picture).min() > 250
