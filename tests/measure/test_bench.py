"""Interleaved timing on a clock that a test moves by hand."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecnn.measure.bench import Clocks, Times, conditions, p99_validity, percentiles, read_clocks, time_pairs
from edgecnn.recipe.recipe import BenchSpec


class Machine:
    """A clock in nanoseconds that only the timed calls move, and the record of who ran when."""

    def __init__(self) -> None:
        self.now, self.ran = 0, ""

    def clock(self) -> int:
        return self.now

    def call(self, name: str, milliseconds: float) -> Callable[[], None]:
        def run() -> None:
            self.ran += name
            self.now += round(milliseconds * 1e6)

        return run


def never(first: Times, second: Times) -> bool:
    return False


def always(first: Times, second: Times) -> bool:
    return True


def spec(**changes: float) -> BenchSpec:
    return BenchSpec.model_validate(
        {"warmup_ms": 1, "min_pairs": 4, "min_seconds": 0.001, "max_seconds": 10.0, **changes}
    )


def test_the_order_is_a_b_b_a_and_times_go_to_their_own() -> None:
    machine = Machine()
    times = time_pairs(machine.call("a", 2), machine.call("b", 5), spec(), never, clock=machine.clock)
    assert machine.ran == "a" + "b" + "abba" * 2  # one warm-up call each, then four pairs
    np.testing.assert_array_equal(times.first_ms, [2.0] * 4)
    np.testing.assert_array_equal(times.second_ms, [5.0] * 4)


def test_a_device_with_a_clock_of_its_own() -> None:
    """Both must have one: a launch that is in one time and not in the other compares nothing."""
    machine = Machine()

    def own(name: str, milliseconds: float) -> Callable[[], float]:
        run = machine.call(name, 10 * milliseconds)
        return lambda: run() or milliseconds

    both = time_pairs(own("a", 2), own("b", 5), spec(), never, clock=machine.clock)
    assert (both.first_ms.tolist(), both.second_ms.tolist()) == ([2.0] * 4, [5.0] * 4)
    assert both.conditions["timer"] == "device"
    mixed = time_pairs(own("a", 2), machine.call("b", 5), spec(), never, clock=machine.clock)
    assert (mixed.first_ms.tolist(), mixed.second_ms.tolist()) == ([20.0] * 4, [5.0] * 4)
    assert mixed.conditions["timer"] == "host"


def test_each_is_warmed_up_for_its_time() -> None:
    machine = Machine()
    time_pairs(machine.call("a", 10), machine.call("b", 50), spec(warmup_ms=200), never, clock=machine.clock)
    assert machine.ran.startswith("a" * 20 + "b" * 4 + "ab")


def test_until_both_the_count_and_the_time_are_reached() -> None:
    machine = Machine()
    times = time_pairs(machine.call("a", 1), machine.call("b", 1), spec(min_seconds=1.0), never, clock=machine.clock)
    assert len(times.first_ms) == 500  # 2 ms a pair: the time decides
    machine = Machine()
    times = time_pairs(machine.call("a", 1), machine.call("b", 1), spec(min_pairs=700), never, clock=machine.clock)
    assert len(times.first_ms) == 700  # the count decides


def test_undecided_pairs_are_doubled_once() -> None:
    machine, asked = Machine(), []

    def undecided(first: Times, second: Times) -> bool:
        asked.append(len(first))
        machine.now += 60_000_000_000  # deciding takes a minute, which is no time of the pairs
        return True

    times = time_pairs(machine.call("a", 1), machine.call("b", 1), spec(min_pairs=30), undecided, clock=machine.clock)
    assert asked == [30]
    assert len(times.first_ms) == len(times.second_ms) == 60
    assert times.conditions["pairs"] == 60
    assert times.conditions["seconds"] == pytest.approx(0.12)


def test_max_seconds_ends_it_in_any_case() -> None:
    machine = Machine()
    slow = spec(min_pairs=200, max_seconds=3.0)
    times = time_pairs(machine.call("a", 500), machine.call("b", 500), slow, always, clock=machine.clock)
    assert len(times.first_ms) == 3


def test_garbage_collection_rests_while_timing_and_comes_back() -> None:
    machine, seen = Machine(), set()
    tick = machine.call("a", 1)

    def first() -> None:
        seen.add(gc.isenabled())
        tick()

    time_pairs(first, machine.call("b", 1), spec(warmup_ms=1, min_pairs=2), never, clock=machine.clock)
    assert seen == {True, False}  # on in the warm-up, off in the pairs
    assert gc.isenabled()


def test_percentiles() -> None:
    found = percentiles(np.arange(101, dtype=np.float64))
    assert found == {"p5_ms": 5.0, "p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0}


@pytest.mark.parametrize(
    ("queries", "locked", "valid", "why"),
    [
        (5000, False, False, "the clocks are not locked"),
        (1023, True, False, "1023 queries, at least 1024"),
        (1024, True, True, ""),
    ],
)
def test_p99_needs_locked_clocks_and_enough_queries(queries: int, locked: bool, valid: bool, why: str) -> None:
    found, words = p99_validity(queries, Clocks("performance", 3000.0, locked))
    assert found is valid
    assert words.startswith(why)
    assert bool(words) is not valid


def machine_with_clocks(root: Path, highest: str) -> Path:
    for number in range(2):
        folder = root / f"cpu{number}" / "cpufreq"
        folder.mkdir(parents=True)
        for name, text in (
            ("scaling_governor", "performance"), ("scaling_cur_freq", "2600000"), ("scaling_min_freq", "2600000"),
            ("scaling_max_freq", highest if number else "2600000"),
        ):  # fmt: skip
            (folder / name).write_text(text + "\n")
    return root


def test_clocks_are_read_back(tmp_path: Path) -> None:
    assert read_clocks(machine_with_clocks(tmp_path / "locked", "2600000")) == Clocks("performance", 2600.0, True)
    assert read_clocks(machine_with_clocks(tmp_path / "free", "3500000")) == Clocks("performance", 2600.0, False)
    assert read_clocks(tmp_path / "none") == Clocks("", None, False)


def test_conditions_travel_with_the_numbers(tmp_path: Path) -> None:
    found = conditions(spec(batch=2, threads=3), 2000, machine_with_clocks(tmp_path, "2600000"))
    assert found["p99_valid"] is True
    assert (found["batch"], found["threads"], found["governor"]) == (2, 3, "performance")
    assert found["when"].endswith("+00:00")
    assert found["load_average"] >= 0
