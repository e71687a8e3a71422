"""Augmentation of a batch of uint8 images, each by numbers that depend on (seed, epoch, image number) alone.

The numbers come from `draws`; the pixels are changed for the whole batch at once, on the device where it lies, so that
augmentation needs no workers and no order of images changes what an image looks like.

`shift`: moved by up to an eighth, black outside (digits, centred things). `flip`: mirrored half of the time.
`standard`: both, reflected at the border (the CIFAR habit). `strong`: a crop of 50 to 100 % of the area, mirrored,
then two operations of RandAugment (Cubuk et al. 2019, arXiv:1909.13719) at a drawn strength, then random erasing of
2 to 20 % of the area in a quarter of the images (Zhong et al. 2017, arXiv:1708.04896).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgecnn.training import draws

Draws = NDArray[np.float64]
Kind = Literal["none", "shift", "flip", "standard", "strong"]

DRAWS = 20  # numbers an image gets; each use below has its own columns, so that adding one changes no other
ERASE_SHARE = 0.25
GRAY = 128  # of a part that is erased


def augment(kind: Kind, pixels: torch.Tensor, seed: int, epoch: int, numbers: NDArray[np.int64]) -> torch.Tensor:
    """Augment uint8 (N, C, S, S); `numbers` (N,) are the images' numbers in the index. Answers uint8 (N, C, S, S)."""
    if kind == "none":
        return pixels
    drawn = draws.uniform(seed, epoch, numbers, DRAWS)
    match kind:
        case "shift":
            return _moved(pixels, drawn, shift=True, flip=False, reflect=False)
        case "flip":
            return _moved(pixels, drawn, shift=False, flip=True, reflect=True)
        case "standard":
            return _moved(pixels, drawn, shift=True, flip=True, reflect=True)
        case "strong":
            from edgecnn.training.randaugment import operated  # torchvision takes seconds to import

            pixels = _cropped(pixels, drawn)
            for columns in ((6, 7, 8), (9, 10, 11)):
                pixels = operated(pixels, drawn[:, columns])
            return _erased(pixels, drawn[:, 12:17])


def _moved(pixels: torch.Tensor, drawn: Draws, *, shift: bool, flip: bool, reflect: bool) -> torch.Tensor:
    """Whole-pixel moves and mirroring as one gather: exact, and the same on every device."""
    count, channels, height, width = pixels.shape
    rows, columns = np.tile(np.arange(height), (count, 1)), np.tile(np.arange(width), (count, 1))
    if shift:
        rows = rows + _offsets(drawn[:, 0], height)[:, None]
        columns = columns + _offsets(drawn[:, 1], width)[:, None]
    if flip:
        columns = np.where(drawn[:, 2:3] < 0.5, columns[:, ::-1], columns)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = _reflected(rows, height), _reflected(columns, width)
    take = torch.from_numpy(rows[:, :, None] * width + columns[:, None, :]).to(pixels.device)
    flat = pixels.reshape(count, channels, height * width)
    moved = flat.gather(2, take.reshape(count, 1, -1).expand(-1, channels, -1)).reshape(pixels.shape)
    if reflect:
        return moved
    return moved * torch.from_numpy(inside).to(pixels.device)[:, None]


def _offsets(drawn: Draws, size: int) -> NDArray[np.int64]:
    reach = max(1, round(size / 8))
    return np.floor(drawn * (2 * reach + 1)).astype(np.int64) - reach


def _reflected(places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    places = np.abs(places)
    return np.where(places >= size, 2 * (size - 1) - places, places)


def _cropped(pixels: torch.Tensor, drawn: Draws) -> torch.Tensor:
    """A random part (area 50-100 %, sides 3:4 to 4:3), bilinear to full size, mirrored half of the time."""
    area = 0.5 + 0.5 * drawn[:, 0]
    ratio = np.exp((2 * drawn[:, 1] - 1) * math.log(4 / 3) / 2)
    wide, high = np.minimum(1, np.sqrt(area) * ratio), np.minimum(1, np.sqrt(area) / ratio)
    theta = np.zeros((len(drawn), 2, 3), np.float32)
    theta[:, 0, 0] = np.where(drawn[:, 4] < 0.5, -wide, wide)
    theta[:, 1, 1] = high
    theta[:, 0, 2] = (2 * drawn[:, 2] - 1) * (1 - wide)
    theta[:, 1, 2] = (2 * drawn[:, 3] - 1) * (1 - high)
    shape = list(pixels.shape)
    grid = functional.affine_grid(torch.from_numpy(theta).to(pixels.device), shape, align_corners=False)
    cut = functional.grid_sample(pixels.float(), grid, padding_mode="reflection", align_corners=False)
    return cut.round_().clamp_(0, 255).to(torch.uint8)


def _erased(pixels: torch.Tensor, drawn: Draws) -> torch.Tensor:
    """A gray box of 2 to 20 % of the area in some images, by columns (whether, area, ratio, top, left)."""
    count, _, height, width = pixels.shape
    area = (0.02 + 0.18 * drawn[:, 1]) * height * width
    ratio = np.exp((2 * drawn[:, 2] - 1) * math.log(2))
    high, wide = np.minimum(height, np.sqrt(area * ratio)), np.minimum(width, np.sqrt(area / ratio))
    top, left = drawn[:, 3] * (height - high), drawn[:, 4] * (width - wide)
    rows, columns = np.arange(height)[None] + 0.5, np.arange(width)[None] + 0.5
    in_rows = (rows > top[:, None]) & (rows < (top + high)[:, None])
    in_columns = (columns > left[:, None]) & (columns < (left + wide)[:, None])
    box = in_rows[:, :, None] & in_columns[:, None, :] & (drawn[:, 0] < ERASE_SHARE)[:, None, None]
    assert box.shape == (count, height, width)
    return pixels.masked_fill(torch.from_numpy(box).to(pixels.device)[:, None], GRAY)
