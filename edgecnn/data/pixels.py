"""One image: from file bytes to uint8 (height, width, channels), and the one resize used everywhere."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from edgecnn.data.letterbox import Letterbox

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]
Color = Literal["rgb", "gray"]
Fit = Literal["crop", "stretch", "letterbox"]

LETTERBOX_GRAY = 114  # what YOLO detectors are trained with

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
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
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise Unreadable("the file is empty")
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return _as_array(_upright(image), color)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable("not an image format that Pillow knows") from error
    except Exception as error:  # Pillow's plugins raise whatever a broken file leads them into
        raise Unreadable(str(error) or type(error).__name__) from error


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # noqa: BLE001  # broken EXIF beside good pixels: shown as stored, as every viewer does
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _as_array(image: Image.Image, color: Color) -> Pixels:
    from PIL import Image

    mode = image.mode
    if mode == "F":
        raise ValueError("float pixels have no defined range; save it with 8 or 16 bits")
    if mode.startswith("I"):  # 16-bit grayscale; older Pillow opens it as 32-bit I
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    elif mode in ("P", "PA", "RGBa"):
        image = image.convert("RGBA")  # through RGBA, else a palette's transparency entry is lost with a warning
    elif mode == "La":
        image = image.convert("LA")
    if image.mode not in ("L", "LA", "1", "RGB", "RGBA"):
        image = image.convert("RGB")  # CMYK, YCbCr, HSV
    # Alpha is dropped, not composited: what torchvision's and timm's loaders feed to the networks they publish.
    array = np.array(image.convert("L" if color == "gray" else "RGB"))  # a copy: torch warns about read-only arrays
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
    from PIL import Image

    height, width = (size, size) if isinstance(size, int) else size
    if image.shape[:2] == (height, width):
        return image
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
    resized = np.asarray(Image.fromarray(plain).resize((new_width, new_height), Image.Resampling.BILINEAR))
    if fit == "letterbox":
        boxed = np.full((height, width, channels), LETTERBOX_GRAY, np.uint8)
        top, left = box.corner
        boxed[top : top + new_height, left : left + new_width] = resized.reshape(new_height, new_width, channels)
        return boxed
    top, left = round((new_height - height) / 2), round((new_width - width) / 2)
    cut = resized[top : top + height, left : left + width]
    return np.array(cut[..., None] if channels == 1 else cut)
