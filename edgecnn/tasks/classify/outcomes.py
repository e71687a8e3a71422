"""What a classifier said of images, against their labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecnn.measure import stats
from edgecnn.tasks import Drop
from edgecnn.tasks.classify.metrics import Labels, Logits


@dataclass(frozen=True)
class Classified:
    """Per image: label, predicted class, outcome of the metric 1.0 or 0.0, all (N,); logits (N, C), where kept."""

    label: Labels
    predicted: Labels
    outcome: NDArray[np.float32]
    logits: Logits | None = None

    def __len__(self) -> int:
        return len(self.label)

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,) whether the image counts as right."""
        return np.asarray(self.outcome > 0.5)

    @property
    def value(self) -> float:
        """The metric: the mean outcome."""
        return float(np.mean(self.outcome, dtype=np.float64))


def discordant(first: Classified, second: Classified) -> tuple[int, int]:
    """(b, c): images that only the first model gets right, and that only the second does."""
    return int(np.sum(first.right & ~second.right)), int(np.sum(~first.right & second.right))


def paired_drop(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Drop:
    """The drop between two models' outcomes (N,) on the same images, with one-sided 95 % Tango bounds."""
    b, c, n = int(np.sum(first & ~second)), int(np.sum(~first & second)), len(first)
    lower, upper = stats.tango_bounds(b, c, n)
    return Drop(float(first.sum() / n), float(second.sum() / n), lower, upper, n, (b + c) / n)
