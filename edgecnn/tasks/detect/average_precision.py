"""Mean average precision as COCO defines it, from matches kept per image, so that images can be weighted.

COCO's rules (cocodataset.org, "Detection evaluation"; Lin et al. 2014): IoU 0.50 to 0.95 in steps of 0.05, precision
at 101 recalls, at most 100 detections of a class on an image, crowd boxes ignored. The bootstrap resamples images: a
resample is a weight per image, and `Matches.mean_ap` accumulates the same matches under these weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecnn.measure.stats import Bounds
from edgecnn.tasks.detect.boxes import Boxes
from edgecnn.tasks.detect.detect import Detections

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # detections of one class on one image
AVERAGED = {"map50_95": slice(None), "map50": slice(1)}  # by metric: the thresholds whose precisions it averages
_CHUNK = 64  # resamples counted at a time: bounds memory
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClassMatches:
    """One class, its D detections of all images in falling score.

    Attributes:
        image: (D,) image number of each detection.
        right: (T, D) whether it matches a box at each IoU threshold.
        ignored: (T, D) whether it matches a crowd box, and counts neither way.
        truths: (N,) boxes of the class on each image, crowds left out.
    """

    image: NDArray[np.int64]
    right: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    truths: NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """Matches of every class over N images."""

    classes: tuple[ClassMatches, ...]
    images: int

    def ap(self, weights: Floats) -> Floats:
        """Average precision (R, C, T) under R weightings (R, N) of the images; NaN for a class without boxes."""
        found = np.full((len(weights), len(self.classes), len(THRESHOLDS)), np.nan)
        for number, kind in enumerate(self.classes):
            for start in range(0, len(weights), _CHUNK):
                found[start : start + _CHUNK, number] = _class_ap(kind, weights[start : start + _CHUNK])
        return found

    def mean_ap(self, metric: str, weights: Floats | None = None) -> Floats:
        """mAP (R,) as AVERAGED names it, under R weightings (R, N), of the classes with boxes; unweighted when None."""
        given = np.ones((1, self.images)) if weights is None else weights
        ap = self.ap(given)[:, :, AVERAGED[metric]]
        known = ~np.isnan(ap[:, :, 0])
        total = np.where(known[..., None], ap, 0.0).mean(axis=2).sum(axis=1)
        mean: Floats = total / np.maximum(known.sum(axis=1), 1)
        return mean

    def precisions(self, iou: float) -> Floats:
        """Precision (101,) at the recalls 0, 0.01, …, 1, the mean of the classes that have boxes.

        Each class's is its envelope, the best precision at this recall or a higher one, 0 past the last it reaches: the
        curve's mean is the mean average precision at this overlap, one of THRESHOLDS.
        """
        number = int(np.flatnonzero(np.isclose(THRESHOLDS, iou))[0])
        curves = [_class_curve(kind, number) for kind in self.classes if kind.truths.any()]
        mean: Floats = np.mean(curves, axis=0) if curves else np.zeros(len(RECALLS))
        return mean


def map_bounds(matches: Matches, metric: str, *, resamples: int = 1000, seed: int = 0) -> Bounds:
    """A detector's metric with one-sided 95 % bounds by a bootstrap over images, fractions of 1."""
    found = matches.mean_ap(metric, _resampled(matches.images, resamples, seed))
    lower, upper = np.quantile(found, (0.05, 0.95))
    return Bounds(float(matches.mean_ap(metric)[0]), float(lower), float(upper))


def _resampled(count: int, resamples: int, seed: int) -> Floats:
    """Weights (resamples, images): how often each image is drawn."""
    # RandomState, not default_rng: numpy promises (NEP 19) that its stream never changes between versions.
    drawn = np.random.RandomState(seed).multinomial(count, np.full(count, 1 / count), resamples)
    weights: Floats = drawn.astype(np.float64)
    return weights


@dataclass(frozen=True)
class MapDrop:
    """mAP of one detector minus another's on the same images, a fraction of 1; one-sided 95 % bounds.

    `spread` is the resamples' standard deviation.
    """

    point: float
    lower: float
    upper: float
    spread: float


def map_drop(first: Matches, second: Matches, metric: str, *, resamples: int = 1000, seed: int = 0) -> MapDrop:
    """Paired bootstrap over images (Efron and Tibshirani 1993, percentile bounds): both are counted on each resample.

    Args:
        metric: a name in AVERAGED.

    Raises:
        ValueError: they are not of the same number of images.
    """
    if first.images != second.images:
        raise ValueError(f"matches of {first.images} and {second.images} images")
    weights = _resampled(first.images, resamples, seed)
    drops = first.mean_ap(metric, weights) - second.mean_ap(metric, weights)
    lower, upper = np.quantile(drops, (0.05, 0.95))
    point = float(first.mean_ap(metric)[0] - second.mean_ap(metric)[0])
    return MapDrop(point, float(lower), float(upper), float(drops.std()))


def match(found: Detections, truth: Boxes, classes: int) -> Matches:
    """Match detections with labelled boxes, each image and class by itself, best score first.

    Args:
        found, truth: of the same N images, in the same order; boxes in the same pixels.
        classes: how many there are.

    Raises:
        ValueError: they are not of the same number of images.
    """
    if len(found) != len(truth):
        raise ValueError(f"detections of {len(found)} images, boxes of {len(truth)}")
    parts: list[list[tuple[int, NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]]]
    parts = [[] for _ in range(classes)]
    truths = np.zeros((classes, len(truth)), np.int64)
    for image in range(len(truth)):
        boxes, labels, crowd = truth.of(image)
        guesses, scores, kinds = found.of(image)
        np.add.at(truths[:, image], labels[~crowd], 1)
        for kind in np.unique(kinds).tolist():
            rows = np.flatnonzero(kinds == kind)
            rows = rows[np.argsort(-scores[rows], kind="stable")][:MOST]
            mine = np.flatnonzero(labels == kind)
            mine = mine[np.argsort(crowd[mine], kind="stable")]  # crowds last
            right, ignored = _greedy(guesses[rows], boxes[mine], crowd[mine])
            parts[kind].append((image, scores[rows], right, ignored))
    return Matches(
        tuple(_joined(part, counts) for part, counts in zip(parts, truths, strict=True)), len(truth)
    )  # fmt: skip


def overlap(guesses: NDArray[np.float32], boxes: NDArray[np.float32], crowd: NDArray[np.bool_]) -> Floats:
    """IoU (D, G) of boxes x1 y1 x2 y2; with a crowd box the share of the guess that lies inside it."""
    a, b = guesses[:, None].astype(np.float64), boxes[None].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inside = np.prod(np.maximum(sides, 0.0), axis=2)
    area_a, area_b = (np.prod(box[..., 2:] - box[..., :2], axis=2) for box in (a, b))
    union = np.where(crowd[None], area_a, area_a + area_b - inside)
    share: Floats = np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
    return share


def _greedy(
    guesses: NDArray[np.float32], boxes: NDArray[np.float32], crowd: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(right, ignored), each (T, D): every guess takes the free box it overlaps most, else any crowd box."""
    right = np.zeros((len(THRESHOLDS), len(guesses)), bool)
    ignored = np.zeros_like(right)
    if not len(boxes):
        return right, ignored
    ious = overlap(guesses, boxes, crowd)
    real = int((~crowd).sum())
    enough = np.minimum(THRESHOLDS, 1 - 1e-10)
    taken = np.zeros((len(THRESHOLDS), real), bool)
    for number, row in enumerate(ious):
        if real:
            free = np.where(taken, -1.0, row[:real])
            best = real - 1 - np.argmax(free[:, ::-1], axis=1)  # of equal overlaps the last, as pycocotools
            hit = free[np.arange(len(enough)), best] >= enough
            right[:, number] = hit
            taken[np.flatnonzero(hit), best[hit]] = True
        if real < len(row):
            ignored[:, number] = ~right[:, number] & (row[real:].max() >= enough)
    return right, ignored


def _joined(
    parts: list[tuple[int, NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]], truths: NDArray[np.int64]
) -> ClassMatches:
    none = np.zeros((len(THRESHOLDS), 0), bool)
    image = np.concatenate([np.zeros(0, np.int64), *(np.full(len(s), i) for i, s, _, _ in parts)])
    scores = np.concatenate([np.zeros(0, np.float32), *(s for _, s, _, _ in parts)])
    right = np.concatenate([none, *(r for _, _, r, _ in parts)], axis=1)
    ignored = np.concatenate([none, *(g for _, _, _, g in parts)], axis=1)
    order = np.argsort(-scores, kind="stable")
    return ClassMatches(image[order], right[:, order], ignored[:, order], truths)


def _class_ap(kind: ClassMatches, weights: Floats) -> Floats:
    """(R, T): area under the precision envelope at the 101 recalls, images weighted."""
    positives = weights @ kind.truths
    result = np.zeros((len(weights), len(THRESHOLDS)))
    result[positives == 0] = np.nan
    each = weights[:, kind.image]
    plain = not kind.ignored.any()
    counted = np.cumsum(each, axis=1) if plain else each
    for number in range(len(THRESHOLDS)):
        # Precision peaks at right detections: only there it must be known.
        hits = np.flatnonzero(kind.right[number])
        if not len(hits):
            continue
        true = np.cumsum(each[:, hits], axis=1)
        seen = (counted if plain else np.cumsum(each * ~kind.ignored[number], axis=1))[:, hits]
        precision = np.divide(true, seen, out=np.zeros_like(true), where=seen > 0)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = np.divide(true, positives[:, None], out=np.zeros_like(true), where=positives[:, None] > 0)
        reached = np.searchsorted(RECALLS, recall, side="right")
        steps = np.diff(reached, prepend=0, axis=1)
        result[:, number] += (envelope * steps).sum(axis=1) / len(RECALLS)
    return result


def _class_curve(kind: ClassMatches, number: int) -> Floats:
    """(101,): the precision envelope of one class at the recalls, at the `number`th overlap."""
    right = np.cumsum(kind.right[number])
    seen = np.cumsum(~kind.ignored[number])
    precision = np.divide(right, seen, out=np.zeros(len(seen)), where=seen > 0)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(right / kind.truths.sum(), RECALLS, side="left")
    return np.append(envelope, 0.0)[reached]
