"""Time two models side by side on the board, and say under what conditions.

Three times of each, all by the host's clock around the call: the engine alone on inputs in its memory; with its
inputs and outputs moved; end to end, from uint8 images to outputs. The verdict is of the first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn import bench
from edgecnn.agent import files, sensors
from edgecnn.agent.monitor import Monitor, busy, conditions, sampler_command
from edgecnn.agent.power import read_mode
from edgecnn.agent.programs import sys_root
from edgecnn.agent.protocol import Cache, Json, Refusal
from edgecnn.backends import Runner, load_backend
from edgecnn.backends.timing_input import feeds, undecided_by
from edgecnn.feeding import Feeding

MIN_QUERIES = 1024
PROFILES = {"quick": 10.0, "mlperf": 600.0}  # seconds at least; MLPerf's single stream wants ten minutes
CPUS = "sys/devices/system/cpu"
SIDE_SHARE = 0.1  # of the pairs and the time: what the times with transfers and end to end get, each


@dataclass(frozen=True)
class Plan:
    """How long and on what to measure: what the recipe's `bench` section says, raised to what the profile wants."""

    batch: int
    threads: int
    warmup_ms: int
    min_pairs: int
    min_seconds: float
    max_seconds: float

    @staticmethod
    def of(spec: Json, profile: str | None) -> Plan:
        """From the job.

        Raises:
            Refusal: no such profile.
        """
        plan = Plan(**{name: spec[name] for name in Plan.__dataclass_fields__})
        if profile is None or profile == "recipe":
            return plan
        if profile not in PROFILES:
            raise Refusal("refused", f"no timing profile `{profile}`", f"valid: {', '.join(PROFILES)}")
        seconds = max(plan.min_seconds, PROFILES[profile])
        most = max(plan.max_seconds, 2 * seconds)
        return replace(plan, min_pairs=max(plan.min_pairs, MIN_QUERIES), min_seconds=seconds, max_seconds=most)

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
    plan, root = Plan.of(job["spec"], job.get("profile")), sys_root()
    backend = load_backend(job["backend"])
    models = {name: backend.load(files.checked(cache, job[name]), threads=plan.threads) for name in ("first", "second")}
    users = sensors.gpu_users()
    inputs = {name: feeds(runner.inputs, plan.batch, cache.file(job[name])) for name, runner in models.items()}
    engine = {name: runner.prepared(inputs[name]) for name, runner in models.items()}
    monitor = Monitor(folder / "samples.jsonl", sampler_command(folder / "samples.jsonl"))
    try:
        sampled = monitor.ready()
        with monitor.span("idle"):
            time.sleep(plan.power_seconds if sampled and monitor.tells("mw") else 0.0)
        with monitor.span("pairs"):
            times = bench.time_pairs(engine["first"], engine["second"], plan, undecided_by(job["until"]))
        counts = {}
        for name, run in engine.items() if monitor.tells("mw") else ():
            with monitor.span(name):
                counts[name] = busy(run, plan.power_seconds) * plan.batch
        sides = _sides(models, inputs, job, plan)
    finally:
        samples = monitor.close()
    found = conditions(samples, monitor.spans, counts)
    queries = len(times.first_ms)
    out = folder / "out"
    out.mkdir(mode=0o700, exist_ok=True)
    arrays = {"first_ms": times.first_ms, "second_ms": times.second_ms, **sides}
    with (out / "pairs.npz").open("wb") as file:
        np.savez(file, **arrays)
    why = invalid(plan, queries, times.conditions["seconds"], found)
    mode = read_mode()
    taken = bench.conditions(plan, queries, root / CPUS)
    locked = sensors.clocks_locked(root)  # the CPU's and, where it tells them, the GPU's
    p99_valid, p99_why = bench.p99_validity(queries, replace(bench.read_clocks(root / CPUS), locked=locked))
    return {
        "files": [files.entry(out / "pairs.npz")],
        "conditions": {
            **times.conditions, **taken, **found, "clocks_locked": locked, "p99_valid": p99_valid and not why,
            "p99_invalid_why": p99_why or "; ".join(why), "backend": backend.version(),
            "how": {name: runner.how for name, runner in models.items()}, "profile": job.get("profile") or "recipe",
            "power_mode": mode.name if mode else "", "power": _power(folder), "gpu_users": users,
            "valid": not why, "invalid_why": "; ".join(why),
        },
    }  # fmt: skip


def invalid(plan: Plan, queries: int, seconds: float, found: Json) -> list[str]:
    """Why these times may not be used, if they may not."""
    why = []
    if found["throttled"]:
        why.append(f"the board slowed itself down: {found['throttled_why']}")
    if queries < plan.min_pairs or seconds < plan.min_seconds:
        why.append(
            f"{queries} queries in {seconds:.1f} s, at least {plan.min_pairs} in {plan.min_seconds:g} s were asked"
        )
    return why


def _sides(models: dict[str, Runner], inputs: dict[str, Any], job: Json, plan: Plan) -> dict[str, Any]:
    """The times with transfers and end to end."""
    feed = Feeding.of(job["io"]) if job.get("io") else None
    found: dict[str, Any] = {}
    for kind in ("io", "e2e"):
        calls = []
        for name, runner in models.items():
            call = _call(runner, inputs[name])
            if kind == "e2e" and feed is not None:
                call = _from_images(runner, feed, job["io"], plan.batch)
            calls.append(call)
        times = bench.time_pairs(calls[0], calls[1], plan.side(), lambda first, second: False)
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
