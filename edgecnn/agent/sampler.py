"""A process that samples the board while another is timed: it must not take that one's interpreter lock.

It appends one JSON line a sample to a file, with the time of the clock that all processes share, until its stdin ends.
Sources: the kernel's files; the driver of a desktop GPU; tegrastats for what neither tells.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

from edgecnn.agent import sensors
from edgecnn.agent.power import find, sys_root
from edgecnn.agent.protocol import Json

INTERVAL_S = 0.08  # 12.5 a second: 10 are promised
STDIN = 0


def sample(file: Path) -> int:
    """Sample into `file` until stdin ends."""
    root = sys_root()
    files = _Files(root)
    more = _tegrastats() if files.lacks else None
    driver = _driver() if more is None and files.gpu is None else None
    try:
        with file.open("w", buffering=1) as out:
            upcoming = time.monotonic()
            while not _ended(upcoming - time.monotonic()):
                upcoming = max(upcoming + INTERVAL_S, time.monotonic())
                found = {"t": time.monotonic(), **files.read()}
                for other in (driver.read() if driver else {}, more.read() if more else {}):
                    found = {**other, **found, "throttle": [*other.get("throttle", ()), *found["throttle"]]}
                out.write(json.dumps(found) + "\n")
    finally:
        if more is not None:
            more.close()
    return 0


def _ended(seconds: float) -> bool:
    """Whether stdin ends within `seconds`."""
    ready, _, _ = select.select([STDIN], [], [], max(0.0, seconds))
    return bool(ready) and not os.read(STDIN, 4096)


class _Files:
    """What the kernel's files tell."""

    def __init__(self, root: Path) -> None:
        self.root, self.rails, self.gpu = root, sensors.find_rails(root), sensors.find_gpu(root)
        self.alerts, self.overcurrents = sensors.alerts(root), sensors.overcurrents(root)
        self.cpus = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        self.counted = self._count()
        self.lacks = not self.rails or self.gpu is None

    def read(self) -> Json:
        """One sample."""
        found: Json = {"throttle": []}
        if self.gpu is not None and (hertz := sensors.number(self.gpu / "cur_freq")) is not None:
            found["gpu_mhz"] = hertz / 1e6
            lowest = sensors.number(self.gpu / "min_freq")
            if lowest and hertz < 0.97 * lowest:
                found["throttle"].append(f"GPU at {hertz / 1e6:.0f} MHz, its lowest is set to {lowest / 1e6:.0f}")
        if (hertz := next(filter(None, map(sensors.number, self._emc())), None)) is not None:
            found["emc_mhz"] = hertz / 1e6
        if clocks := [value for one in self.cpus if (value := sensors.number(one)) is not None]:
            found["cpu_mhz"] = max(clocks) / 1000
        if zones := sensors.temperatures(self.root):
            found["temperature_c"] = zones
        if rails := {rail.name: value for rail in self.rails if (value := rail.mw()) is not None}:
            found["mw"] = rails
        for alert in self.alerts:
            if sensors.number(alert):
                found["throttle"].append(sensors.text(alert.with_name("type")))
        if (counted := self._count()) > self.counted:
            found["throttle"].append("the supply's current limit")
            self.counted = counted
        return found

    def _emc(self) -> list[Path]:
        return [self.root / name for name in sensors.EMC_CLOCKS]

    def _count(self) -> float:
        return sum(sensors.number(path) or 0.0 for path in self.overcurrents)


class _Tegrastats:
    """tegrastats in the background; its newest line is a sample."""

    def __init__(self, program: str) -> None:
        self.process = subprocess.Popen(
            [program, "--interval", str(int(INTERVAL_S * 1000))], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.rest = b""

    def read(self) -> Json:
        """What its newest line says; {} where there is no new one, as a line is one sample only."""
        assert self.process.stdout is not None
        content = self.process.stdout.read() or b""
        *lines, self.rest = (self.rest + content).split(b"\n")
        return sensors.parse_tegrastats(lines[-1].decode(errors="replace")) if lines else {}

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)


def _tegrastats() -> _Tegrastats | None:
    program = find("tegrastats")
    return _Tegrastats(program) if program else None


def _driver() -> sensors.Nvml | None:
    try:
        return sensors.Nvml()
    except (OSError, AttributeError):
        return None


if __name__ == "__main__":
    sys.exit(sample(Path(sys.argv[1])))
