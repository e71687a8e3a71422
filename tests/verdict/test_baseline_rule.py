"""The rule of `edgecnn check` on seeded simulated outcomes and recorded timings. No wall clock decides anything."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from evidence_folders import recorded_pairs
from scoring import CLASSIFY, counted_check

from edgecnn.measure.stats import pair_ratio, tango_bounds
from edgecnn.verdict.accuracy_checks import drop_state
from edgecnn.verdict.baseline import latency_state


def _shares(n: int, disc: float, drop: float, tolerance: float, repeats: int = 20_000) -> dict[str, float]:
    """Shares of the rule's states on seeded simulated outcomes of n images."""
    both = ((disc + drop) / 2, (disc - drop) / 2)
    counts = np.random.default_rng(20).multinomial(n, [*both, 1 - disc], size=repeats)
    bounds = zip(*tango_bounds(counts[:, 0], counts[:, 1], n), strict=True)
    found = Counter(drop_state(n, lower, upper, tolerance, least=CLASSIFY.LEAST_IMAGES) for lower, upper in bounds)
    return {state: found[state] / repeats for state in ("pass", "fail", "not-enough-evidence")}


@pytest.mark.parametrize("disc", [0.02, 0.05])
def test_a_true_drop_of_one_point_is_caught(disc):
    assert _shares(10_000, disc, 0.01, 0.0025)["fail"] >= 0.95


@pytest.mark.parametrize("disc", [0.02, 0.05])
def test_the_same_model_again_is_hardly_ever_a_regression(disc):
    assert _shares(10_000, disc, 0.0, 0.0025)["fail"] <= 0.05


def test_the_same_model_again_often_passes_and_with_more_tolerance_nearly_always():
    assert _shares(10_000, 0.02, 0.0, 0.0025)["pass"] >= 0.40
    assert _shares(10_000, 0.02, 0.0, 0.005)["pass"] >= 0.90


@pytest.mark.parametrize("disc", [0.02, 0.05])
def test_a_drop_as_large_as_the_tolerance_is_rarely_judged_either_way(disc):
    shares = _shares(10_000, disc, 0.005, 0.005)
    assert shares["pass"] <= 0.065
    assert shares["fail"] <= 0.065


@pytest.mark.parametrize(("b", "c"), [(0, 0), (60, 10), (40, 30), (20, 0), (90, 10)])
def test_a_check_is_that_rule_on_its_own_bounds(b, c):
    found = counted_check("max_regression", b, c, 10_000, 0.0025)
    assert found.state == drop_state(10_000, *tango_bounds(b, c, 10_000), 0.0025, least=CLASSIFY.LEAST_IMAGES)
    assert (found.lower, found.upper) == tuple(100 * bound for bound in tango_bounds(b, c, 10_000))


@pytest.mark.parametrize(("ratio", "state"), [(1.0, "pass"), (1.01, "pass"), (1.10, "fail"), (0.8, "pass")])
def test_recorded_timings_are_judged_by_the_bounds(ratio, state):
    times = recorded_pairs(ratio)
    assert latency_state(pair_ratio(times.first_ms, times.second_ms), 400) == state


def test_equal_models_raise_no_alarm_over_many_recorded_sessions():
    states = []
    for seed in range(60):
        times = recorded_pairs(1.0, seed=seed)
        states.append(latency_state(pair_ratio(times.first_ms, times.second_ms, resamples=300), 400))
    assert "fail" not in states


def test_few_pairs_are_inconclusive():
    times = recorded_pairs(1.3, pairs=40)
    assert latency_state(pair_ratio(times.first_ms, times.second_ms), 40) == "not-enough-evidence"
