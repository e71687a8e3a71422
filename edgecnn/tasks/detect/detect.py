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
# Overlaps that are computed before any box is dropped. Above it, box by box is quicker: what is dropped costs no more.
_MOST_AT_ONCE = 300_000
_SMALL = 24  # classes of up to so many boxes are compared all together, pair by pair


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
    given, kinds = boxes[order], classes[order]
    by_class = np.argsort(kinds, kind="stable")  # within each class in falling score
    starts = np.flatnonzero(np.diff(kinds[by_class], prepend=-1))
    sizes = np.diff(starts, append=len(kinds))
    at_once = int((sizes * sizes).sum()) <= _MOST_AT_ONCE
    kept = (_at_once if at_once else _one_by_one)(given, by_class, starts, sizes, iou, most)
    return order[np.asarray(kept, np.int64)]


def _at_once(boxes: Floats, by_class: Ints, starts: Ints, sizes: Ints, iou: float, most: int) -> list[int]:
    """All overlaps within the classes first, then who is left, best first.

    Args:
        boxes: in falling score. by_class: their numbers class by class, of which one begins at each of `starts` and has
            `sizes` members.
    """
    count = len(by_class)
    small = sizes <= _SMALL
    sides = np.ascontiguousarray(boxes.T)
    areas = (sides[2] - sides[0]) * (sides[3] - sides[1])
    found = [_pairs(sides, areas, by_class, starts[small], sizes[small], iou)]
    for start, size in zip(starts[~small].tolist(), sizes[~small].tolist(), strict=True):
        members = by_class[start : start + size]
        own, area = sides[:, members], areas[members]
        better, worse = np.nonzero(_over(own[:, :, None], own[:, None], area[:, None], area, iou))
        later = worse > better
        found.append((members[better[later]], members[worse[later]]))
    better, worse = (np.concatenate(part) for part in zip(*found, strict=True))
    rows = np.argsort(better, kind="stable")
    worse = worse[rows]
    ends = np.searchsorted(better[rows], np.arange(count + 1)).tolist()
    dead, kept = np.zeros(count, bool), list[int]()
    for number in range(count):
        if dead[number]:
            continue
        kept.append(number)
        if len(kept) >= most:
            break
        if ends[number] < ends[number + 1]:
            dead[worse[ends[number] : ends[number + 1]]] = True
    return kept


def _pairs(
    sides: Floats, areas: Floats, by_class: Ints, starts: Ints, sizes: Ints, iou: float
) -> tuple[Ints, Ints]:  # fmt: skip
    """(better, worse) of boxes that overlap too much, of many small classes in one go: pair by pair."""
    count = int(sizes.sum())
    own = np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(count)  # places in by_class
    after = np.repeat(starts + sizes, sizes) - own - 1  # how many of its class come after it
    first = np.repeat(own, after)
    second = np.arange(len(first)) - np.repeat(np.cumsum(after) - after, after) + first + 1
    better, worse = by_class[first], by_class[second]
    over = _over(sides[:, better], sides[:, worse], areas[better], areas[worse], iou)
    return better[over], worse[over]


def _over(first: Floats, second: Floats, area: Floats, other: Floats, iou: float) -> NDArray[np.bool_]:
    """Whether boxes overlap by more than `iou`: x1 y1 x2 y2 (4, …) of either, and their areas; shapes are broadcast."""
    width = np.minimum(first[2], second[2]) - np.maximum(first[0], second[0])
    height = np.minimum(first[3], second[3]) - np.maximum(first[1], second[1])
    inside = np.maximum(width, 0) * np.maximum(height, 0)
    over: NDArray[np.bool_] = inside > np.float32(iou) * (area + other - inside)
    return over


def _one_by_one(boxes: Floats, by_class: Ints, starts: Ints, sizes: Ints, iou: float, most: int) -> list[int]:
    """Each box that is kept against what is left of its class, until there are enough. Arguments as `_at_once`."""
    x1, y1, x2, y2 = (np.ascontiguousarray(boxes[:, side]) for side in range(4))
    areas = (x2 - x1) * (y2 - y1)
    # What is still alive of each class. A kept box is the first of its class's row.
    alive = dict(enumerate(np.split(by_class, starts[1:])))
    group = np.empty(len(by_class), np.int64)
    group[by_class] = np.repeat(np.arange(len(starts)), sizes)
    dead = np.zeros(len(by_class), bool)
    kept: list[int] = []
    for number, kind in enumerate(group.tolist()):
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
    return kept
