"""Distillation from a frozen teacher's logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from edgecnn.families.trained import read_trained
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import DistillSpec
from edgecnn.training.feed import Normalizer


def distillation_loss(spec: DistillSpec, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The distillation term alone, of logits float32 (N, classes); a scalar."""
    match spec.method:
        case "logits":
            return softened_divergence(student, teacher, spec.temperature)
        case "dist":
            return correlation_loss(student, teacher, spec.temperature)
        case "feature":
            raise AssertionError("a detector's distillation is its own trainer's")


def softened_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Hinton et al. 2015 (arXiv:1503.02531): KL(teacher || student) of softened outputs, mean over images, times T².

    T² keeps the gradient's size when the temperature changes.
    """
    log_student = functional.log_softmax(student / temperature, 1)
    log_teacher = functional.log_softmax(teacher / temperature, 1)
    return functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def correlation_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """DIST, Huang et al. 2022 (arXiv:2205.10536): T² times the Pearson distances between and within classes.

    Between: over the classes of each image, mean over images. Within: over the images of each class, mean over classes.
    """
    of_student, of_teacher = (torch.softmax(logits / temperature, 1) for logits in (student, teacher))
    between = pearson_distance(of_student, of_teacher)
    within = pearson_distance(of_student.T, of_teacher.T)
    return (between + within) * temperature**2


def pearson_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """1 - Pearson's correlation of the rows of (rows, columns), mean over rows; a scalar in 0..2."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (1 - functional.cosine_similarity(a, b, dim=1, eps=1e-8)).mean()


@dataclass(frozen=True)
class Teacher:
    """A frozen network with its own image size and normalization."""

    net: nn.Module
    image_size: int
    normalizer: Callable[[torch.Tensor], torch.Tensor]  # uint8 (N, C, S, S) → what the network takes

    @torch.no_grad()
    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) for augmented uint8 (N, C, S, S), resized to the teacher's own size when it differs."""
        if pixels.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            pixels = functional.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
        return self.net(self.normalizer(pixels))


def load_teacher(folder: Path, classes: tuple[str, ...], device: torch.device, channels_last: bool) -> Teacher:
    """The teacher of a finished train stage, of any family.

    Raises:
        EdgeError: it was trained for other classes.
    """
    trained = read_trained(folder)
    if trained.card.classes != classes:
        raise EdgeError(
            f"the teacher's classes are not the student's: it knows {len(trained.card.classes)}, "
            f"the data has {len(classes)}, or their names or order differ",
            "train the teacher on the same data",
        )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = trained.net.requires_grad_(False).to(device, memory_format=layout)
    card = trained.card
    return Teacher(net, card.image_size, Normalizer(card.normalization, device, channels_last))
