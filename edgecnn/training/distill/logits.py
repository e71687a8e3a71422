"""Softened outputs, Hinton et al. 2015 (arXiv:1503.02531)."""

from __future__ import annotations

import torch
from torch.nn import functional


def softened_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher || student) of softened logits (N, classes), mean over images, times T²; a scalar.

    T² keeps the gradient's size when the temperature changes.
    """
    log_student = functional.log_softmax(student / temperature, 1)
    log_teacher = functional.log_softmax(teacher / temperature, 1)
    return functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2
