"""Learning rate, optimizer and averaged weights. All are functions of the step, so a checkpoint needs no scheduler."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from edgecnn.recipe.recipe import TrainSpec


def learning_rate(train: TrainSpec, step: int, steps_per_epoch: int) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then cosine to zero (or constant)."""
    total, warm = train.epochs * steps_per_epoch, round(train.warmup_epochs * steps_per_epoch)
    if step < warm:
        return train.rate * (step + 1) / warm
    if train.schedule == "constant":
        return train.rate
    return train.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def make_optimizer(train: TrainSpec, net: nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD with Nesterov momentum. Biases and normalization (one-dimensional) get no weight decay."""
    weights = [parameter for parameter in net.parameters() if parameter.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    match train.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=train.rate)
        case "sgd":
            return torch.optim.SGD(groups, lr=train.rate, momentum=train.momentum, nesterov=train.momentum > 0)
        case "auto":
            raise AssertionError("a detector's alone")


class Average:
    """Exponential moving average of all weights and BatchNorm statistics.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that the random first weights are soon forgotten.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = self.net.state_dict(), net.state_dict()
        floats = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_([mine[name] for name in floats], [theirs[name] for name in floats], 1 - decay)
        for name in mine.keys() - set(floats):
            mine[name].copy_(theirs[name])
