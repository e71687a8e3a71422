"""A CPU's clocks as Linux tells them. Standard library alone, as what samples a board must start fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Clocks:
    """CPU clocks as Linux tells them; empty and None where it doesn't. `locked`: they cannot have moved."""

    governor: str
    frequency_mhz: float | None
    locked: bool


def read_clocks(cpus: Path = CPUS) -> Clocks:
    """Governor and current frequency of the first core; locked when every core's lowest and highest frequency agree."""
    folders = sorted(cpus.glob("cpu[0-9]*/cpufreq"))
    governor, current = (
        _read(folders[0] / name) if folders else "" for name in ("scaling_governor", "scaling_cur_freq")
    )
    limits = [(_read(folder / "scaling_min_freq"), _read(folder / "scaling_max_freq")) for folder in folders]
    locked = bool(limits) and all(low and low == high for low, high in limits)
    return Clocks(governor, int(current) / 1000 if current.isdigit() else None, locked)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
