"""`--data PATH`: folders, tables and .npz without a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecnn.data import fit_image, load_images
from edgecnn.process.errors import EdgeError

Arrays = Callable[..., Path]
Picture = Callable[..., Path]


def test_class_folders(folder: Path) -> None:
    images, labels = load_images(folder, (8, 6), 3, "crop", None, 0)
    assert images.shape == (24, 8, 6, 3)
    assert labels is not None
    assert np.bincount(labels).tolist() == [12, 12]


def test_limit_and_seed_choose(folder: Path) -> None:
    first, labels = load_images(folder, (8, 8), 1, "stretch", 10, 3)
    again, _ = load_images(folder, (8, 8), 1, "stretch", 10, 3)
    other, _ = load_images(folder, (8, 8), 1, "stretch", 10, 4)
    assert first.shape == (10, 8, 8, 1)
    assert labels is not None
    assert set(labels) == {0, 1}
    assert np.array_equal(first.batch(0, 10), again.batch(0, 10))
    assert not np.array_equal(first.batch(0, 10), other.batch(0, 10))
    assert len(load_images(folder, (8, 8), 1, "stretch", 1000, 3)[0]) == 24


def test_flat_folder_has_no_labels(folder: Path) -> None:
    images, labels = load_images(folder / "cat", (8, 8), 3, "crop")
    assert (len(images), labels) == (12, None)


def test_label_table(tmp_path: Path, picture: Picture) -> None:
    for number in range(4):
        picture(tmp_path / f"{number}.png", number, size=(8, 8))
    (tmp_path / "l.tsv").write_text("".join(f"{number}.png\t{'ab'[number % 2]}\n" for number in range(4)))
    images, labels = load_images(tmp_path / "l.tsv", (8, 8), 3, "crop")
    order = np.random.RandomState(0).permutation(4)
    assert labels is not None
    assert labels.tolist() == (order % 2).tolist()
    pixels = np.random.RandomState(int(order[0])).randint(0, 256, (8, 8, 3))
    assert np.array_equal(images[0], pixels)


def test_npz_with_and_without_labels(arrays: Arrays) -> None:
    path = arrays(n=9)
    images, labels = load_images(path, (6, 6), 3, "crop")
    stored = np.load(path)
    order = np.random.RandomState(0).permutation(9)
    assert np.array_equal(images.batch(0, 9), stored["images"][order])
    assert labels is not None
    assert np.array_equal(labels, stored["labels"][order])
    gray, nothing = load_images(arrays("u.npz", labels=None), (4, 4), 1, "crop", 5)
    assert gray.shape == (5, 4, 4, 1)
    assert nothing is None
    assert np.array_equal(gray[0], fit_image(gray[0], 4, "crop"))


def test_bad_paths(tmp_path: Path, folder: Path, arrays: Arrays) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("")
    for path, message in [
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "empty", "has no images"),
        (tmp_path / "a.txt", "is not data"),
        (arrays(images=None), "has no array `images`"),
        (arrays("none.npz", 0), "has no images"),
    ]:
        with pytest.raises(EdgeError, match=message):
            load_images(path, (8, 8), 3, "crop")
    with pytest.raises(EdgeError, match="1 or 3 channels, not 4"):
        load_images(folder, (8, 8), 4, "crop")
    for name in ("00", "05"):
        (folder / "dog" / f"{name}.png").write_bytes(b"")
    with pytest.raises(EdgeError, match=r"2 corrupt images: .*dog/0"):
        load_images(folder, (8, 8), 3, "crop")
