"""Training images on their way to the network: uint8 at model size, from memory where they fit, else decoded anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from edgecnn.data import Index, fit_image
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import Normalization

Open = Callable[[int], NDArray[np.uint8]]
Numbers = NDArray[np.int64]
DECODE_BATCH = 256


class Batches(Protocol):
    """Images that come in lists of places."""

    def batches(self, batches: list[Numbers]) -> Iterator[torch.Tensor]:
        """For each list of places: uint8 (len, C, S, S)."""


class Normalizer:
    """uint8 or float (N, C, S, S) of 0..255 → float32, (value / 255 - mean) / std, in the network's memory layout."""

    def __init__(self, normalization: Normalization, device: torch.device, channels_last: bool) -> None:
        mean = torch.tensor(normalization.mean, dtype=torch.float64).reshape(1, -1, 1, 1)
        std = torch.tensor(normalization.std, dtype=torch.float64).reshape(1, -1, 1, 1)
        self.scale = (1 / (255 * std)).float().to(device)
        self.shift = (-mean / std).float().to(device)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels * self.scale + self.shift).contiguous(memory_format=self.layout)


class _Decoded(Dataset):
    """Images at model size, by place in `numbers`. An EdgeError travels as a value: DataLoader would rewrite it."""

    def __init__(self, open_image: Open, numbers: Numbers, size: int, index: Index) -> None:
        self.open_image, self.numbers, self.size, self.fit = open_image, numbers, size, index.fit

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> NDArray[np.uint8] | EdgeError:
        try:
            return fit_image(self.open_image(int(self.numbers[place])), self.size, self.fit)
        except EdgeError as error:
            return error


def _stacked(images: list[Any]) -> torch.Tensor | tuple[str, str]:
    for image in images:
        if isinstance(image, EdgeError):
            return image.message, image.hint
    return torch.from_numpy(np.stack(images))


class Pictures:
    """The images of one split at model size, uint8, in any order.

    Args:
        name: what they are, for the progress shown while decoding.
        open_image: an original image by its number in the index.
        numbers: the split's image numbers (N,).
        size: model size in pixels.
        index: says how images are fitted, and their channels.
        workers: decoding processes; 0 decodes in this one.
        device: where batches are wanted, and kept when the whole split fits in `cache_bytes`.
    """

    def __init__(
        self, name: str, open_image: Open, numbers: Numbers, size: int, index: Index, *, workers: int,
        device: torch.device, cache_bytes: int,
    ) -> None:  # fmt: skip
        self.name, self.open_image, self.numbers, self.size, self.index = name, open_image, numbers, size, index
        self.workers, self.device = workers, device
        self.pixels: torch.Tensor | None = None
        if len(numbers) * size * size * index.channels <= cache_bytes:
            self.pixels = self._decode_all()

    def _decode_all(self) -> torch.Tensor:
        count, size = len(self.numbers), self.size
        pixels = torch.empty((count, size, size, self.index.channels), dtype=torch.uint8)
        with progress.current().task(f"decode {self.name}", count) as task:
            done = 0
            for batch in self._decoded(self.numbers, DECODE_BATCH):
                pixels[done : done + len(batch)] = batch
                done += len(batch)
                task.update(done)
        return pixels.to(self.device)

    def _decoded(self, numbers: Numbers, batch: int | list[Numbers]) -> Iterator[torch.Tensor]:
        if len(numbers):
            self.open_image(int(numbers[0]))  # archives are opened once, here, and shared by forked workers
        dataset = _Decoded(self.open_image, numbers, self.size, self.index)
        how: dict[str, Any] = {"batch_size": batch} if isinstance(batch, int) else {"batch_sampler": batch}
        loader = DataLoader(
            dataset, **how, num_workers=self.workers, collate_fn=_stacked, pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # its own: the global one decides dropout
        )  # fmt: skip
        for stacked in loader:
            if not isinstance(stacked, torch.Tensor):
                raise EdgeError(*stacked)
            yield stacked

    def batches(self, batches: list[Numbers]) -> Iterator[torch.Tensor]:
        """For each list of places (0..N-1) in the split: uint8 (len, C, S, S) on the device."""
        if self.pixels is not None:
            for places in batches:
                yield self.pixels[torch.from_numpy(places).to(self.device)].permute(0, 3, 1, 2)
        else:
            for stacked in self._decoded(self.numbers, batches):
                yield stacked.to(self.device, non_blocking=True).permute(0, 3, 1, 2)


def in_order(count: int, batch: int) -> list[Numbers]:
    """Places 0..count-1 in batches, the last one shorter."""
    return [np.arange(start, min(start + batch, count)) for start in range(0, count, batch)]


def epoch_batches(order: Numbers, batch: int, rank: int = 0, world: int = 1) -> list[Numbers]:
    """This process's part of each batch of an epoch's order.

    A last batch that is not full is left out (another order next epoch), unless it is the only one: BatchNorm would
    take its statistics from a few images.

    Raises:
        EdgeError: several processes and a batch that they can't share evenly.
    """
    if world > 1 and (batch % world or len(order) < batch):
        raise EdgeError(
            f"a batch of {batch} of {len(order)} images can't be shared evenly by {world} processes",
            f"set `train.batch` to a multiple of {world}, not above the number of images",
        )
    whole = max(1, len(order) // batch)
    return [order[start * batch : (start + 1) * batch][rank::world] for start in range(whole)]
