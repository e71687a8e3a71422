"""What the board did while it was timed: the samples, cut by what was going on, and what they mean for the figures."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, median

from edgecnn.agent.protocol import Json
from edgecnn.agent.sensors import total_mw

SETTLE_S = 0.3  # power monitors average over about so long: what came before is still in them


class Monitor:
    """The sampler process and the spans of time it is asked about."""

    def __init__(self, file: Path, command: Sequence[str]) -> None:
        self.file, self.spans = file, dict[str, tuple[float, float]]()
        file.unlink(missing_ok=True)
        self.process = subprocess.Popen(list(command), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Remember when this went on."""
        start = time.monotonic()
        yield
        self.spans[name] = (start, time.monotonic())

    def ready(self, seconds: float = 10.0) -> bool:
        """Wait for the first sample; False when there is none within `seconds`."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit and self.process.poll() is None:
            if self.file.exists() and self.file.stat().st_size:
                return True
            time.sleep(0.02)
        return False

    def tells(self, what: str) -> bool:
        """Whether samples so far have this."""
        return any(what in one for one in read_samples(self.file))

    def close(self) -> list[Json]:
        """End the sampler; its samples, each with its time `t` in seconds of the monotonic clock."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return read_samples(self.file)


def sampler_command(file: Path) -> tuple[str, ...]:
    """The sampler as a process of the zipapp that runs now."""
    return (sys.executable, str(Path(sys.argv[0]).absolute()), "--sampler", str(file.absolute()))


def read_samples(file: Path) -> list[Json]:
    """The samples in a file; a last line that is being written is left out."""
    found = []
    with contextlib.suppress(OSError):
        for line in file.read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


def busy(run: Callable[[], object], seconds: float) -> int:
    """Run one thing over and over for `seconds`; how often."""
    count, limit = 0, time.monotonic() + seconds
    while time.monotonic() < limit:
        run()
        count += 1
    return count


def conditions(samples: list[Json], spans: dict[str, tuple[float, float]], inferences: dict[str, int]) -> Json:
    """What was sampled, in words of a timing's conditions.

    Args:
        spans: start and end of `idle`, of `pairs`, and of the models that ran alone for their energy.
        inferences: how many each of those did.

    Returns:
        `sampled_hz`; `gpu_mhz`, `emc_mhz`, `cpu_mhz` as {min, median, max} and `temperature_c` as {zone: {start, max}}
        during the pairs; `rails_mw`, means; `idle_mw`; `energy_mj`, per inference above idle, by model; `throttled` and
        `throttled_why`. What the board doesn't tell is None or {}.
    """
    pairs = _within(samples, spans.get("pairs"))
    seconds = spans["pairs"][1] - spans["pairs"][0] if "pairs" in spans else 0.0
    watched = [one for span in spans.values() for one in _within(samples, span)]
    why = sorted({reason for one in watched for reason in one["throttle"]})
    idle = _power(samples, spans.get("idle"))
    return {
        "sampled_hz": round(len(pairs) / seconds, 1) if seconds else 0.0,
        **{key: _clock([one[key] for one in pairs if key in one]) for key in ("gpu_mhz", "emc_mhz", "cpu_mhz")},
        "temperature_c": _temperatures(pairs),
        "rails_mw": _rails(pairs),
        "idle_mw": idle,
        "energy_mj": {
            name: _energy(samples, spans[name], idle, count) for name, count in inferences.items() if name in spans
        },
        "throttled": bool(why),
        "throttled_why": "; ".join(why),
    }


def _within(samples: list[Json], span: tuple[float, float] | None, settle_s: float = 0.0) -> list[Json]:
    if span is None:
        return []
    return [one for one in samples if span[0] + settle_s <= one["t"] <= span[1]]


def _clock(values: list[float]) -> Json | None:
    if not values:
        return None
    return {"min": min(values), "median": median(values), "max": max(values)}


def _temperatures(samples: list[Json]) -> Json:
    found: Json = {}
    for one in samples:
        for zone, value in one.get("temperature_c", {}).items():
            start = found.setdefault(zone, {"start": value, "max": value})
            start["max"] = max(start["max"], value)
    return found


def _rails(samples: list[Json]) -> dict[str, float]:
    names = {name for one in samples for name in one.get("mw", {})}
    return {
        name: round(fmean(one["mw"][name] for one in samples if name in one.get("mw", {})), 1) for name in sorted(names)
    }


def _power(samples: list[Json], span: tuple[float, float] | None) -> float | None:
    """Mean power of the whole module in mW."""
    totals = [total_mw(one["mw"]) for one in _within(samples, span, SETTLE_S) if one.get("mw")]
    known = [value for value in totals if value is not None]
    return round(fmean(known), 1) if known else None


def _energy(samples: list[Json], span: tuple[float, float], idle: float | None, count: int) -> float | None:
    power = _power(samples, span)
    if power is None or idle is None or count == 0:
        return None
    return round((power - idle) * (span[1] - span[0]) / count, 4)  # mW · s = mJ
