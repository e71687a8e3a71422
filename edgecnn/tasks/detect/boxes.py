"""Labelled boxes: the one internal form that every detection format becomes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgecnn.process.errors import EdgeError


@dataclass(frozen=True)
class Boxes:
    """Boxes of N images.

    Attributes:
        offsets: int64 (N + 1,): image i has rows offsets[i] to offsets[i + 1].
        boxes: float32 (M, 4), x1 y1 x2 y2 in pixels of the original image, after its EXIF rotation.
        classes: int64 (M,).
        crowd: bool (M,): a group or a difficult box: neither found nor missed counts (COCO iscrowd, VOC difficult).
        sizes: int32 (N, 2), (height, width) of the original images in pixels.
    """

    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    sizes: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.sizes)

    def of(self, image: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
        """(boxes, classes, crowd) of one image."""
        rows = slice(int(self.offsets[image]), int(self.offsets[image + 1]))
        return self.boxes[rows], self.classes[rows], self.crowd[rows]

    def take(self, images: NDArray[np.int64]) -> Boxes:
        """The boxes of some images, in that order."""
        rows = [np.arange(self.offsets[image], self.offsets[image + 1]) for image in images]
        chosen = np.concatenate([np.zeros(0, np.int64), *rows])
        offsets = np.cumsum([0, *(len(part) for part in rows)]).astype(np.int64)
        return Boxes(offsets, self.boxes[chosen], self.classes[chosen], self.crowd[chosen], self.sizes[images])

    @property
    def truth(self) -> int:
        """Boxes that count as found or missed."""
        return int((~self.crowd).sum())

    def write(self, path: Path) -> None:
        """Write an .npz file; the same boxes give the same bytes."""
        np.savez(path, offsets=self.offsets, boxes=self.boxes, classes=self.classes, crowd=self.crowd, sizes=self.sizes)


def read_boxes(path: Path) -> Boxes:
    """Read what `Boxes.write` wrote.

    Raises:
        EdgeError: no such file, or not one of these.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return Boxes(*(file[name] for name in ("offsets", "boxes", "classes", "crowd", "sizes")))
    except (OSError, KeyError, ValueError) as error:
        raise EdgeError(f"`{path}` holds no boxes: {error}", "prepare the data again with `edgecnn build`") from error


def boxes(path: Path, split: Literal["select", "scored"]) -> Boxes:
    """The boxes of a prepared split, in the order of its images."""
    return read_boxes(path / f"{split}_boxes.npz")
