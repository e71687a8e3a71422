"""Original images by number: what training reads, and prepare before it. All of them pickle, for DataLoader workers."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from edgecnn.data.archives import Archive, Encoded, Rows
from edgecnn.data.index import Index, Labels
from edgecnn.data.pixels import Color, Pixels, Unreadable, decode
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import DataSpec
from edgecnn.store.digests import is_folder, is_regular


class Opener(Protocol):
    """Images by number."""

    def raw(self, number: int) -> bytes:
        """Its stored bytes, for the digest."""

    def checked(self, number: int) -> Pixels:
        """One original image, uint8 (H, W, C). Raises Unreadable where it cannot be decoded."""

    def name(self, number: int) -> str:
        """How messages call it."""


class FileImages:
    """Encoded image files under a folder, read and decoded when asked."""

    def __init__(self, folder: Path, files: tuple[str, ...], color: Color) -> None:
        self.folder, self.files, self.color = folder, files, color

    def raw(self, number: int) -> bytes:
        """The file's bytes. Raises EdgeError where it cannot be read."""
        path = self.folder / self.files[number]
        try:
            return path.read_bytes()
        except OSError as error:
            raise EdgeError(
                f"cannot read image `{path}`: {error.strerror}", "the data changed or is protected"
            ) from error

    def checked(self, number: int) -> Pixels:
        """Decode the file. Raises Unreadable."""
        return decode(self.raw(number), self.color)

    def name(self, number: int) -> str:
        """Its path relative to the folder."""
        return self.files[number]


class ArrayImages:
    """Images of one or more archives, numbered through. Opened on first use, once in each process."""

    def __init__(self, archives: tuple[Archive | Digits, ...], color: Color) -> None:
        self.archives, self.color = archives, color
        self.opened: list[Rows | Encoded] | None = None
        self.starts: list[int] = []

    def __reduce__(self) -> tuple[type[ArrayImages], tuple[tuple[Archive | Digits, ...], Color]]:
        return ArrayImages, (self.archives, self.color)  # never the pixels

    def parts(self) -> list[Rows | Encoded]:
        """The archives' images. Raises EdgeError for a bad archive."""
        if self.opened is None:
            opened = [archive.images() for archive in self.archives]
            self.starts = [0, *(int(end) for end in np.cumsum([len(part) for part in opened])[:-1])]
            self.opened = opened
        return self.opened

    def raw(self, number: int) -> bytes:
        """One row's or one encoded image's bytes."""
        part, row = self._at(number)
        return part.raw(row)

    def checked(self, number: int) -> Pixels:
        """One image. Raises Unreadable."""
        part, row = self._at(number)
        return part.image(row, self.color)

    def name(self, number: int) -> str:
        """File and row."""
        self.parts()
        place = bisect.bisect_right(self.starts, number) - 1
        return f"{self.archives[place].name}, image {number - self.starts[place]}"

    def _at(self, number: int) -> tuple[Rows | Encoded, int]:
        parts = self.parts()
        place = bisect.bisect_right(self.starts, number) - 1
        return parts[place], number - self.starts[place]


class Digits:
    """scikit-learn's handwritten digits as an archive: 1,797 grayscale images of 8 by 8, 0 to 16 scaled to 255."""

    name = "digits"

    def images(self) -> Rows:
        """The images."""
        from sklearn.datasets import load_digits

        return Rows(np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[..., None])

    def labels(self, images: int) -> Labels:
        """The digits that they show."""
        from sklearn.datasets import load_digits

        return np.asarray(load_digits().target, np.int64)

    def class_names(self) -> None:
        """None: the numbers name themselves."""


def open_images(spec: DataSpec, index: Index) -> Callable[[int], Pixels]:
    """Original images by their number in the index: uint8 (H, W, C) at the size they are stored in, upright.

    Cheap to make and to pickle: files are decoded when asked; arrays are opened on first use in each process
    (compressed ones are then held in its memory; touch one image before forking workers and they share it).

    Raises (when an image is asked for):
        EdgeError: an image that cannot be read or decoded, by name.
    """
    opener: Opener
    if spec.format in ("digits", "arrays"):
        opener = ArrayImages(declared_archives(spec), spec.color)
    else:
        opener = FileImages(image_folder(spec), tuple(name or "" for name in index.files), spec.color)
    return partial(read_image, opener)


def declared_archives(spec: DataSpec) -> tuple[Archive | Digits, ...]:
    """The archives of the arrays, in the order of their numbers: train (or the pool), select, scored.

    A name declared beside a root that is one file is a prefix of arrays in it; beside a folder, a file in it.
    """
    if spec.format == "digits":
        return (Digits(),)
    names = spec.declared.values()
    if is_folder(spec.place):
        return tuple(Archive(spec.place / name) for name in names)
    return tuple(Archive(spec.place, name) for name in names) or (Archive(spec.place),)


def image_folder(spec: DataSpec) -> Path:
    """The folder that file names are relative to: root, or the folder of a root that is a table file."""
    return spec.place.parent if is_regular(spec.place) else spec.place


def read_image(opener: Opener, number: int) -> Pixels:
    """One original image, uint8 (H, W, C). Raises EdgeError naming the image."""
    try:
        return opener.checked(number)
    except Unreadable as error:
        raise EdgeError(
            f"corrupt image `{opener.name(number)}`: {error}", "the data changed since it was prepared: build again"
        ) from error
