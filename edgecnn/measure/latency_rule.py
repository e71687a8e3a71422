"""When interleaved timings say slower, when as fast, and when nothing yet. numpy alone: a board asks it too."""

from __future__ import annotations

from typing import Literal

from edgecnn.measure import stats

SLOWER, AS_FAST = 1.02, 1.05  # REGRESSION above the first by the lower bound, OK below the second by the upper
MIN_PAIRS = 4 * stats.BLOCK  # fewer blocks make no bootstrap


def latency_state(ratio: stats.Ratio, pairs: int) -> Literal["pass", "fail", "not-enough-evidence"]:
    """The rule for a ratio candidate/baseline; what bench asks before it doubles the pairs once."""
    if pairs < MIN_PAIRS:
        return "not-enough-evidence"
    if ratio.lower > SLOWER:
        return "fail"
    return "pass" if ratio.upper < AS_FAST else "not-enough-evidence"
