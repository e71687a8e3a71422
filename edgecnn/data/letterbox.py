"""The geometry of `fit: letterbox`: where an image lies inside the model's square, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Letterbox:
    """An image of `height` x `width` pixels inside a model input of `size` (height, width) pixels.

    It is scaled until it just fits, sides rounded to whole pixels, and lies in the middle (an odd pixel goes right or
    below). The two sides' scales differ by that rounding; boxes use each side's own, so they sit where the pixels do.
    """

    height: int
    width: int
    size: tuple[int, int]

    @property
    def inner(self) -> tuple[int, int]:
        """(height, width) of the scaled image."""
        height, width = self.size
        if self.height * width <= self.width * height:
            return max(1, round(width * self.height / self.width)), width
        return height, max(1, round(height * self.width / self.height))

    @property
    def corner(self) -> tuple[int, int]:
        """(top, left) of the scaled image."""
        inner = self.inner
        return (self.size[0] - inner[0]) // 2, (self.size[1] - inner[1]) // 2

    def to_model(self, boxes: Floats) -> Floats:
        """Boxes (K, 4) x1 y1 x2 y2 in pixels of the image → pixels of the model's input."""
        moved: Floats = boxes * self._scales() + self._shifts()
        return moved

    def to_image(self, boxes: Floats) -> Floats:
        """Boxes (K, 4) in pixels of the model's input → pixels of the image, cut at its edges."""
        inside = (boxes - self._shifts()) / self._scales()
        ends = np.asarray([self.width, self.height] * 2, np.float32)
        cut: Floats = np.clip(inside, 0, ends)
        return cut

    def _scales(self) -> Floats:
        height, width = self.inner
        return np.asarray([width / self.width, height / self.height] * 2, np.float32)

    def _shifts(self) -> Floats:
        top, left = self.corner
        return np.asarray([left, top] * 2, np.float32)
