"""Splits: disjoint, seeded, stratified, and blind to declared scored labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecnn.data.splits import make_splits
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import DataSpec

DIGITS = DataSpec(format="digits", color="gray", calibrate=50)


def split(labels: np.ndarray, **spec: object) -> dict[str, np.ndarray]:
    names = tuple(str(number) for number in range(int(labels.max()) + 1))
    return make_splits(DIGITS.model_copy(update=spec), names, labels, np.arange(len(labels)), None, None)


def test_splits_are_disjoint_whole_and_stratified() -> None:
    labels = np.repeat(np.arange(3), [90, 300, 30])
    splits = split(labels)
    together = np.concatenate([splits["train"], splits["select"], splits["scored"]])
    assert sorted(together.tolist()) == list(range(420))
    assert np.bincount(labels[splits["scored"]]).tolist() == [30, 100, 10]
    assert np.bincount(labels[splits["select"]]).tolist() == [6, 20, 2]
    assert set(splits["calibrate"]) <= set(splits["train"])
    assert len(splits["calibrate"]) == 50
    assert len(set(splits["calibrate"].tolist())) == 50
    assert len(np.unique(labels[splits["calibrate"]])) == 3


def test_same_seed_same_split_and_another_seed_another() -> None:
    labels = np.arange(200) % 5
    first, again, other = split(labels, seed=7), split(labels, seed=7), split(labels, seed=8)
    for name in first:
        assert np.array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


def test_split_is_the_recorded_one() -> None:
    """A change of these numbers makes every stored baseline incomparable."""
    splits = split(np.arange(12) % 2, calibrate=3)
    assert {name: numbers.tolist() for name, numbers in splits.items()} == {
        "train": [2, 5, 6, 7, 9, 10],
        "select": [1, 8],
        "scored": [0, 3, 4, 11],
        "calibrate": [9, 7, 5],
    }


def test_few_images_still_reach_every_set() -> None:
    labels = np.array([0] * 3 + [1] * 100)
    splits = split(labels)
    assert [int((labels[splits[name]] == 0).sum()) for name in ("train", "select", "scored")] == [1, 1, 1]


def test_two_images_are_too_few_and_the_class_is_named() -> None:
    with pytest.raises(EdgeError, match=r"too few images to split in these classes: `1 \(2\)`; each needs 3"):
        split(np.array([0] * 9 + [1] * 2))


def test_calibrate_takes_all_of_a_small_train() -> None:
    splits = split(np.arange(30) % 3, calibrate=512)
    assert sorted(splits["calibrate"].tolist()) == splits["train"].tolist()


def test_nothing_for_select_is_an_error() -> None:
    labels = np.array([0, 1, 2, 0, 1])
    with pytest.raises(EdgeError, match="nothing can be set aside for `select`"):
        make_splits(DIGITS, ("a", "b", "c"), labels, np.arange(3), None, np.arange(3, 5))


def test_declared_scored_labels_change_nothing_else(
    arrays: Callable[..., Path], prepared: Callable[..., tuple[Path, object, DataSpec]]
) -> None:
    arrays("train.npz", 60, seed=1)
    scored = arrays("test.npz", 20, seed=2)
    where = {"format": "arrays", "root": scored.parent, "train": "train.npz", "scored": "test.npz", "calibrate": 16}
    before, first, _ = prepared(**where)
    arrays("test.npz", 20, seed=2, labels=(np.arange(20) * 3 + 1) % 4)
    after, second, _ = prepared(**where)
    for name in ("train", "select", "scored", "calibrate"):
        assert np.array_equal(first.splits[name], second.splits[name])
    files = sorted(path.name for path in before.glob("*.npy"))
    assert files == [
        "calibrate-00000.npy",
        "scored-00000.npy",
        "scored_labels.npy",
        "select-00000.npy",
        "select_labels.npy",
    ]
    changed = [name for name in files if (before / name).read_bytes() != (after / name).read_bytes()]
    assert changed == ["scored_labels.npy"]
    assert np.array_equal(first.labels[:60], second.labels[:60])
    assert first.digest != second.digest
