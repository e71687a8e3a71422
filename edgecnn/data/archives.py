"""Images in .npz files: rows of pixels, or encoded images one after another in a blob."""

from __future__ import annotations

import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgecnn.data.pixels import Color, Pixels, decode, recolor
from edgecnn.process.errors import EdgeError
from edgecnn.store.digests import exists, is_regular

# Whatever zipfile, zlib and numpy make of damaged or encrypted members.
DAMAGED = (
    ValueError, EOFError, KeyError, SyntaxError, tokenize.TokenError, struct.error, zlib.error, lzma.LZMAError,
    zipfile.BadZipFile, RuntimeError, MemoryError, OverflowError, TypeError,
)  # fmt: skip
MOST_CLASSES = 1_000_000
LOCAL_HEADER_BYTES = 30  # PKWARE APPNOTE 4.3.7: fixed part of a zip member's local header


@dataclass(frozen=True)
class Rows:
    """Decoded images: uint8 (N, H, W, 1 or 3)."""

    pixels: Pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def raw(self, number: int) -> bytes:
        """The stored bytes of one image."""
        return bytes(self.pixels[number].tobytes())

    def image(self, number: int, color: Color) -> Pixels:
        """One image, uint8 (H, W, C)."""
        return np.array(recolor(self.pixels[number], color))


@dataclass(frozen=True)
class Encoded:
    """Encoded images: image n is `blob[offsets[n] : offsets[n + 1]]`."""

    blob: Pixels
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def raw(self, number: int) -> bytes:
        """The stored bytes of one image."""
        return self.blob[self.offsets[number] : self.offsets[number + 1]].tobytes()

    def image(self, number: int, color: Color) -> Pixels:
        """One image, uint8 (H, W, C). Raises Unreadable."""
        return decode(self.raw(number), color)


@dataclass(frozen=True)
class Archive:
    """One .npz file, or the arrays of it whose names begin with a prefix (`train` reads `train_images`, …)."""

    path: Path
    prefix: str = ""

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.path.name} ({self.prefix})" if self.prefix else self.path.name

    def key(self, name: str) -> str:
        """The name of an array in the file."""
        return f"{self.prefix}_{name}" if self.prefix else name

    def keys(self) -> list[str]:
        """Names of the arrays in the file."""
        with _opened(self.path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]

    def images(self) -> Rows | Encoded:
        """The images; arrays stored without compression are mapped, compressed ones are read into memory.

        Raises:
            EdgeError: neither images nor blob and offsets, a wrong dtype or shape.
        """
        keys = self.keys()
        if self.key("images") in keys:
            return Rows(self._pixels(read_array(self.path, self.key("images"))))
        if self.key("blob") in keys and self.key("offsets") in keys:
            return self._encoded()
        prefixes = sorted(key.removesuffix("_images") for key in keys if key.endswith("_images"))
        hint = f"it must hold `{self.key('images')}` (uint8 NHWC), or `{self.key('blob')}` and `{self.key('offsets')}`"
        if prefixes:
            hint += (
                f"; it holds sets named {', '.join(prefixes)}: in a recipe declare `train: {prefixes[-1]}` and so on"
            )
        raise EdgeError(f"`{self.path}` has no array `{self.key('images')}`; it has {', '.join(keys) or 'none'}", hint)

    def labels(self, images: int) -> NDArray[np.int64]:
        """The labels, int64 (N,).

        Raises:
            EdgeError: missing, not integers, negative, or not one for each of the `images`.
        """
        key = self.key("labels")
        if key not in self.keys():
            raise EdgeError(f"`{self.path}` has no array `{key}`", f"add `{key}`: one integer class number per image")
        labels = read_array(self.path, key)
        if not np.issubdtype(labels.dtype, np.integer):
            raise EdgeError(
                f"`{key}` in `{self.path}` is {labels.dtype}, not integers", "labels are class numbers 0, 1, 2, …"
            )
        if labels.shape != (images,):
            raise EdgeError(
                f"`{self.path}` has {images} images but `{key}` has shape {labels.shape}",
                "there must be one label for each image, in the same order",
            )
        if labels.size and int(labels.min()) < 0:
            first = int(np.flatnonzero(labels < 0)[0])
            raise EdgeError(
                f"`{key}` in `{self.path}` has the negative label {labels[first]} (image {first})",
                "labels are class numbers 0, 1, 2, …; leave unlabelled images out",
            )
        if labels.size and int(labels.max()) >= MOST_CLASSES:
            raise EdgeError(
                f"`{key}` in `{self.path}` has the label {labels.max()}", f"class numbers end before {MOST_CLASSES:,}"
            )
        return labels.astype(np.int64)

    def class_names(self) -> tuple[str, ...] | None:
        """The array `names` (or `classes`), one text for each class; None when the file has none."""
        keys = self.keys()
        for key in ("names", "classes"):
            if key in keys:
                names = read_array(self.path, key)
                if names.ndim != 1 or names.dtype.kind != "U":
                    raise EdgeError(
                        f"`{key}` in `{self.path}` is {names.dtype} of shape {names.shape}, not a list of texts",
                        f"write it as np.array([...], dtype=str), or leave `{key}` out",
                    )
                return tuple(str(name) for name in names)
        return None

    def _pixels(self, pixels: NDArray[Any]) -> Pixels:
        where = f"`{self.key('images')}` in `{self.path}`"
        if pixels.dtype != np.uint8:
            raise EdgeError(f"{where} is {pixels.dtype}, not uint8", "store pixel values 0 to 255 as uint8")
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        if pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or 0 in pixels.shape[1:3]:
            channels_first = pixels.ndim == 4 and pixels.shape[1] in (1, 3)
            hint = "it looks like NCHW: store images.transpose(0, 2, 3, 1)" if channels_first else "1 or 3 channels"
            raise EdgeError(f"{where} has shape {pixels.shape}, not (images, height, width, channels)", hint)
        return pixels

    def _encoded(self) -> Encoded:
        blob, offsets = read_array(self.path, self.key("blob")), read_array(self.path, self.key("offsets"))
        if blob.dtype != np.uint8 or blob.ndim != 1:
            raise EdgeError(
                f"`{self.key('blob')}` in `{self.path}` is {blob.dtype} of shape {blob.shape}, not uint8 bytes",
                "it is the encoded images' bytes, one after another",
            )
        offsets_right = np.issubdtype(offsets.dtype, np.integer) and offsets.ndim == 1 and len(offsets) > 0
        if offsets_right:
            offsets = offsets.astype(np.int64)
            offsets_right = bool((np.diff(offsets) >= 0).all()) and offsets[0] >= 0 and offsets[-1] <= len(blob)
        if not offsets_right:
            raise EdgeError(
                f"`{self.key('offsets')}` in `{self.path}` does not cut `{self.key('blob')}` into images",
                "integers that never fall, one more than there are images, the last at most the blob's length",
            )
        return Encoded(blob, offsets)


def read_array(path: Path, key: str) -> NDArray[Any]:
    """One array of an .npz file: mapped where it is stored without compression, else read into memory.

    Raises:
        EdgeError: the member is damaged or holds Python objects.
    """
    try:
        with _opened(path) as archive:
            member = archive.getinfo(f"{key}.npy")
            if member.compress_type == zipfile.ZIP_STORED:
                return _mapped(path, member)
            with archive.open(member) as file:
                _header(file, member.file_size)
            with archive.open(member) as file:
                return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    except (*DAMAGED, OSError) as error:  # bz2 says OSError to what it cannot unpack
        raise EdgeError(
            f"array `{key}` in `{path}` cannot be read: {error}", "write it with numpy.savez, without Python objects"
        ) from error


def _mapped(path: Path, member: zipfile.ZipInfo) -> NDArray[Any]:
    with path.open("rb") as file:
        file.seek(member.header_offset)
        name_bytes, extra_bytes = struct.unpack("<26xHH", file.read(LOCAL_HEADER_BYTES))
        file.seek(name_bytes + extra_bytes, 1)
        shape, by_column, dtype = _header(file, member.file_size)
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if by_column else "C")


def _header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, whether by column, dtype) of a .npy member of `size` bytes, whose header may promise anything.

    Raises:
        ValueError: Python objects, or more values than the member or this machine's memory has room for.
    """
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_column, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    promised = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or promised > size:
        raise ValueError(f"its header promises {promised:,} bytes, and there are {size:,}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if isinstance(file, zipfile.ZipExtFile) and promised > memory // 2:
        raise ValueError(f"unpacked it takes {promised:,} of {memory:,} bytes of memory: store it without compression")
    return shape, by_column, dtype


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        if not is_regular(path) and exists(path):
            raise EdgeError(f"`{path}` is not a regular file", "write it with numpy.savez")
        return zipfile.ZipFile(path)
    except DAMAGED as error:
        raise EdgeError(f"`{path}` is not an .npz file: {error}", "write it with numpy.savez") from error
    except OSError as error:
        raise EdgeError(f"cannot read `{path}`: {error.strerror}", "check the path and its permissions") from error
