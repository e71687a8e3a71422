"""Metrics: each a function to per-image outcomes, and its unit. One function and one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecnn.recipe.recipe import MetricName

Logits = NDArray[np.float32]  # (N, C)
Labels = NDArray[np.int64]  # (N,)
Outcomes = NDArray[np.float32]  # (N,): the metric's value is their mean


@dataclass(frozen=True)
class Metric:
    """`outcomes(logits, labels)` gives one number per image; the metric's value is their mean, in `unit`."""

    outcomes: Callable[[Logits, Labels], Outcomes]
    unit: str


def top1(logits: Logits, labels: Labels) -> Outcomes:
    """1.0 where the label has the largest logit, else 0.0."""
    return _within(logits, labels, 1)


def top5(logits: Logits, labels: Labels) -> Outcomes:
    """1.0 where the label is among the five largest logits, else 0.0."""
    return _within(logits, labels, 5)


def _within(logits: Logits, labels: Labels, k: int) -> Outcomes:
    """Equal logits rank by class number, as argmax does. NaN ranks nowhere: such an image is wrong."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    classes = np.arange(logits.shape[1])
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    right = (ahead.sum(axis=1) < k) & np.isfinite(logits).all(axis=1)
    outcomes: Outcomes = right.astype(np.float32)
    return outcomes


METRICS: dict[MetricName, Metric] = {
    "top1": Metric(top1, "fraction of images"),
    "top5": Metric(top5, "fraction of images"),
}
