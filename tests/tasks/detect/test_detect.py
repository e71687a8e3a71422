"""From raw outputs to boxes: suppression, the way through the letterbox, the order of candidates."""

from __future__ import annotations

import numpy as np
import pytest

from edgecnn.data.letterbox import Letterbox
from edgecnn.data.pixels import fit_image
from edgecnn.tasks.detect.detect import Detections, candidates, detect, nms


def crowded(seed: int, count: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes that overlap in clumps, scores, classes."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 300, (max(1, count // 8), 2))[rng.integers(0, max(1, count // 8), count)]
    half = rng.uniform(5, 60, (count, 2))
    corner = centre + rng.normal(0, 6, (count, 2))
    boxes = np.concatenate([corner - half, corner + half], axis=1).astype(np.float32)
    return boxes, rng.random(count).astype(np.float32), rng.integers(0, classes, count)


def test_suppression_equals_torchvision() -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    for seed in range(1000):
        boxes, scores, classes = crowded(seed, seed % 120, (1, 3, 80)[seed % 3])
        iou = (0.3, 0.45, 0.7)[seed % 3]
        theirs = ops.batched_nms(*(torch.from_numpy(part) for part in (boxes, scores, classes)), iou).numpy()
        assert np.array_equal(nms(boxes, scores, classes, iou), theirs), seed


@pytest.mark.parametrize(("count", "classes"), [(900, 1), (1500, 3), (2000, 80), (400, 1)])
def test_many_boxes_equal_torchvision_too(count: int, classes: int) -> None:
    """Few classes of many boxes are searched box by box, many of few at once: both give the same."""
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    for seed in range(5):
        boxes, scores, kinds = crowded(seed, count, classes)
        theirs = ops.batched_nms(*(torch.from_numpy(part) for part in (boxes, scores, kinds)), 0.7).numpy()
        assert np.array_equal(nms(boxes, scores, kinds, 0.7), theirs), seed
        assert np.array_equal(nms(boxes, scores, kinds, 0.7, 50), theirs[:50]), seed


def test_a_limit_keeps_the_best() -> None:
    boxes, scores, classes = crowded(7, 500, 5)
    whole = nms(boxes, scores, classes, 0.5)
    assert np.array_equal(nms(boxes, scores, classes, 0.5, 10), whole[:10])
    assert (np.diff(scores[whole]) <= 0).all()


def test_nothing_in_nothing_out() -> None:
    assert len(nms(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), 0.5)) == 0
    found = detect(
        np.zeros((10, 4), np.float32), np.zeros((10, 3), np.float32), Letterbox(5, 5, (8, 8)), confidence=0.1, iou=0.5,
        max_detections=5,
    )  # fmt: skip
    assert [part.shape for part in found] == [(0, 4), (0,), (0,)]


def test_an_anchor_is_a_candidate_of_every_class_above_the_confidence() -> None:
    boxes = np.asarray([[0, 0, 1, 1], [2, 2, 3, 3]], np.float32)
    scores = np.asarray([[0.5, 0.9], [0.5, 0.1]], np.float32)
    found, values, classes = candidates(boxes, scores, 0.25)
    assert values.tolist() == pytest.approx([0.9, 0.5, 0.5])
    assert classes.tolist() == [1, 0, 0]
    assert found[:, 0].tolist() == [0.0, 0.0, 2.0]


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (1, 640), (333, 777), (9000, 12), (640, 640)])
@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_boxes_lie_where_the_pixels_do(shape: tuple[int, int], size: tuple[int, int]) -> None:
    box = Letterbox(*shape, size)
    image = np.full((*shape, 1), 255, np.uint8)
    rows, columns = np.nonzero(fit_image(image, size, "letterbox")[..., 0] == 255)
    whole = box.to_model(np.asarray([[0, 0, shape[1], shape[0]]], np.float32))[0]
    assert whole.tolist() == pytest.approx([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], abs=1e-3)


def test_the_way_back_is_the_inverse_and_cuts_at_the_edges() -> None:
    box = Letterbox(375, 500, (640, 640))
    boxes = np.asarray([[10, 20, 200, 300], [0, 0, 500, 375]], np.float32)
    assert np.allclose(box.to_image(box.to_model(boxes)), boxes, atol=1e-3)
    assert box.to_image(np.asarray([[-50, -50, 900, 900]], np.float32))[0].tolist() == [0, 0, 500, 375]


def test_detections_of_each_image() -> None:
    one = (np.ones((2, 4), np.float32), np.asarray([0.9, 0.8], np.float32), np.asarray([1, 0]))
    none = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    joined = Detections.joined([none, one, none])
    assert len(joined) == 3
    assert [len(joined.of(image)[1]) for image in range(3)] == [0, 2, 0]
    assert joined.classes.tolist() == [1, 0]
    assert len(Detections.joined([])) == 0
