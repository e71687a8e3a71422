"""Random numbers that depend on (seed, epoch, index) alone: not on order, batches, workers or what was drawn before.

Counter-based: SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators") hashes the
coordinates, so that no library's generator, whose stream may change with its version, decides what is drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX1, MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mixed(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * MIX1
    words = (words ^ (words >> np.uint64(27))) * MIX2
    return words ^ (words >> np.uint64(31))


def _key(seed: int, epoch: int) -> Words:
    with np.errstate(over="ignore"):
        first = _mixed(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64) + GOLDEN)
        return _mixed(first + np.array([epoch & 0xFFFFFFFFFFFFFFFF], np.uint64) * GOLDEN)


def uniform(seed: int, epoch: int, index: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) for each image number: float64 (N, count)."""
    with np.errstate(over="ignore"):
        states = _mixed(_key(seed, epoch) + _mixed(index.astype(np.uint64) + GOLDEN))
        steps = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
        words = _mixed(states[:, None] + steps[None, :])
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """A permutation of 0..count-1 for this epoch: int64 (count,)."""
    # Another seed than the augmentation's, so that an image's place does not tell how it is augmented.
    keys = uniform(seed ^ 0x5EED_0DE5, epoch, np.arange(count, dtype=np.int64), 1)[:, 0]
    return np.argsort(keys, kind="stable").astype(np.int64)


def seed_of(seed: int, epoch: int, rank: int = 0) -> int:
    """A seed for torch's own generator (dropout, new weights) in this epoch and process."""
    with np.errstate(over="ignore"):
        return int(_mixed(_key(seed, epoch) + np.uint64(rank))[0] >> np.uint64(1))
