"""Distillation of classifiers: one file a method, each `(student, teacher, spec) -> loss`, chosen by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from edgecnn.families.weights import head_of
from edgecnn.recipe.recipe import DistillSpec
from edgecnn.training.distill.dist import correlation_loss
from edgecnn.training.distill.logits import softened_divergence


@dataclass(frozen=True)
class Answer:
    """What a network says of N images.

    Attributes:
        logits: float32 (N, classes).
        features: float32 (N, …), what its last layer is given.
    """

    logits: torch.Tensor
    features: torch.Tensor


# A new method is a file, a line here and its name in `DistillName`. A detector's (`feature`) is in its own trainer.
METHODS: dict[str, Callable[[Answer, Answer, DistillSpec], torch.Tensor]] = {
    "logits": lambda student, teacher, spec: softened_divergence(student.logits, teacher.logits, spec.temperature),
    "dist": lambda student, teacher, spec: correlation_loss(student.logits, teacher.logits, spec.temperature),
}


def answer(net: nn.Module, images: torch.Tensor) -> Answer:
    """A network's logits and features for what it takes."""
    plain = net.module if isinstance(net, nn.parallel.DistributedDataParallel) else net
    seen: list[torch.Tensor] = []
    with plain.get_submodule(head_of(plain)).register_forward_pre_hook(lambda _, given: seen.append(given[0])):
        logits = net(images)
    return Answer(logits.float(), seen[-1].float())
