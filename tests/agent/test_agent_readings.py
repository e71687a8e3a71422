"""What is read on a board and made of it: NVIDIA's programs' words, samples, and when a timing may be used."""

from __future__ import annotations

from typing import Any

import pytest
from orin import TEGRASTATS

from edgecnn.agent.monitor import conditions
from edgecnn.agent.power import parse_current, parse_modes
from edgecnn.agent.sensors import parse_tegrastats as parse_line
from edgecnn.agent.timing import Plan, invalid
from edgecnn.recipe.recipe import BenchSpec


def test_energy_is_of_what_ran_above_idle() -> None:
    """10 W while it runs, 4 W idle: 6 W for 2 s in 300 inferences are 40 mJ each."""
    samples = [{"t": t / 10, "mw": {"VDD_IN": 4000.0 if t < 20 else 10_000.0}, "throttle": []} for t in range(60)]
    spans = {"idle": (0.0, 1.95), "pairs": (2.0, 4.0), "first": (4.0, 6.0)}
    found = conditions(samples, spans, {"first": 300})
    assert (found["idle_mw"], found["energy_mj"]) == (4000.0, {"first": pytest.approx(40.0)})
    assert found["sampled_hz"] == pytest.approx(10, abs=1)
    nothing = conditions([{"t": 1.0, "throttle": []}], {"pairs": (0.0, 2.0)}, {})
    assert (nothing["idle_mw"], nothing["energy_mj"], nothing["gpu_mhz"]) == (None, {}, None)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (TEGRASTATS, {"gpu_mhz": 611.0, "emc_mhz": 2133.0, "cpu_mhz": 1510.0}),
        (
            "GR3D_FREQ 14%@[407,407] CPU@77.281C tj@77.5C",
            {"gpu_mhz": 407.0, "temperature_c": {"cpu": 77.281, "tj": 77.5}},
        ),
        ("VDD_GPU_SOC 3150mW/2971mW VIN_SYS_5V0 4968mW/5048mW", {"mw": {"VDD_GPU_SOC": 3150.0, "VIN_SYS_5V0": 4968.0}}),
        ("GR3D_FREQ 35%", {}),
        ("GR3D_FREQ 0%@318 POM_5V_GPU 554/600", {"gpu_mhz": 318.0, "mw": {"POM_5V_GPU": 554.0}}),
        ("GR3D_FREQ @[314,314,314]", {"gpu_mhz": 314.0}),
        (
            "GR3D_FREQ 87%@[1574,1574,1574] cpu@58.25C/61.75C VDD_GPU 37939mW/8660mW/37939mW VIN 124486mW/36487mW",
            {"gpu_mhz": 1574.0, "temperature_c": {"cpu": 58.25}, "mw": {"VDD_GPU": 37939.0, "VIN": 124486.0}},
        ),
    ],
)  # fmt: skip
def test_tegrastats_lines(line: str, found: dict[str, Any]) -> None:
    parsed = parse_line(line)
    assert {key: parsed.get(key) for key in found} == found
    if line != TEGRASTATS:
        assert set(parsed) == set(found)


def test_nvpmodel_answers() -> None:
    mode = parse_current("NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN\n0\n")
    assert mode is not None
    assert (mode.name, mode.number) == ("MAXN", 0)
    assert parse_current("NVPM ERROR: no permission") is None
    printed = "NVPM VERB: POWER_MODEL: ID=0 NAME=15W\nNVPM VERB: POWER_MODEL: ID=1 NAME=7W\n"
    assert [(one.name, one.number) for one in parse_modes(printed)] == [("15W", 0), ("7W", 1)]


@pytest.mark.parametrize(
    ("profile", "queries", "seconds", "valid"),
    [
        ("recipe", 200, 3.0, True),
        ("recipe", 199, 3.0, False),
        ("recipe", 200, 2.9, False),
        ("quick", 1024, 10.0, True),
        ("quick", 1023, 30.0, False),
        ("quick", 5000, 9.0, False),
        ("mlperf", 100_000, 600.0, True),
        ("mlperf", 100_000, 599.0, False),
    ],
)
def test_a_run_too_short_for_its_profile_is_not_valid(profile: str, queries: int, seconds: float, valid: bool) -> None:
    found = {"throttled": False, "watched": True, "seconds": seconds}
    plan = Plan.of(BenchSpec().model_dump())
    why = invalid(plan, profile, queries, found)
    assert "is not known" in invalid(plan, profile, queries, {**found, "watched": False})
    assert (why == "") is valid, why
    assert valid or why.startswith(f"{queries} queries in {seconds:.1f} s, at least ")
