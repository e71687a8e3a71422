"""Decoding, colour and the one resize."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from edgecnn.data import fit_image
from edgecnn.data.pixels import Unreadable, decode, recolor


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ramp(dtype: type, *values: int) -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


def test_rgb_becomes_luma_and_gray_is_repeated() -> None:
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    gray = decode(encoded(Image.fromarray(pixels)), "gray")
    assert gray.shape == (1, 3, 1)
    assert gray[0, :, 0].tolist() == [76, 150, 29]  # 0.299, 0.587, 0.114 of 255
    rgb = decode(encoded(ramp(np.uint8, 3, 200)), "rgb")
    assert rgb[0].tolist() == [[3] * 3, [200] * 3]
    assert recolor(pixels, "gray").tolist() == gray.tolist()
    assert recolor(gray, "rgb")[0, 0].tolist() == [76] * 3


def test_sixteen_bits_are_scaled_not_cut() -> None:
    content = encoded(ramp(np.uint16, 0, 257, 32896, 65535))
    assert decode(content, "gray")[0, :, 0].tolist() == [0, 1, 128, 255]
    assert decode(content, "rgb")[0, 2].tolist() == [128] * 3
    big_endian = encoded(Image.fromarray(np.array([[0, 32896, 65535]], ">u2")), "TIFF")
    assert decode(big_endian, "gray")[0, :, 0].tolist() == [0, 128, 255]


def test_cmyk_palette_alpha_and_bits() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert decode(encoded(red, "TIFF"), "rgb")[0, 0].tolist() == [255, 0, 0]
    assert np.abs(decode(encoded(red, "JPEG"), "rgb")[4, 4].astype(int) - [255, 0, 0]).max() <= 4
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert decode(encoded(palette, transparency=0), "rgb")[0].tolist() == [[10, 20, 30], [200, 100, 50]]
    alpha = Image.new("RGBA", (1, 1), (9, 8, 7, 0))
    assert decode(encoded(alpha), "rgb")[0, 0].tolist() == [9, 8, 7]
    assert decode(encoded(Image.new("LA", (1, 1), (77, 10))), "gray")[0, 0].tolist() == [77]
    assert decode(encoded(Image.new("1", (1, 1), 1)), "gray")[0, 0].tolist() == [255]


@pytest.mark.parametrize(
    ("orientation", "first_row"), [(1, [1, 2]), (2, [2, 1]), (3, [4, 3]), (6, [3, 1]), (8, [2, 4])]
)
def test_exif_orientation_turns_the_image(orientation: int, first_row: list[int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(Image.fromarray(np.array([[1, 2], [3, 4]], np.uint8)), exif=exif), "gray")
    assert image[0, :, 0].tolist() == first_row


def test_broken_exif_leaves_the_pixels() -> None:
    content = encoded(Image.new("L", (8, 8), 90), "JPEG", exif=b"Exif\0\0garbage")
    assert decode(content, "gray").mean() == 90


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file is empty"),
        (b"hello, this is text", "not an image format"),
        (encoded(Image.effect_noise((64, 64), 90), "JPEG")[:-600], "truncated"),
        (encoded(ramp(np.float32, 0, 1), "TIFF"), "float pixels"),
    ],
)
def test_unreadable_images_say_why(content: bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        decode(content, "rgb")


def test_fit_is_identity_at_size() -> None:
    image = np.random.RandomState(0).randint(0, 256, (8, 8, 3)).astype(np.uint8)
    assert fit_image(image, 8, "crop") is image
    assert fit_image(image, (8, 8), "stretch") is image


def test_fit_crop_cuts_the_centre() -> None:
    columns = np.tile(np.arange(8, dtype=np.uint8), (4, 1))[..., None]
    assert fit_image(columns, 4, "crop")[0, :, 0].tolist() == [2, 3, 4, 5]
    assert fit_image(columns.transpose(1, 0, 2), 4, "crop")[:, 0, 0].tolist() == [2, 3, 4, 5]
    assert fit_image(columns, (4, 2), "crop").shape == (4, 2, 1)


def test_fit_antialiases() -> None:
    image = np.array([[0, 100], [100, 200]], np.uint8)[..., None]
    assert fit_image(image, 1, "stretch").item() == 100
    stripes = np.tile(np.array([0, 255], np.uint8), (32, 16))[..., None]
    shrunk = fit_image(stripes, 8, "stretch")
    assert np.abs(shrunk.astype(int) - 128).max() < 24  # without antialiasing: 0 or 255 columns


@pytest.mark.train
@pytest.mark.parametrize("shape", [(37, 53, 3), (53, 37, 3), (20, 91, 1), (16, 17, 3)])
def test_fit_crop_has_torchvisions_geometry(shape: tuple[int, int, int]) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    image = np.random.RandomState(1).randint(0, 256, shape).astype(np.uint8)
    theirs = functional.center_crop(functional.resize(Image.fromarray(image.squeeze()), 16), [16, 16])
    assert np.array_equal(fit_image(image, 16, "crop").squeeze(), np.asarray(theirs))


def test_letterbox_fits_inside_and_fills_both_sides() -> None:
    image = np.full((10, 40, 3), 200, np.uint8)
    boxed = fit_image(image, 20, "letterbox")
    assert boxed.shape == (20, 20, 3)
    assert (boxed[:7] == 114).all()
    assert (boxed[12:] == 114).all()
    assert (boxed[7:12] == 200).all()


def test_only_picture_formats_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("PostScript was run"))
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    for content in (page, encoded(Image.new("L", (8, 8)), "ICO"), encoded(Image.new("L", (8, 8)), "TGA")):
        with pytest.raises(Unreadable, match="not an image format that is read"):
            decode(content, "rgb")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP"])
def test_too_many_pixels_are_refused_before_they_are_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("1", (9500, 9500)), kind, **({"compression": "group4"} if kind == "TIFF" else {}))
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(Unreadable, match="9500 x 9500 pixels; at most 89,478,485"):
        decode(content, "rgb")


@pytest.mark.parametrize("fit", ["crop", "stretch", "letterbox"])
@pytest.mark.parametrize("shape", [(200_000, 1, 3), (1, 200_000, 3)])
def test_a_very_long_image_takes_little_memory(shape: tuple[int, int, int], fit: str) -> None:
    """Scaled as a whole to cover 224 pixels it would have 10 billion of them."""
    image = np.full(shape, 7, np.uint8)
    assert fit_image(image, 224, fit).shape == (224, 224, 3)  # type: ignore[arg-type]
    assert (fit_image(image, 224, fit)[111:113, 111:113] == 7).any()  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [1601, 1602])
def test_cutting_before_scaling_keeps_the_middle(width: int) -> None:
    """At 100 pixels high more than 1,600 columns are never looked at; the middle ones stay where they are."""
    image = np.zeros((100, width, 1), np.uint8)
    image[:, width // 2 - (width % 2 == 0) : width // 2 + 1] = 255
    found = fit_image(image, 50, "crop")[25, :, 0].astype(float)
    assert abs((found * np.arange(50)).sum() / found.sum() - 24.5) < 0.51


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.int32, 70_000), (np.int32, 255), (np.int16, -5)]
)  # what these are out of is not known
def test_pixels_without_a_range_are_refused(dtype: type, value: int) -> None:
    from PIL import TiffImagePlugin

    content = io.BytesIO()
    if dtype is np.int16:
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[339] = 2  # SampleFormat: signed
        Image.fromarray(np.full((4, 4), value, np.int16).view(np.uint16)).save(content, "TIFF", tiffinfo=tags)
    else:
        Image.fromarray(np.full((4, 4), value, np.int32)).save(content, "TIFF")
    with pytest.raises(Unreadable, match="no defined range"):
        decode(content.getvalue(), "gray")
