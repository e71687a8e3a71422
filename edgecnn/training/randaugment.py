"""The operations of RandAugment (Cubuk et al. 2019, arXiv:1909.13719), as torchvision's transforms.v2 does them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as v2

Operation = Callable[[torch.Tensor, float], torch.Tensor]

LEVELS = 4  # strengths that an operation can have; images of one operation and strength are changed together
GRAY = 128  # outside of a turned image


def _affine(pixels: torch.Tensor, *, angle: float = 0.0, shear: float = 0.0, shift: float = 0.0) -> torch.Tensor:
    size = pixels.shape[-1]
    return v2.affine(
        pixels, angle=angle, translate=[shift * size, 0], scale=1.0, shear=[shear, 0.0], fill=[GRAY],
        interpolation=InterpolationMode.BILINEAR,
    )  # fmt: skip


# Each takes uint8 (N, C, S, S) and a strength in -1..1; where the sign means nothing only its size counts.
OPERATIONS: tuple[Operation, ...] = (
    lambda x, _: x,
    lambda x, _: v2.autocontrast(x),
    lambda x, _: v2.equalize(x),
    lambda x, s: v2.adjust_brightness(x, 1 + 0.6 * s),
    lambda x, s: v2.adjust_contrast(x, 1 + 0.6 * s),
    lambda x, s: v2.adjust_saturation(x, 1 + 0.6 * s) if x.shape[1] == 3 else x,
    lambda x, s: v2.adjust_sharpness(x, 1 + 0.6 * s),
    lambda x, s: v2.posterize(x, 8 - round(4 * abs(s))),
    lambda x, s: v2.solarize(x, 255 * (1 - 0.5 * abs(s))),
    lambda x, s: _affine(x, angle=20 * s),
    lambda x, s: _affine(x, shear=15 * s),
    lambda x, s: _affine(x, shift=0.15 * s),
)


def operated(pixels: torch.Tensor, drawn: NDArray[np.float64]) -> torch.Tensor:
    """One operation of the table for each of uint8 (N, C, S, S), by columns (operation, strength, sign) in [0, 1)."""
    operation = np.floor(drawn[:, 0] * len(OPERATIONS)).astype(int)
    level = np.floor(drawn[:, 1] * LEVELS).astype(int) + 1
    strength = np.where(drawn[:, 2] < 0.5, -level, level)
    out = pixels.clone()
    for kind in range(1, len(OPERATIONS)):
        for level_signed in np.unique(strength[operation == kind]):
            chosen = torch.from_numpy(np.flatnonzero((operation == kind) & (strength == level_signed)))
            chosen = chosen.to(pixels.device)
            out[chosen] = OPERATIONS[kind](pixels[chosen], float(level_signed) / LEVELS)
    return out
