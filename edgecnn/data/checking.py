"""Decode every image once: its digest, or why it is corrupt."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgecnn.data.openers import Opener
from edgecnn.data.pixels import Unreadable
from edgecnn.data.tables import listed
from edgecnn.process.errors import EdgeError
from edgecnn.process.progress import track

T = TypeVar("T")
MAX_THREADS = 8


def in_order(function: Callable[[int], T], numbers: Iterable[int]) -> Iterator[T]:
    """Map in a few threads (Pillow decodes outside the interpreter lock), in order, few results waiting at a time."""
    threads = min(MAX_THREADS, os.cpu_count() or 1)
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for number in numbers:
                waiting.append(pool.submit(function, number))
                if len(waiting) >= 4 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@dataclass(frozen=True)
class Checked:
    """What decoding every image told.

    Attributes:
        digests: SHA-256 of each one's stored bytes.
        corrupt: why, by the number of a corrupt image.
        sizes: int32 (N, 2), (height, width) in pixels as decoded; (0, 0) of a corrupt image.
    """

    digests: list[bytes]
    corrupt: dict[int, str]
    sizes: NDArray[np.int32]


def check_images(opener: Opener, count: int) -> Checked:
    """Decode images 0 to count once."""

    def check(number: int) -> tuple[bytes, str | None, tuple[int, int]]:
        digest = hashlib.sha256(opener.raw(number)).digest()
        try:
            height, width = opener.checked(number).shape[:2]
        except Unreadable as error:
            return digest, str(error), (0, 0)
        return digest, None, (height, width)

    digests: list[bytes] = []
    corrupt: dict[int, str] = {}
    sizes = np.zeros((count, 2), np.int32)
    for digest, why, size in track(in_order(check, range(count)), "checking images", count):
        if why is not None:
            corrupt[len(digests)] = why
        sizes[len(digests)] = size
        digests.append(digest)
    return Checked(digests, corrupt, sizes)


def corrupt_error(opener: Opener, corrupt: dict[int, str], hint: str) -> EdgeError:
    """One error that lists all corrupt images, the first ten by name and reason."""
    names = [f"{opener.name(number)} ({why})" for number, why in corrupt.items()]
    what = "corrupt image" if len(names) == 1 else f"{len(names)} corrupt images"
    return EdgeError(f"{what}: {listed(names)}", hint)
