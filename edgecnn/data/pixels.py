"""One image: from file bytes to uint8 (height, width, channels), and the one resize used everywhere."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from edgecnn.data.letterbox import Letterbox

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

Pixels = NDArray[np.uint8]
Color = Literal["rgb", "gray"]
Fit = Literal["crop", "stretch", "letterbox"]

LETTERBOX_GRAY = 114  # what YOLO detectors are trained with

EXTENSIONS = (
    ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png",
    ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
# The formats of these endings, whatever a file is called. Pillow knows more, and some of them start other programs
# (PostScript: ghostscript). AVIF comes with Pillow 11.3.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # of one image: 256 MiB of RGB, where Pillow starts to warn
MAX_SIDE = 1_000_000
LARGE_PIXELS = 1 << 24  # larger ones are decoded one at a time, so that threads do not hold many at once
ORIENTATION = 0x0112  # EXIF tag


class Unreadable(Exception):  # becomes one line of the EdgeError that lists all of them
    """Why one image cannot be decoded."""


def channels_of(color: Color) -> int:
    """1 for gray, 3 for rgb."""
    return 1 if color == "gray" else 3


def decode(content: bytes, color: Color) -> Pixels:
    """Decode an encoded image (JPEG, PNG, …; a GIF's or TIFF's first frame) to uint8 (H, W, C), upright.

    Raises:
        Unreadable: broken or cut off, unknown to Pillow, or of pixels without a defined range (float TIFF).
    """
    if not content:
        raise Unreadable("the file is empty")
    with opened(io.BytesIO(content)) as image, _alone if _pixels(image) > LARGE_PIXELS else nullcontext():
        _require_range(image)
        image.load()
        return _as_array(_upright(image), color)


@contextmanager
def opened(file: io.BytesIO | Path) -> Iterator[Image.Image]:
    """An image of one of the FORMATS, not yet decoded: the one way in which images are opened here.

    Raises:
        Unreadable: another format, more than MAX_PIXELS, or whatever goes wrong while the context lasts.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=_formats()) as image:
            if _pixels(image) > MAX_PIXELS or max(image.size) > MAX_SIDE:
                raise Unreadable(
                    f"{image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are decoded, {MAX_SIDE:,} of a side"
                )
            yield image
    except (MemoryError, Unreadable):
        raise
    except UnidentifiedImageError as error:
        raise Unreadable(f"not an image format that is read: {', '.join(_formats())}") from error
    except Exception as error:  # Pillow's plugins raise whatever a broken file leads them into
        raise Unreadable(str(error) or type(error).__name__) from error


@cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow has. Its own warning about many pixels is not shown: ours is an error."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _pixels(image: Image.Image) -> int:
    return image.width * image.height


_alone = threading.Lock()


def _new_lock() -> None:
    global _alone  # a thread that a forked child does not have may hold it
    _alone = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # noqa: BLE001  # broken EXIF beside good pixels: shown as stored, as every viewer does
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _require_range(image: Image.Image) -> None:
    if image.mode == "F":
        raise Unreadable("float pixels have no defined range; save it with 8 or 16 bits")
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # those hold 16 bits, which Pillow may open as 32
        raise Unreadable("signed or 32-bit pixels have no defined range; save it with 8 or 16 bits, unsigned")


def _as_array(image: Image.Image, color: Color) -> Pixels:
    from PIL import Image

    mode = image.mode
    if mode.startswith("I"):  # 16-bit grayscale
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    elif mode in ("P", "PA", "RGBa"):
        image = image.convert("RGBA")  # through RGBA, else a palette's transparency entry is lost with a warning
    elif mode == "La":
        image = image.convert("LA")
    if image.mode not in ("L", "LA", "1", "RGB", "RGBA"):
        image = image.convert("RGB")  # CMYK, YCbCr, HSV
    # Alpha is dropped, not composited: what torchvision's and timm's loaders feed to the networks they publish.
    wanted = "L" if color == "gray" else "RGB"
    if image.mode != wanted:  # else `convert` copies, which of a large image is a third of the memory
        image = image.convert(wanted)
    array = np.array(image)  # a copy: torch warns about read-only arrays
    return array[..., None] if color == "gray" else array


def recolor(image: Pixels, color: Color) -> Pixels:
    """Bring uint8 (H, W, 1 or 3) to the channels of `color`: luma of ITU-R 601-2 (Pillow), or gray repeated."""
    from PIL import Image

    if image.shape[2] == channels_of(color):
        return image
    if color == "rgb":
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))[..., None]


def fit_image(image: Pixels, size: int | tuple[int, int], fit: Fit) -> Pixels:
    """Resize uint8 (H, W, C) to (size, size, C), or to (height, width, C) for a pair.

    Bilinear with antialiasing (Pillow's `BILINEAR`, whose support grows when it shrinks). `stretch`: straight to the
    size. `crop`: the image is scaled until it just covers the size (for a square: short side to size, the long side
    rounded down), then cut at the centre; the same geometry as torchvision's Resize and CenterCrop. `letterbox`: scaled
    until it just fits inside, the rest filled with gray 114 on both sides, as detectors are trained. An image that has
    the size already is returned as it is.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if image.shape[:2] == (height, width):
        return image
    if fit == "crop":
        image = _shorter(image, height, width)
    old_height, old_width, channels = image.shape
    new_height, new_width = height, width
    box = Letterbox(old_height, old_width, (height, width))
    if fit == "letterbox":
        new_height, new_width = box.inner
    elif fit == "crop":
        # Compared as products: the side that must match exactly is not left to float rounding.
        if old_height * width <= old_width * height:
            new_width = max(width, height * old_width // old_height)
        else:
            new_height = max(height, width * old_height // old_width)
    plain = np.ascontiguousarray(image[..., 0] if channels == 1 else image)
    resized = _resized(plain, new_height, new_width)
    if fit == "letterbox":
        boxed = np.full((height, width, channels), LETTERBOX_GRAY, np.uint8)
        top, left = box.corner
        boxed[top : top + new_height, left : left + new_width] = resized.reshape(new_height, new_width, channels)
        return boxed
    top, left = round((new_height - height) / 2), round((new_width - width) / 2)
    cut = resized[top : top + height, left : left + width]
    return np.array(cut[..., None] if channels == 1 else cut)


MUCH = 16  # times the pixels of the result: more would be made only to be cut away


def _shorter(image: Pixels, height: int, width: int) -> Pixels:
    """The middle of a very long image, as `crop` throws the rest away: cut before it is scaled up with it."""
    old_height, old_width = image.shape[:2]
    most = MUCH * old_height * width // height, MUCH * old_width * height // width
    cut = [slice(0, old_height), slice(0, old_width)]
    for axis, (side, limit) in enumerate(((old_height, most[1]), (old_width, most[0]))):
        if side > max(limit, 1):
            kept = max(limit, 1) + (side - max(limit, 1)) % 2  # an even rest: the centre stays where it is
            cut[axis] = slice((side - kept) // 2, (side + kept) // 2)
    return image[tuple(cut)]


def _resized(image: Pixels, height: int, width: int) -> Pixels:
    """Pillow's bilinear resize of uint8 (H, W) or (H, W, C); (width, height) of it may be anything."""
    from PIL import Image

    picture = Image.fromarray(image)
    # Pillow scales rows first: of a narrow, very high image that would be all of its rows at the new width.
    if picture.height * width > MUCH * max(height * width, picture.height * picture.width):
        picture = picture.resize((picture.width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
