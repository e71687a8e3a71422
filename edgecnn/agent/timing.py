"""Time two models side by side on the board, and say under what conditions.

Three times of each: the engine alone on inputs in its memory, by the GPU's own clock where there is one; with its
inputs and outputs moved; end to end, from uint8 images to outputs. The last two are by the host's clock around the
call. The verdict is of the first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.agent import files, sensors
from edgecnn.agent.monitor import Monitor, busy, conditions, sampler_command
from edgecnn.agent.power import read_mode, sys_root
from edgecnn.agent.protocol import Cache, Json, Refusal
from edgecnn.backends import Runner, load_backend
from edgecnn.measure import bench
from edgecnn.measure.clocks import read_clocks
from edgecnn.measure.feeding import Feeding
from edgecnn.measure.timing_input import feeds, undecided_by

MIN_QUERIES = 1024
PROFILES = {"quick": 10.0, "mlperf": 600.0}  # seconds at least; MLPerf's single stream wants ten minutes
NAMES = ("first", "second")
CPUS = "sys/devices/system/cpu"
BLIND_S = 2.0  # without a sample until the end of the pairs
SIDE_SHARE = 0.1  # of the pairs and the time: what the times with transfers and end to end get, each


@dataclass(frozen=True)
class Plan:
    """How long and on what to measure: the recipe's `bench` section, which the host has raised to its profile."""

    batch: int
    threads: int
    warmup_ms: int
    min_pairs: int
    min_seconds: float
    max_seconds: float

    @staticmethod
    def of(spec: Json) -> Plan:
        """From the job; what it holds besides is the host's."""
        return Plan(**{name: spec[name] for name in Plan.__dataclass_fields__})

    def side(self) -> Plan:
        """For the times that no verdict rests on."""
        seconds = min(self.min_seconds * SIDE_SHARE, 10.0)
        pairs = max(64, int(self.min_pairs * SIDE_SHARE))
        return replace(self, warmup_ms=1, min_pairs=pairs, min_seconds=seconds, max_seconds=3 * seconds + 1.0)

    @property
    def power_seconds(self) -> float:
        """How long the board's power is averaged, idle and under each model alone."""
        return min(max(self.min_seconds / 5, 0.6), 5.0)


def time_pairs(cache: Cache, folder: Path, job: Json) -> Json:
    """Time `first` and `second`, digests; write `out/pairs.npz`, milliseconds of each pair.

    Args:
        job: `backend`, `spec`, `profile`, `until`; `io`, the models' contract, where they take images.

    Returns:
        `files`, with pairs.npz: `first_ms` and `second_ms`, the same with `_io_ms` and `_e2e_ms`; and `conditions`.
    """
    plan, profile, root = Plan.of(job["spec"]), job.get("profile") or "recipe", sys_root()
    if profile not in ("recipe", *PROFILES):
        raise Refusal("refused", f"there is no timing profile `{profile}`", f"valid: {', '.join(PROFILES)}")
    backend = load_backend(job["backend"])
    paths = [files.checked(cache, job[name]) for name in NAMES]
    runners = [backend.load(path, threads=plan.threads) for path in paths]
    samples = folder / "samples.jsonl"
    measured = measure(runners, paths, plan, job["until"], Monitor(samples, sampler_command(samples)), job.get("io"))
    why = invalid(plan, profile, len(measured.arrays["first_ms"]), measured.conditions)
    out = folder / "out"
    out.mkdir(mode=0o700, exist_ok=True)
    with (out / "pairs.npz").open("wb") as file:
        np.savez(file, **measured.arrays)
    found, queries, mode = measured.conditions, len(measured.arrays["first_ms"]), read_mode()
    taken = bench.conditions(plan, queries, root / CPUS)
    locked = sensors.clocks_locked(root)  # the CPU's and, where it tells them, the GPU's
    p99_valid, p99_why = bench.p99_validity(queries, replace(read_clocks(root / CPUS), locked=locked))
    return {
        "files": [files.entry(out / "pairs.npz")],
        "conditions": {
            **taken, **found, "clocks_locked": locked, "p99_valid": p99_valid and not why,
            "p99_invalid_why": p99_why or why, "backend": backend.version(),
            "profile": profile, "valid": not why, "invalid_why": why, "power_mode": mode.name if mode else "",
            "power": _power(folder),
        },
    }  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Milliseconds by name, and what was found out while they were taken."""

    arrays: dict[str, Any]
    conditions: Json


def measure(
    runners: Sequence[Runner], paths: Sequence[Path], plan: Plan, until: str, monitor: Monitor, io: Json | None = None
) -> Measured:
    """Time two loaded models under a monitor, which is closed at the end.

    Args:
        paths: the models' files, for errors. io: their contract, where they take images.
    """
    users = [one for one in sensors.gpu_users() if one["pid"] != monitor.process.pid]
    try:
        inputs = [feeds(runner.inputs, plan.batch, path) for runner, path in zip(runners, paths, strict=True)]
        engines = [runner.prepared(arrays) for runner, arrays in zip(runners, inputs, strict=True)]
        powered = monitor.ready() and monitor.tells("mw")
        with monitor.span("idle"):
            time.sleep(plan.power_seconds if powered else 0.0)
        with monitor.span("pairs"):
            times = bench.time_pairs(engines[0], engines[1], plan, undecided_by(until))
        counts = {}
        for name, run in zip(NAMES, engines, strict=True) if powered else ():
            with monitor.span(name):
                counts[name] = busy(run, plan.power_seconds) * plan.batch
        sides = _sides(runners, inputs, plan, io)
    finally:
        samples = monitor.close()
    found = conditions(samples, monitor.spans, counts)
    end = monitor.spans["pairs"][1]
    more = {
        "how": {name: runner.how for name, runner in zip(NAMES, runners, strict=True)}, "gpu_users": users,
        "watched": bool(samples) and samples[-1]["t"] >= end - BLIND_S,
    }  # fmt: skip
    arrays = {"first_ms": times.first_ms, "second_ms": times.second_ms, **sides}
    return Measured(arrays, {**times.conditions, **found, **more})


def invalid(plan: Plan, profile: str, queries: int, found: Json) -> str:
    """Why these times may not be used; '' where they may."""
    floor_s, seconds = PROFILES.get(profile, 0.0), found["seconds"]
    least, least_s = (max(plan.min_pairs, MIN_QUERIES) if floor_s else plan.min_pairs), max(plan.min_seconds, floor_s)
    why = []
    if found["throttled"]:
        why.append(f"the board slowed itself down: {found['throttled_why']}")
    if not found["watched"]:
        why.append("what watches the board ended before the run: whether it slowed itself down is not known")
    if queries < least or seconds < least_s:
        why.append(f"{queries} queries in {seconds:.1f} s, at least {least} in {least_s:g} s were wanted")
    return "; ".join(why)


def _sides(runners: Sequence[Runner], inputs: Sequence[Any], plan: Plan, io: Json | None) -> dict[str, Any]:
    """The times with transfers and end to end."""
    moved = [_call(runner, arrays) for runner, arrays in zip(runners, inputs, strict=True)]
    kinds = {"io": moved}
    if io:  # without a contract nobody knows how an image becomes the input
        kinds["e2e"] = [_from_images(runner, Feeding.of(io), io, plan.batch) for runner in runners]
    found: dict[str, Any] = {}
    for kind, (first, second) in kinds.items():
        times = bench.time_pairs(first, second, plan.side(), lambda *_: False)
        found |= {f"first_{kind}_ms": times.first_ms, f"second_{kind}_ms": times.second_ms}
    return found


def _call(runner: Runner, arrays: Any) -> Callable[[], None]:
    def run() -> None:
        runner(arrays)

    return run


def _from_images(runner: Runner, feed: Feeding, io: Json, batch: int) -> Callable[[], None]:
    """From uint8 images at model size, in memory, to outputs."""
    height, width = io["input"]["size"]
    shape = (batch, height, width, io["input"]["channels"])
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def run() -> None:
        runner(feed(images))

    return run


def _power(folder: Path) -> Json:
    """What the keeper set for this job."""
    try:
        content: Json = json.loads((folder / "power.json").read_text())
    except (OSError, ValueError):
        return {}
    return content
