"""Times callables, two at a time, side by side. Knows no model.

The pairs run A,B,B,A: whatever the machine does for a while happens to both, and neither always comes second. Warm-up,
minimum time and minimum count follow trtexec and MLPerf's single stream; percentiles, never a bare mean.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgecnn.measure.clocks import CPUS, Clocks, read_clocks
from edgecnn.process import progress

Times = NDArray[np.float64]
P99_QUERIES = 1024  # MLPerf's smallest count for a tail percentile


class Pace(Protocol):
    """How long and on what to measure: a recipe's BenchSpec, or what a board was sent of it."""

    @property
    def batch(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def warmup_ms(self) -> int: ...
    @property
    def min_pairs(self) -> int: ...
    @property
    def min_seconds(self) -> float: ...
    @property
    def max_seconds(self) -> float: ...


@dataclass(frozen=True)
class PairTimes:
    """Milliseconds of each call, pair by pair, (pairs,) float64, and the conditions they were taken under."""

    first_ms: Times
    second_ms: Times
    conditions: dict[str, Any]


def time_pairs(
    first: Callable[[], float | None],
    second: Callable[[], float | None],
    spec: Pace,
    undecided: Callable[[Times, Times], bool],
    *,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> PairTimes:
    """Run two callables alternately and time every call.

    Each is warmed up for `warmup_ms`. Then pairs run until both `min_pairs` and `min_seconds` are reached; if the pairs
    are still undecided, as many again. `max_seconds` ends it in any case.

    Args:
        first, second: each answers with its own milliseconds, as a GPU's clock has them; None: `clock` is right.
        undecided: (first_ms, second_ms) → whether more pairs are wanted; asked once.
        clock: nanoseconds, never going back.

    Returns:
        Conditions have `timer`: `device` where both had milliseconds of their own, else `host`.
    """
    for run in (first, second):
        start = clock()
        while (clock() - start) < spec.warmup_ms * 1_000_000:
            run()
    times: list[tuple[float, float]] = []
    own = False

    def measure(pairs: int, seconds: float, spent: float, task: progress.Task) -> float:
        """Run pairs until these totals; seconds spent so far in, seconds spent in all out."""
        nonlocal own
        shown, started = -1, clock()
        while True:
            elapsed = spent + (clock() - started) / 1e9
            if elapsed >= spec.max_seconds or (len(times) >= pairs and elapsed >= seconds):
                return elapsed
            if int(elapsed) != shown:  # once a second: a line to the parent costs time between pairs
                shown = int(elapsed)
                task.update(shown, f"{len(times)} pairs")
            pair, own = _one_pair(first, second, clock, swapped=len(times) % 2 == 1)
            times.append(pair)

    with progress.current().task("timing", spec.min_seconds) as task, _no_collection():
        seconds = measure(spec.min_pairs, spec.min_seconds, 0.0, task)
        if undecided(*_milliseconds(times)):  # its own time, a bootstrap's, is not counted
            seconds = measure(2 * len(times), 2 * spec.min_seconds, seconds, task)
    first_ms, second_ms = _milliseconds(times)
    taken = {"pairs": len(times), "seconds": seconds, "timer": "device" if own else "host"}
    return PairTimes(first_ms, second_ms, {**taken, **conditions(spec, len(times))})


def _one_pair(
    first: Callable[[], float | None], second: Callable[[], float | None], clock: Callable[[], int], *, swapped: bool
) -> tuple[tuple[float, float], bool]:
    """(milliseconds of both), and whether they are the callables' own."""
    one, other = (second, first) if swapped else (first, second)
    start = clock()
    of_one = one()
    middle = clock()
    of_other = other()
    end = clock()
    if own := of_one is not None and of_other is not None:
        taken = (float(of_one), float(of_other))
    else:
        taken = ((middle - start) / 1e6, (end - middle) / 1e6)
    return ((taken[1], taken[0]) if swapped else taken), own


def _milliseconds(times: list[tuple[float, float]]) -> tuple[Times, Times]:
    values = np.asarray(times, np.float64).reshape(-1, 2)
    return np.ascontiguousarray(values[:, 0]), np.ascontiguousarray(values[:, 1])


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage collector would stop one call in many."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def percentiles(ms: Times) -> dict[str, float]:
    """`p5_ms`, `p50_ms`, `p90_ms` and `p99_ms` of timings in milliseconds."""
    return {f"p{q}_ms": float(np.quantile(ms, q / 100)) for q in (5, 50, 90, 99)}


def conditions(spec: Pace, queries: int, cpus: Path = CPUS) -> dict[str, Any]:
    """What the times were taken under: when, load, clocks, and whether a 99th percentile means anything."""
    clocks = read_clocks(cpus)
    valid, why = p99_validity(queries, clocks)
    return {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "warmup_ms": spec.warmup_ms,
        "batch": spec.batch,
        "threads": spec.threads,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0,
        "governor": clocks.governor,
        "frequency_mhz": clocks.frequency_mhz,
        "clocks_locked": clocks.locked,
        "p99_valid": valid,
        "p99_invalid_why": why,
    }


def p99_validity(queries: int, clocks: Clocks) -> tuple[bool, str]:
    """Whether a p99 may be judged, and if not, why."""
    if not clocks.locked:
        return False, "the clocks are not locked (a shared or power-saving machine)"
    if queries < P99_QUERIES:
        return False, f"{queries} queries, at least {P99_QUERIES} are needed"
    return True, ""
