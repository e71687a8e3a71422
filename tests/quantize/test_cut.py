"""Minimum cuts whose answer can be worked out by hand, and others against trying every choice."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from edgecnn.quantize.place.cut import Choice, Crossing, fastest


def chain(convert: float, *costs: tuple[float, float | None]) -> tuple[list[Choice], list[Crossing]]:
    """image → 0 → 1 → … → output, each conversion at one price."""
    choices = [Choice(str(number), *cost) for number, cost in enumerate(costs)]
    crossings = [Crossing(None, (("0", 0.0),), convert, convert)]
    for number in range(len(costs)):
        last = number == len(costs) - 1
        readers = () if last else ((str(number + 1), 0.0),)
        crossings.append(Crossing(str(number), readers, convert, convert, leaves=last))
    return choices, crossings


def test_an_island_is_made_only_where_it_earns_its_conversions() -> None:
    assert fastest(*chain(5.0, (20.0, 9.0))) == {"0"}  # 9 + 2 * 5 = 19 < 20
    assert fastest(*chain(5.0, (20.0, 11.0))) == frozenset()
    assert fastest(*chain(5.0, (20.0, 10.0))) == frozenset()  # equally fast: float


def test_a_slow_operator_inside_an_island_stays_in_it() -> None:
    # The middle one is 4 slower in INT8, but float would cost two conversions more.
    assert fastest(*chain(5.0, (30.0, 5.0), (4.0, 8.0), (30.0, 5.0))) == {"0", "1", "2"}
    assert fastest(*chain(1.0, (30.0, 5.0), (4.0, 8.0), (30.0, 5.0))) == {"0", "2"}


def test_an_operator_without_int8_parts_two_islands() -> None:
    assert fastest(*chain(5.0, (30.0, 5.0), (4.0, None), (12.0, 4.0))) == {"0"}


def test_one_conversion_serves_all_readers() -> None:
    choices = [Choice("a", 10.0, 4.0), Choice("b", 10.0, 4.0)]
    out = [Crossing(name, (), 0.0, 0.0, leaves=True) for name in "ab"]
    together = [Crossing(None, (("a", 0.0), ("b", 0.0)), 10.0, 10.0), *out]
    assert fastest(choices, together) == {"a", "b"}  # 4 + 4 + 10 < 20
    apart = [Crossing(None, (("a", 0.0),), 10.0, 10.0), Crossing(None, (("b", 0.0),), 10.0, 10.0), *out]
    assert fastest(choices, apart) == frozenset()


def test_an_activation_that_would_have_fused_counts_against_int8_before_it() -> None:
    choices = [Choice("conv", 20.0, 8.0), Choice("act", 0.0, None)]
    for extra, expected in ((2.0, {"conv"}), (5.0, set())):
        crossings = [Crossing(None, (("conv", 0.0),), 4.0, 4.0), Crossing("conv", (("act", extra),), 4.0, 4.0)]
        assert fastest(choices, crossings) == expected


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_cheapest_of_all_choices(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(3, 8))
    names = [str(number) for number in range(count)]
    choices = [
        Choice(name, float(random.integers(0, 30)), None if random.random() < 0.2 else float(random.integers(0, 30)))
        for name in names
    ]
    crossings = []
    for maker in range(-1, count):
        later = [number for number in range(maker + 1, count) if random.random() < 0.5]
        readers = tuple((str(number), float(random.integers(0, 4))) for number in later)
        made_by = None if maker < 0 else str(maker)
        leaves = made_by is not None and random.random() < 0.3
        crossings.append(Crossing(made_by, readers, float(random.integers(0, 9)), float(random.integers(0, 9)), leaves))

    def cost(int8: frozenset[str]) -> float:
        total = 0.0
        for choice in choices:
            own = choice.int8_us if choice.name in int8 else choice.float_us
            total += np.inf if own is None else own
        for crossing in crossings:
            in_float = [name for name, _ in crossing.readers if name not in int8]
            if crossing.maker in int8:
                total += crossing.to_float_us if in_float or crossing.leaves else 0.0
                total += sum(extra for name, extra in crossing.readers if name not in int8)
            elif len(in_float) < len(crossing.readers):
                total += crossing.to_int8_us
        return total

    every = [
        frozenset(name for name, taken in zip(names, bits, strict=True) if taken)
        for bits in product((0, 1), repeat=count)
    ]
    found = fastest(choices, crossings)
    least = min(cost(one) for one in every)
    assert cost(found) == pytest.approx(least)
    cheapest = [one for one in every if cost(one) == least]
    assert all(found <= one for one in cheapest)  # the fewest in INT8 of all that are as fast
