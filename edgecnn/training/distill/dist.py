"""DIST: correlation with a teacher's probabilities, Huang et al. 2022 (arXiv:2205.10536)."""

from __future__ import annotations

import torch
from torch.nn import functional


def correlation_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² times the Pearson distances of softened logits (N, classes) between and within classes; a scalar.

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
