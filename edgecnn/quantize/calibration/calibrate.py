"""Streaming calibration: the images go through the float graph once, only counts stay.

Every image runs alone (or in the batch that the graph demands), whatever the caller's batching, so a tensor's values do
not depend on its neighbours; the counts are integers. Hence the result is the same, bit for bit, for every order.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import onnx_ir as ir

from edgecnn.process.errors import EdgeError
from edgecnn.process.progress import track
from edgecnn.quantize.calibration.arrays import NamedArrays
from edgecnn.quantize.calibration.histogram import Histogram
from edgecnn.quantize.graph.sessions import Feeds, expose, open_session, run_each
from edgecnn.recipe.io_contract import IoContract

_READ = 8  # images read at a time


class ImageSource(Protocol):
    """Calibration images: uint8 NHWC."""

    def __len__(self) -> int:
        """How many."""

    def batch(self, start: int, stop: int) -> np.ndarray:
        """Images start..stop, uint8 (N, H, W, C)."""


@dataclass(frozen=True)
class Calibration:
    """Histograms by tensor name; `digest` is of the set of images, whatever their order."""

    histograms: dict[str, Histogram]
    images: int
    digest: str
    batch: int
    seconds: float


@dataclass(frozen=True)
class Feeder:
    """Turns calibration images into the model's feeds, one inference at a time."""

    model: ir.Model
    contract: IoContract | None  # None: `images` are NamedArrays, fed as they are
    images: ImageSource | NamedArrays
    count: int

    def __post_init__(self) -> None:
        inputs = [value.name for value in self.model.graph.inputs]
        if isinstance(self.images, NamedArrays):
            self.images.fit(list(self.model.graph.inputs))
        elif self.contract is None or inputs != [self.contract.input.name]:
            raise EdgeError(
                f"the graph's inputs are {', '.join(f'`{name}`' for name in inputs)}, but calibration feeds only "
                f"`{self.contract.input.name if self.contract else ''}`",
                "give an .npz with one array per input, or export the model with one image input",
            )

    @property
    def pixels(self) -> int:
        """Height × width of an image; of arrays the third of the values of the largest."""
        if isinstance(self.images, NamedArrays) or self.contract is None:
            return max(1, self.images.values() // 3) if isinstance(self.images, NamedArrays) else 1
        height, width = self.contract.input.size
        return height * width

    @property
    def batch(self) -> int:
        """Images per inference: 1, or what a static graph demands."""
        shape = self.model.graph.inputs[0].shape
        first = shape[0] if shape is not None and len(shape) else 1
        return int(first) if isinstance(first, int) else 1

    def feeds(self, chosen: list[int] | None = None) -> Iterator[Feeds]:
        """Feeds of all images in order, or of the chosen ones; a static batch is filled up with its last image."""
        if isinstance(self.images, NamedArrays):
            wanted = list(range(self.count)) if chosen is None else chosen
            for number in range(0, len(wanted), self.batch):
                yield self.images.feed(wanted[number : number + self.batch], self.batch)
        elif chosen is not None:
            for number in range(0, len(chosen), self.batch):
                parts = [self.images.batch(i, i + 1) for i in chosen[number : number + self.batch]]
                yield self._feed(np.concatenate(parts))
        else:
            for start in range(0, self.count, self.batch):
                yield self._feed(self.images.batch(start, min(start + self.batch, self.count)))

    def _feed(self, images: np.ndarray) -> Feeds:
        assert self.contract is not None  # only NamedArrays go without
        _check_images(images, self.contract)
        if len(images) < self.batch:
            images = np.concatenate([images, np.repeat(images[-1:], self.batch - len(images), axis=0)])
        return self.contract.feed(images)

    @cached_property
    def digests(self) -> list[str]:
        """SHA-256 of each image's pixels."""
        if isinstance(self.images, NamedArrays):
            return [self.images.digest(number) for number in range(self.count)]
        found = []
        for start in range(0, self.count, _READ):
            for image in self.images.batch(start, min(start + _READ, self.count)):
                found.append(hashlib.sha256(image.tobytes()).hexdigest())
        return found

    def sample(self, most: int) -> list[int]:
        """Indices of up to `most` images, chosen by their content so that the order of the set does not matter."""
        return sorted(range(self.count), key=lambda index: self.digests[index])[:most]


def _check_images(images: np.ndarray, contract: IoContract) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise EdgeError(
            f"calibration images are {images.dtype} with {images.ndim} dimensions; uint8 (N, H, W, C) is needed",
            "give pixel values 0 to 255 as uint8, channels last",
        )
    height, width = contract.input.size
    if images.shape[1:] != (height, width, contract.input.channels):
        raise EdgeError(
            f"calibration images are {images.shape[1]}x{images.shape[2]} with {images.shape[3]} channels; "
            f"the model takes {height}x{width} with {contract.input.channels}",
            "resize them, or give the model's input size",
        )


def calibrate(feeder: Feeder, tensors: list[str], chosen: list[int] | None = None) -> Calibration:
    """Count the values of `tensors` over all images, or the chosen ones.

    Memory: one inference per core and 64 KiB per tensor, however many images.

    Raises:
        EdgeError: a tensor takes a NaN or an infinite value.
    """
    start = time.monotonic()
    histograms = {name: Histogram() for name in tensors}
    session = open_session(expose(feeder.model, tensors))
    order = list(range(feeder.count)) if chosen is None else chosen
    total = math.ceil(len(order) / feeder.batch)
    for number, outputs in enumerate(track(run_each(session, feeder.feeds(chosen)), "calibrate", total)):
        image = number * feeder.batch
        last = min(feeder.batch, len(order) - image)
        for name, values in zip(tensors, outputs, strict=True):
            real = values[:last] if last < feeder.batch and values.shape[:1] == (feeder.batch,) else values
            try:
                histograms[name].add(real)
            except ValueError as error:
                raise EdgeError(
                    f"tensor `{name}` takes a value that is {error} on calibration image {order[image]}",
                    "the float model itself overflows there: check its weights and its input's normalization",
                ) from error
    digest = hashlib.sha256("".join(sorted(feeder.digests[image] for image in order)).encode()).hexdigest()
    return Calibration(histograms, len(order), digest, feeder.batch, time.monotonic() - start)
