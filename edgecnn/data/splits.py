"""Train, select, scored and calibrate: seeded, stratified, and never a function of a declared scored set."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgecnn.data.index import Labels, Split
from edgecnn.data.tables import listed
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import DataSpec

Ids = NDArray[np.int64]


def make_splits(
    spec: DataSpec, classes: tuple[str, ...], labels: Labels, train: Ids, select: Ids | None, scored: Ids | None
) -> dict[Split, Ids]:
    """Split image numbers.

    Args:
        classes, labels: names and class number of every image, int64 (N,).
        train: numbers of the declared training images, or of the pool.
        select, scored: numbers of declared sets; None draws them from `train`, stratified by class.

    Returns:
        `train`, `select`, `scored` sorted and disjoint; `calibrate`, the first `spec.calibrate` of a permuted train.
        Where `scored` is given, the other three do not depend on its size or labels.

    Raises:
        EdgeError: a class has too few images to be in every set; a set would be empty.
    """
    if scored is None:
        _enough(classes, labels[train], least=3 if select is None else 2)
        scored, train = _drawn(labels, train, spec.scored_fraction, spec.seed, 0)
    if select is None:
        select, train = _drawn(labels, train, spec.select_fraction, spec.seed, 1)
        if len(select) == 0:
            raise EdgeError(
                "nothing can be set aside for `select`: no class has two training images",
                "add training images, or declare `data.select`",
            )
    for name, ids in (("train", train), ("scored", scored), ("select", select)):
        if len(ids) == 0:
            raise EdgeError(f"no images are left for `{name}`", f"check the images of `data.{name}`")
    order = _random(spec.seed, 2).permutation(len(train))
    splits: dict[Split, Ids] = {
        "train": np.sort(train),
        "select": np.sort(select),
        "scored": np.sort(scored),
    }
    splits["calibrate"] = splits["train"][order][: spec.calibrate]
    return splits


def _enough(classes: tuple[str, ...], labels: Labels, least: int) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    few = [f"{classes[number]} ({counts[number]})" for number in np.flatnonzero((counts > 0) & (counts < least))]
    if few:
        raise EdgeError(
            f"too few images to split in these classes: {listed(few)}; each needs {least}",
            "add images, remove the class, or declare `data.train`, `data.select` and `data.scored`",
        )


def _drawn(labels: Labels, pool: Ids, fraction: float, seed: int, salt: int) -> tuple[Ids, Ids]:
    """(drawn, rest): `fraction` of the pool with each class's share kept; classes of two or more are in both."""
    shuffled = np.sort(pool)[_random(seed, salt).permutation(len(pool))]
    classes, inverse, counts = np.unique(labels[shuffled], return_inverse=True, return_counts=True)
    quota = fraction * counts
    take = np.floor(quota).astype(np.int64)
    # Largest remainders get the rest, so that the total is the fraction of the pool and not of each class rounded.
    short = round(fraction * len(pool)) - int(take.sum())
    take[np.argsort(-(quota - take), kind="stable")[: max(short, 0)]] += 1
    take = np.clip(take, np.minimum(1, counts - 1), counts - 1)
    chosen = np.zeros(len(shuffled), dtype=bool)
    for number in range(len(classes)):
        chosen[np.flatnonzero(inverse == number)[: take[number]]] = True
    return shuffled[chosen], shuffled[~chosen]


def _random(seed: int, salt: int) -> np.random.RandomState:
    # RandomState, not default_rng: numpy promises (NEP 19) that its stream never changes between versions.
    return np.random.RandomState([seed % 2**32, salt])
