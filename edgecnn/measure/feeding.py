"""How images become a model's input, and batches its answers. numpy alone: a board runs this very code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgecnn.process import progress

if TYPE_CHECKING:
    from edgecnn.backends import Runner


class ImageBatches(Protocol):
    """What is scored: uint8 images (N, H, W, C)."""

    def __len__(self) -> int:
        """How many images."""

    def batch(self, start: int, stop: int) -> Any:
        """Images start..stop, uint8 NHWC."""


@dataclass(frozen=True)
class Feeding:
    """The part of a model's contract that whoever feeds it needs.

    `mean` and `std` are given only where the graph does not normalize by itself.
    """

    name: str
    layout: str  # NHWC or NCHW
    dtype: str  # uint8, float16 or float32
    range: tuple[float, float]
    color: str  # rgb, bgr or gray
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @staticmethod
    def of(contract: Mapping[str, Any]) -> Feeding:
        """From a contract as its JSON says it (`edgecnn.io`)."""
        given = contract["input"]
        outside = contract["normalization"] if not contract["normalization_inside"] else None
        mean, std = (tuple(outside[part]) if outside else None for part in ("mean", "std"))
        low, high = given["range"]
        return Feeding(given["name"], given["layout"], given["dtype"], (low, high), given["color"], mean, std)

    def __call__(self, images: Any) -> dict[str, Any]:
        """uint8 NHWC images (N, H, W, C), RGB or gray → the model's input by name, in its layout, dtype and range."""
        values = images[..., ::-1] if self.color == "bgr" else images
        if self.dtype != "uint8":
            low, high = self.range
            values = values.astype(np.float32) * np.float32((high - low) / 255.0) + np.float32(low)
            if self.mean is not None:
                values = (values - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
            with np.errstate(over="ignore"):  # told where ranges are found: infinite, on which image
                values = values.astype(self.dtype, copy=False)
        if self.layout == "NCHW":
            values = values.transpose(0, 3, 1, 2)
        return {self.name: np.ascontiguousarray(values)}


def batch_size(runner: Runner, asked: int) -> tuple[int, bool]:
    """(images of a batch, whether the model's batch is fixed)."""
    fixed = runner.inputs[0].shape[0] if runner.inputs and runner.inputs[0].shape else None
    return fixed or asked, bool(fixed)


def batches(count: int, size: int, first: int = 0) -> Iterator[range]:
    """The numbers of `count` images from `first` on, cut where a run over all images from 0 would cut them."""
    start, stop = first, first + count
    while start < stop:
        end = min(start - start % size + size, stop)
        yield range(start, end)
        start = end


def answered_batches(
    runner: Runner, feed: Callable[[Any], Mapping[str, Any]], images: ImageBatches, batch: int
) -> Iterator[tuple[range, Mapping[str, Any]]]:
    """(numbers of the images, the model's answers) batch by batch; rows past them fill up a fixed batch."""
    size, _ = batch_size(runner, batch)
    for numbers in progress.track(list(batches(len(images), size)), "scoring"):
        yield numbers, answer(runner, feed, images.batch(numbers.start, numbers.stop), batch)


def answer(
    runner: Runner, feed: Callable[[Any], Mapping[str, Any]], pixels: Any, batch: int
) -> Mapping[str, Any]:  # fmt: skip
    """The model's answers to uint8 NHWC images; a fixed batch is filled up with black ones, whose rows come last."""
    size, fixed = batch_size(runner, batch)
    if fixed and len(pixels) < size:
        pixels = np.concatenate([pixels, np.zeros((size - len(pixels), *pixels.shape[1:]), pixels.dtype)])
    return runner(feed(pixels))
