"""The frozen network that a student learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from edgecnn.families.trained import read_trained
from edgecnn.process.errors import EdgeError
from edgecnn.training.distill import Answer, answer
from edgecnn.training.feed import Normalizer


@dataclass(frozen=True)
class Teacher:
    """A frozen network with its own image size and normalization."""

    net: nn.Module
    image_size: int
    feed: Callable[[torch.Tensor], torch.Tensor]  # uint8 (N, C, S, S) → what the network takes

    @torch.no_grad()
    def answer(self, pixels: torch.Tensor) -> Answer:
        """Its answer to augmented uint8 (N, C, S, S), resized to the teacher's own size when it differs."""
        if pixels.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            pixels = functional.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
        return answer(self.net, self.feed(pixels))


def load_teacher(folder: Path, classes: tuple[str, ...], device: torch.device, channels_last: bool) -> Teacher:
    """The teacher of a finished train stage, of any family.

    Raises:
        EdgeError: it was trained for other classes.
    """
    trained = read_trained(folder)
    if trained.card.classes != classes:
        raise EdgeError(
            f"the teacher's classes are not the student's: it has {len(trained.card.classes)}, "
            f"the data has {len(classes)}, or their names or order differ",
            "train the teacher on the same data",
        )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = trained.net.requires_grad_(False).to(device, memory_format=layout)
    card = trained.card
    return Teacher(net, card.image_size, Normalizer(card.normalization, device, channels_last))
