"""Metrics: each a function to per-image outcomes, whose mean is its value. One function and one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]  # (N, C)
Labels = NDArray[np.int64]  # (N,)
Right = NDArray[np.float32]  # (N,): 1.0 where the image counts as right, else 0.0


def top1(logits: Logits, labels: Labels) -> Right:
    """1.0 where the label has the largest logit, else 0.0."""
    return _within(logits, labels, 1)


def top5(logits: Logits, labels: Labels) -> Right:
    """1.0 where the label is among the five largest logits, else 0.0."""
    return _within(logits, labels, 5)


def _within(logits: Logits, labels: Labels, k: int) -> Right:
    """Equal logits rank by class number, as argmax does. NaN ranks nowhere: such an image is wrong."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    classes = np.arange(logits.shape[1])
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    right = (ahead.sum(axis=1) < k) & np.isfinite(logits).all(axis=1)
    outcomes: Right = right.astype(np.float32)
    return outcomes


METRICS: Mapping[str, Callable[[Logits, Labels], Right]] = {"top1": top1, "top5": top5}
ANSWERS: Mapping[str, int] = {"top1": 1, "top5": 5}  # by metric: classes that an image may be given
