"""From a detector's raw outputs to boxes on the original image. numpy alone, so that every target computes the same.

Candidates above the confidence, one per anchor and class, the best `PRE_NMS` of them by score; greedy non-maximum
suppression within each class (Neubeck and Van Gool 2006); boxes back through the letterbox, cut at the image's edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecnn.data.letterbox import Letterbox

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
PRE_NMS = 30_000  # candidates of one image that reach suppression, as Ultralytics' `max_nms`


@dataclass(frozen=True)
class Detections:
    """What was found on N images.

    Attributes:
        offsets: int64 (N + 1,): image i has rows offsets[i] to offsets[i + 1].
        boxes: float32 (K, 4), x1 y1 x2 y2 in pixels of the original image.
        scores: float32 (K,), falling within an image.
        classes: int64 (K,).
    """

    offsets: Ints
    boxes: Floats
    scores: Floats
    classes: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, image: int) -> tuple[Floats, Floats, Ints]:
        """(boxes, scores, classes) of one image."""
        rows = slice(int(self.offsets[image]), int(self.offsets[image + 1]))
        return self.boxes[rows], self.scores[rows], self.classes[rows]

    @staticmethod
    def joined(images: list[tuple[Floats, Floats, Ints]]) -> Detections:
        """From (boxes, scores, classes) of each image."""
        counts = [len(scores) for _, scores, _ in images]
        empty = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
        boxes, scores, classes = (np.concatenate(parts) for parts in zip(empty, *images, strict=True))
        return Detections(np.cumsum([0, *counts]).astype(np.int64), boxes, scores, classes)


def detect(
    boxes: Floats, scores: Floats, box: Letterbox, *, confidence: float, iou: float, max_detections: int
) -> tuple[Floats, Floats, Ints]:
    """One image's outputs → (boxes in pixels of the original image, scores, classes), best first.

    Args:
        boxes: (A, 4), x1 y1 x2 y2 in pixels of the model's input.
        scores: (A, C), 0 to 1. An anchor may be found under several classes.
        confidence: scores must be above it.
        iou: a box is dropped when it overlaps a better one of its class by more.
        max_detections: kept per image, the best.
    """
    found, values, classes = candidates(boxes, scores, confidence)
    kept = nms(found, values, classes, iou, max_detections)
    return box.to_image(found[kept]), values[kept], classes[kept]


def candidates(boxes: Floats, scores: Floats, confidence: float) -> tuple[Floats, Floats, Ints]:
    """Boxes (K, 4), scores (K,) and classes (K,) above the confidence, best first; equal scores in anchor order."""
    flat = np.flatnonzero(scores > confidence)
    values = scores.reshape(-1)[flat]
    if len(values) > PRE_NMS:  # a full sort of all would take most of the time
        enough = values >= np.partition(values, -PRE_NMS)[-PRE_NMS]
        flat, values = flat[enough], values[enough]
    order = np.argsort(-values, kind="stable")[:PRE_NMS]
    anchors, classes = np.divmod(flat[order], scores.shape[1])
    return boxes[anchors], values[order], classes.astype(np.int64)


def nms(boxes: Floats, scores: Floats, classes: Ints, iou: float, max_detections: int | None = None) -> Ints:
    """Numbers of the boxes that greedy suppression keeps, best first; equal to torchvision's `batched_nms`.

    Args:
        boxes: (K, 4), x1 y1 x2 y2. scores, classes: (K,). Boxes of different classes never suppress each other.
        iou: overlap above which the worse of two is dropped.
        max_detections: stop after as many; greedy order makes them the best ones.
    """
    order = np.argsort(-scores, kind="stable")
    most = len(order) if max_detections is None else max_detections
    x1, y1, x2, y2 = (np.ascontiguousarray(boxes[order, side]) for side in range(4))
    areas = (x2 - x1) * (y2 - y1)
    # Within each class, in falling score: what is still alive. A kept box is the first of its class's row.
    sorted_classes = classes[order]
    by_class = np.argsort(sorted_classes, kind="stable")
    starts = np.flatnonzero(np.diff(sorted_classes[by_class], prepend=-1))
    alive = {int(sorted_classes[row[0]]): row for row in np.split(by_class, starts[1:]) if len(row)}
    dead = np.zeros(len(order), bool)
    kept: list[int] = []
    for number, kind in enumerate(sorted_classes.tolist()):
        if dead[number]:
            continue
        kept.append(number)
        if len(kept) >= most:
            break
        rest = alive[kind]
        rest = rest[1:] if rest[0] == number else rest[rest > number]
        if len(rest):
            width = np.minimum(x2[rest], x2[number]) - np.maximum(x1[rest], x1[number])
            height = np.minimum(y2[rest], y2[number]) - np.maximum(y1[rest], y1[number])
            inside = np.maximum(width, 0) * np.maximum(height, 0)
            over = inside > np.float32(iou) * (areas[number] + areas[rest] - inside)
            dead[rest[over]] = True
            rest = rest[~over]
        alive[kind] = rest
    return order[np.asarray(kept, np.int64)]
