"""What a classifier learns: its images' labels and, where there is one, a teacher's answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from edgecnn.recipe.recipe import TrainSpec
from edgecnn.training.augment import augment
from edgecnn.training.distill import METHODS, answer
from edgecnn.training.distill.teacher import Teacher
from edgecnn.training.feed import Numbers


class Classify:
    """The `Objective` of logits (N, classes).

    Args:
        train: says how images are augmented, labels smoothed, and what the teacher's part is.
        labels: int64 (N,), of every image of the index.
        feed: uint8 (N, C, S, S) → what the network takes.
    """

    metric = "top1"

    def __init__(
        self, train: TrainSpec, labels: NDArray[np.int64], feed: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device, teacher: Teacher | None = None,
    ) -> None:  # fmt: skip
        self.train, self.feed, self.teacher = train, feed, teacher
        self.labels = torch.from_numpy(labels).to(device)

    def _labels(self, numbers: Numbers) -> torch.Tensor:
        return self.labels[torch.from_numpy(numbers).to(self.labels.device)]

    def augment(self, pixels: torch.Tensor, numbers: Numbers, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Objective.augment`; targets are class numbers (N,)."""
        return augment(self.train.augment, pixels, self.train.seed, epoch, numbers), self._labels(numbers)

    def loss(self, net: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy with the labels, mixed with the distillation term."""
        spec = self.train.distill
        if spec is None or self.teacher is None:
            logits = net(self.feed(pixels)).float()
            return functional.cross_entropy(logits, targets, label_smoothing=self.train.label_smoothing)
        student = answer(net, self.feed(pixels))
        loss = functional.cross_entropy(student.logits, targets, label_smoothing=self.train.label_smoothing)
        return (1 - spec.alpha) * loss + spec.alpha * METHODS[spec.method](student, self.teacher.answer(pixels), spec)

    def evaluate(self, net: nn.Module, batches: Iterable[tuple[torch.Tensor, Numbers]]) -> list[float]:
        """[top-1 as a fraction, mean cross-entropy]."""
        count, right, loss = 0, 0, 0.0
        for pixels, numbers in batches:
            logits, targets = net(self.feed(pixels)), self._labels(numbers)
            right += int((logits.argmax(1) == targets).sum())
            loss += float(functional.cross_entropy(logits, targets, reduction="sum"))
            count += len(numbers)
        return [right / max(1, count), loss / max(1, count)]

    def describe(self, value: float) -> str:
        """For people."""
        return f"top-1 {100 * value:.2f} %"
