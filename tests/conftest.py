"""Fixtures that every room shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo() -> Path:
    """The checkout's root folder."""
    return REPO


@pytest.fixture(scope="session")
def packs() -> Path:
    """The folder of data packs: EDGECNN_DATA, else `shared/data` beside the checkout; skips without it."""
    root = Path(os.environ.get("EDGECNN_DATA") or REPO.parent / "shared" / "data")
    if not (root / "cifar10-jpeg").is_dir():
        pytest.skip(f"no data packs in {root}: set EDGECNN_DATA")
    return root.resolve()
