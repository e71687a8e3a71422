"""mAP against hand-computed cases, against faster-coco-eval, and under weights."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from scoring import DETECT

from edgecnn.process.errors import EdgeError
from edgecnn.tasks.detect.average_precision import THRESHOLDS, match
from edgecnn.tasks.detect.boxes import Boxes, read_boxes
from edgecnn.tasks.detect.detect import Detections
from edgecnn.tasks.detect.outcomes import Detected
from edgecnn.verdict.accuracy_checks import drop_check

World = tuple[Boxes, Detections]


def labelled(images: list[list[tuple[list[float], int, bool]]]) -> Boxes:
    """Boxes from (box, class, crowd) of each image."""
    flat = [item for image in images for item in image]
    return Boxes(
        np.cumsum([0, *(len(image) for image in images)]).astype(np.int64),
        np.asarray([box for box, _, _ in flat], np.float32).reshape(-1, 4),
        np.asarray([kind for _, kind, _ in flat], np.int64),
        np.asarray([crowd for _, _, crowd in flat], bool),
        np.full((len(images), 2), 640, np.int32),
    )


def world(seed: int, count: int, classes: int, *, crowd: bool) -> World:
    """Random labelled images and a detector that finds some of it."""
    rng = np.random.default_rng(seed)
    images, found = [], []
    for _ in range(count):
        corner, side = rng.uniform(0, 400, (int(rng.poisson(5)), 2)), 0
        truth = []
        guesses: list[tuple[list[float], float, int]] = []
        for point in corner:
            side = rng.uniform(3, 120, 2)
            box = [*point, *(point + side)]
            kind = int(rng.integers(classes))
            truth.append((box, kind, bool(crowd and rng.random() < 0.2)))
            for _ in range(int(rng.integers(0, 4))):
                moved = np.asarray(box) + rng.normal(0, 5, 4)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                guesses.append((moved.tolist(), float(rng.random()), kind if rng.random() < 0.9 else 0))
        guesses.sort(key=lambda guess: -guess[1])
        images.append(truth)
        found.append((
            np.asarray([g[0] for g in guesses], np.float32).reshape(-1, 4),
            np.asarray([g[1] for g in guesses], np.float32),
            np.asarray([g[2] for g in guesses], np.int64),
        ))  # fmt: skip
    return labelled(images), Detections.joined(found)


def by_coco(truth: Boxes, found: Detections, classes: int) -> np.ndarray:
    """AP (C, T) by faster-coco-eval; NaN where a class has no boxes."""
    library = pytest.importorskip("faster_coco_eval")

    def wide(box: np.ndarray) -> list[float]:
        x1, y1, x2, y2 = (float(side) for side in box)
        return [x1, y1, x2 - x1, y2 - y1]

    annotations, answers = [], []
    for image in range(len(truth)):
        for box, kind, crowd in zip(*truth.of(image), strict=True):
            sides = wide(box)
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": int(kind), "bbox": sides,
                "area": sides[2] * sides[3], "iscrowd": int(crowd),
            })  # fmt: skip
        for box, score, kind in zip(*found.of(image), strict=True):
            answers.append({"image_id": image, "category_id": int(kind), "bbox": wide(box), "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        reference = library.COCO({
            "images": [{"id": image, "height": 640, "width": 640} for image in range(len(truth))],
            "categories": [{"id": kind, "name": str(kind)} for kind in range(classes)], "annotations": annotations,
        })  # fmt: skip
        judged = library.COCOeval_faster(reference, reference.loadRes(answers), "bbox")
        judged.evaluate()
        judged.accumulate()
    precision = judged.eval["precision"][:, :, :, 0, -1]  # (thresholds, recalls, classes)
    return np.where(precision[0, 0] < 0, np.nan, precision.mean(axis=1)).T


@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_equals_faster_coco_eval(seed: int, crowd: bool) -> None:
    truth, found = world(seed, 60, 7, crowd=crowd)
    ours = match(found, truth, 7).ap(np.ones((1, 60)))[0]
    assert np.allclose(ours, by_coco(truth, found, 7), atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize("iou", [0.5, 0.75])
def test_the_mean_of_the_curve_is_the_mean_average_precision(iou: float, crowd: bool) -> None:
    truth, found = world(3, 60, 7, crowd=crowd)
    matches = match(found, truth, 8)  # of the last class there are no boxes
    curve = matches.precisions(iou)
    at = int(np.flatnonzero(np.isclose(THRESHOLDS, iou))[0])
    assert curve.shape == (101,)
    assert (np.diff(curve) <= 1e-12).all()
    assert curve.mean() == pytest.approx(np.nanmean(matches.ap(np.ones((1, 60)))[0, :, at]), abs=1e-12)


def test_a_curve_of_hand_computed_precisions() -> None:
    truth = labelled([[([0, 0, 10, 10], 0, False), ([20, 0, 30, 10], 0, False)]])
    boxes = np.asarray([[0, 0, 10, 10], [50, 50, 60, 60], [20, 0, 30, 10]], np.float32)
    found = Detections.joined([(boxes, np.asarray([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int64))])
    curve = match(found, truth, 1).precisions(0.5)
    assert curve[:51].tolist() == [1.0] * 51  # up to recall 0.5 the first box alone
    assert curve[51:].tolist() == pytest.approx([2 / 3] * 50)
    nothing = Detections.joined([(boxes[:0], np.zeros(0, np.float32), np.zeros(0, np.int64))])
    assert not match(nothing, truth, 1).precisions(0.5).any()


def test_one_box_found_at_an_overlap_of_0_8() -> None:
    truth = labelled([[([0, 0, 10, 10], 0, False)]])
    found = Detections.joined([
        (np.asarray([[0, 0, 10, 8]], np.float32), np.asarray([0.9], np.float32), np.asarray([0]))
    ])  # fmt: skip
    ap = match(found, truth, 2).ap(np.ones((1, 1)))[0]
    assert ap[0].tolist() == [float(threshold <= 0.8) for threshold in THRESHOLDS]
    assert np.isnan(ap[1]).all()


def test_a_second_guess_at_a_found_box_is_wrong_and_a_guess_in_a_crowd_is_nothing() -> None:
    box = [0, 0, 10, 10]
    guess = np.asarray([box, box], np.float32)
    scores, kinds = np.asarray([0.9, 0.8], np.float32), np.asarray([0, 0])
    found = Detections.joined([(guess, scores, kinds), (guess[:1], scores[:1], kinds[:1])])
    plain = match(found, labelled([[(box, 0, False)], []]), 1).classes[0]
    assert plain.right[0].tolist() == [True, False, False]  # the 0.9 of the empty image comes second
    assert not plain.ignored.any()
    crowd = match(found, labelled([[(box, 0, True)], [(box, 0, False)]]), 1).classes[0]
    assert crowd.ignored[0].tolist() == [True, False, True]


def test_a_weight_is_a_number_of_copies() -> None:
    truth, found = world(5, 30, 4, crowd=True)
    copies = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30))
    order = np.repeat(np.arange(30), copies)
    copied = Detections.joined([found.of(int(image)) for image in order])
    weighted = match(found, truth, 4).mean_ap("map50_95", copies[None].astype(float))[0]
    assert weighted == pytest.approx(match(copied, truth.take(order), 4).mean_ap("map50_95")[0], abs=1e-12)


def test_a_verdict_on_map_needs_images_and_bounds_below_the_limit() -> None:
    truth, found = world(3, 80, 3, crowd=False)
    whole = Detected.of(found, truth)
    worse = Detections(found.offsets, found.boxes + 6, found.scores, found.classes)
    same, lost = (
        drop_check("drop", DETECT, whole, other, "map50_95", 0.03) for other in (whole, Detected.of(worse, truth))
    )
    assert (same.state, same.measured, same.lower, same.upper) == ("pass", 0.0, 0.0, 0.0)
    assert lost.state == "fail"
    assert lost.lower is not None
    assert lost.lower > 3.0
    few = np.arange(20)
    part = Detected.of(Detections.joined([found.of(int(i)) for i in few]), truth.take(few))
    undecided = drop_check("drop", DETECT, part, part, "map50_95", 0.03)
    assert undecided.state == "not-enough-evidence"
    assert "20 images decide nothing, at least 50 are needed" in undecided.detail


def test_other_images_are_refused() -> None:
    truth, found = world(5, 3, 2, crowd=False)
    with pytest.raises(ValueError, match="3 images"):
        match(found, truth.take(np.asarray([0, 1])), 2)


def test_boxes_survive_a_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("boxes")
    truth, _ = world(1, 5, 2, crowd=True)
    truth.write(folder / "select_boxes.npz")
    again = read_boxes(folder / "select_boxes.npz")
    assert np.array_equal(again.boxes, truth.boxes)
    assert np.array_equal(again.crowd, truth.crowd)
    with pytest.raises(EdgeError, match="holds no boxes"):
        read_boxes(folder / "scored_boxes.npz")
