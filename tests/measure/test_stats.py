"""The statistics against published examples, exact sums and seeded simulations."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from edgecnn.measure import stats

# Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, chapter 8: (n12, n21, N), 95 % interval.
BENTUR = (1, 7, 21), (-0.517, -0.026)  # airway hyper-responsiveness before and after stem cell transplantation
CAVO = (6, 16, 161), (-0.1240, -0.0054)  # complete response before and after consolidation therapy


@pytest.mark.parametrize(("counts", "published"), [BENTUR, CAVO])
def test_tango_bounds_are_the_published_ones(counts, published):
    digits = 4 if counts == CAVO[0] else 3
    assert tuple(round(bound, digits) for bound in stats.tango_bounds(*counts, 0.975)) == published


def test_tango_bounds_change_sides_with_the_models():
    lower, upper = stats.tango_bounds(6, 16, 161)
    assert stats.tango_bounds(16, 6, 161) == pytest.approx((-upper, -lower), abs=1e-12)
    assert lower < (6 - 16) / 161 < upper


def test_tango_bounds_of_arrays_are_those_of_their_numbers():
    b, c = np.array([0, 5, 130, 1000]), np.array([0, 5, 88, 0])
    lower, upper = stats.tango_bounds(b, c, 1000)
    singles = [stats.tango_bounds(one, other, 1000) for one, other in zip(b, c, strict=True)]
    assert np.allclose(np.stack([lower, upper], 1), singles, atol=1e-12)
    assert np.all((lower >= -1) & (lower <= (b - c) / 1000) & ((b - c) / 1000 <= upper) & (upper <= 1))
    assert upper[3] == 1.0


@pytest.mark.parametrize("n", [50, 300, 10_000])
def test_without_disagreement_the_upper_bound_is_the_score_bound_of_zero(n):
    z2 = 1.6448536**2
    assert stats.tango_bounds(0, 0, n)[1] == pytest.approx(z2 / (n + z2), rel=1e-4)


@pytest.mark.parametrize(("disc", "drop"), [(0.02, 0.0), (0.05, 0.01), (0.02, 0.005)])
def test_each_tango_bound_covers_the_truth_in_95_percent(disc, drop):
    b, c = _counts(1000, disc, drop, 20_000)
    lower, upper = stats.tango_bounds(b, c, 1000)
    assert 0.935 < np.mean(lower <= drop) < 0.965
    assert 0.935 < np.mean(upper >= drop) < 0.965


@pytest.mark.parametrize("counts", [(-1, 0, 10), (6, 5, 10), (0, 0, 0)])
def test_tango_bounds_refuse_impossible_counts(counts):
    with pytest.raises(ValueError, match="tango_bounds"):
        stats.tango_bounds(*counts)


def test_mid_p_is_the_published_one():
    assert stats.mcnemar_mid_p(6, 16) == pytest.approx(0.034690, abs=5e-7)
    assert stats.mcnemar_mid_p(1, 7) == pytest.approx(10 / 256)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (3, 3), (40, 17), (2, 60)])
def test_mid_p_equals_the_exact_sum(b, c):
    n, low = b + c, min(b, c)
    below = sum(Fraction(comb(n, k), 2**n) for k in range(low))
    assert stats.mcnemar_mid_p(b, c) == pytest.approx(float(min(1, 2 * below + Fraction(comb(n, low), 2**n))))
    assert stats.mcnemar_mid_p(b, c) == stats.mcnemar_mid_p(c, b)


def test_mid_p_of_many_images_neither_overflows_nor_leaves_its_range():
    assert stats.mcnemar_mid_p(60_000, 60_000) == pytest.approx(1.0)
    assert 0.0 <= stats.mcnemar_mid_p(60_000, 50_000) < 1e-100


@pytest.mark.parametrize(
    ("disc", "budget", "needed"), [(0.02, 0.01, 1240), (0.05, 0.01, 3100), (0.02, 0.005, 4960), (0.05, 0.005, 12400)]
)
def test_images_needed_follows_the_formula(disc, budget, needed):
    assert stats.images_needed(disc, budget) == pytest.approx(needed, abs=1)
    assert stats.images_needed(disc, 2 * budget, budget) == pytest.approx(needed, abs=1)


def test_images_needed_gives_the_promised_chance_to_pass():
    needed = stats.images_needed(0.02, 0.01)
    upper = stats.tango_bounds(*_counts(needed, 0.02, 0.0, 20_000), needed)[1]
    assert 0.77 < np.mean(upper <= 0.01) < 0.85


def test_images_needed_without_disagreement_is_where_a_pass_begins():
    needed = stats.images_needed(0.0, 0.01)
    assert stats.tango_bounds(0, 0, needed)[1] <= 0.01 < stats.tango_bounds(0, 0, needed - 1)[1]


def test_images_needed_is_none_where_no_number_decides():
    assert stats.images_needed(0.02, 0.01, 0.01) is None
    assert stats.images_needed(0.0, 0.0) is None


def test_wilson_interval_is_the_published_one():
    # R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I: 81 of 263.
    assert [round(bound, 4) for bound in stats.wilson_interval(81, 263)] == [0.2553, 0.3662]
    assert stats.wilson_interval(10, 10)[1] == 1.0


def test_pair_ratio_finds_the_ratio_through_common_noise():
    random = np.random.default_rng(1)
    mood = np.exp(np.cumsum(random.normal(0, 0.05, 600)))  # the machine drifts by tens of percents
    first, second = 5 * mood * _jitter(random, 600), 4 * mood * _jitter(random, 600)
    ratio = stats.pair_ratio(first, second)
    assert ratio.lower < 0.8 < ratio.upper
    assert ratio.upper - ratio.lower < 0.02
    assert np.quantile(first, 0.9) > 1.5 * np.quantile(first, 0.1)  # it did drift
    assert stats.pair_ratio(first, second) == ratio  # fixed seed


def test_pair_ratio_of_equal_times_has_no_width():
    assert stats.pair_ratio([2.0] * 20, [3.0] * 20) == stats.Ratio(*[pytest.approx(1.5)] * 3)


def test_blocks_widen_the_bounds_of_dependent_pairs():
    random = np.random.default_rng(2)
    wave = np.repeat(random.normal(0, 0.1, 40), 16)
    first, second = np.ones(640), np.exp(wave + random.normal(0, 0.01, 640))
    blocks, single = stats.pair_ratio(first, second), stats.pair_ratio(first, second, block=1)
    assert blocks.upper - blocks.lower > 2 * (single.upper - single.lower)


def test_pair_ratio_bounds_hold_on_independent_pairs():
    random = np.random.default_rng(3)
    ratios = [stats.pair_ratio(_jitter(random, 200), _jitter(random, 200), resamples=400, seed=k) for k in range(200)]
    for below in (np.mean([ratio.lower > 1 for ratio in ratios]), np.mean([ratio.upper < 1 for ratio in ratios])):
        assert 0.01 <= below <= 0.10


@pytest.mark.parametrize("times", [([1.0], [1.0, 2.0]), ([], []), ([1.0, 0.0], [1.0, 1.0])])
def test_pair_ratio_refuses_what_is_no_pair(times):
    with pytest.raises(ValueError, match="pair_ratio"):
        stats.pair_ratio(*times)


def test_p99_bounds_reach_round_the_true_percentile():
    random = np.random.default_rng(4)
    true = -np.log(0.01)  # p99 of an exponential
    bounds = [stats.p99_bounds(random.exponential(1, 2000), resamples=300, seed=k) for k in range(60)]
    assert np.mean([one.lower <= true for one in bounds]) > 0.85
    assert np.mean([one.upper >= true for one in bounds]) > 0.85
    assert all(one.lower <= one.value <= one.upper for one in bounds)


def test_large_runs_are_resampled_in_parts_of_bounded_memory():
    values = np.random.default_rng(5).exponential(1, 3 * stats.CHUNK // stats.RESAMPLES)
    bounds = stats.p99_bounds(values)
    assert bounds.lower < bounds.value < bounds.upper


def test_p5_speedup_ignores_what_disturbs_most_runs():
    random = np.random.default_rng(6)
    disturbance = random.exponential(2.0, (2, 1000))
    assert stats.p5_speedup(6 + disturbance[0], 3 + disturbance[1]) == pytest.approx(2.0, rel=0.05)


def _counts(n, disc, drop, repeats):
    shares = ((disc + drop) / 2, (disc - drop) / 2)
    found = np.random.default_rng(8).multinomial(n, [*shares, 1 - sum(shares)], size=repeats)
    return found[:, 0], found[:, 1]


def _jitter(random, count):
    return np.exp(random.normal(0, 0.05, count))
