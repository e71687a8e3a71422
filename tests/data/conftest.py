"""Small datasets, written as users have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecnn.data import Index, read_index
from edgecnn.recipe.recipe import DataSpec
from edgecnn.tasks.prepare import prepare


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Write a seeded random PNG of a size and return its path."""

    def write(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = size if mode == "L" else (*size, 3)
        Image.fromarray(np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)).save(path)
        return path

    return write


@pytest.fixture
def folder(tmp_path: Path, picture: Callable[..., Path]) -> Path:
    """An image folder: cat and dog with 12 images each."""
    for number, name in enumerate(("cat", "dog")):
        for image in range(12):
            picture(tmp_path / "pets" / name / f"{image:02d}.png", 100 * number + image)
    return tmp_path / "pets"


@pytest.fixture
def arrays(tmp_path: Path) -> Callable[..., Path]:
    """Write an .npz of n random images and cycling labels, keys replaced or removed (None) as told."""

    def write(name: str = "set.npz", n: int = 40, seed: int = 0, **keys: object) -> Path:
        content: dict[str, object] = {
            "images": np.random.RandomState(seed).randint(0, 256, (n, 6, 6, 3)).astype(np.uint8),
            "labels": np.arange(n) % 4,
        }
        content.update(keys)
        (tmp_path / "npz").mkdir(exist_ok=True)
        path = tmp_path / "npz" / name
        np.savez(path, **{key: value for key, value in content.items() if value is not None})
        return path

    return write


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., tuple[Path, Index, DataSpec]]:
    """Prepare a dataset in a new folder: (folder, index, spec)."""

    def make(image_size: int = 8, **spec: object) -> tuple[Path, Index, DataSpec]:
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        out.mkdir()
        data = DataSpec.model_validate(spec)
        prepare(out, data, image_size)
        return out, read_index(out), data

    return make
