"""The histogram: exact merging, whatever order and batching the values come in."""

from __future__ import annotations

import numpy as np
import pytest

from edgecnn.quantize.calibration.histogram import BINS, Histogram, merged


def counted(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def same(first: Histogram, second: Histogram) -> bool:
    return (
        (first.low, first.high, first.exponent) == (second.low, second.high, second.exponent)
        and first.counts.tobytes() == second.counts.tobytes()
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_growing_ranges_merge_to_the_counts_of_the_final_width(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [(rng.standard_normal(999) * 2.0**power).astype(np.float32) for power in (-20, -3, 0, 1, 7)]
    growing, falling = counted(*parts), counted(*parts[::-1])
    assert same(growing, falling)
    assert same(growing, counted(np.concatenate(parts)))
    every = np.concatenate(parts).astype(np.float64)
    direct = np.bincount(np.floor(every / growing.width).astype(int) + BINS, minlength=2 * BINS)
    assert np.array_equal(growing.counts, direct)
    assert growing.bound < BINS * growing.width <= 2 * growing.bound  # the width is the least that fits


def test_edges_powers_of_two_and_zeros() -> None:
    histogram = counted(np.float32([0.0, 0.0, 1.0, -1.0]))
    assert histogram.counts[BINS] == 2
    assert histogram.counts.sum() == 4
    assert histogram.width == 2.0 / BINS  # 1.0 itself must lie inside, and the next power of two is 2
    assert histogram.counts[BINS + BINS // 2] == 1
    assert histogram.counts[BINS - BINS // 2] == 1


def test_only_zeros_then_values() -> None:
    histogram = counted(np.zeros(5, np.float32), np.float32([3.0]))
    assert histogram.counts[BINS] == 5
    assert histogram.counts.sum() == 6
    assert (histogram.low, histogram.high) == (0.0, 3.0)


def test_merging_tensors_equals_counting_them_together() -> None:
    small, large = np.float32([0.1, -0.2, 0.01]), np.float32([30.0, -7.5])
    assert same(merged([counted(small), counted(large)]), counted(small, large))


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_what_is_not_finite_is_refused(value: float, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        counted(np.float32([1.0, value]))


def test_of_a_large_tensor_a_part_is_counted_with_its_weight() -> None:
    values = np.random.default_rng(0).normal(0, 1, 400_000).astype(np.float32)
    whole, parts = Histogram(), Histogram()
    whole.add(values)
    for part in np.array_split(values, 10):  # small enough to be counted in full
        parts.add(part)
    assert (whole.low, whole.high, whole.exponent) == (parts.low, parts.high, parts.exponent)
    assert whole.counts.sum() == pytest.approx(parts.counts.sum(), rel=1e-4)
    for share in (0.01, 0.5, 0.99):
        found, exact = (np.searchsorted(np.cumsum(h.counts) / h.counts.sum(), share) for h in (whole, parts))
        assert abs(int(found) - int(exact)) * whole.width < 0.06  # four standard errors of the outer quantiles
