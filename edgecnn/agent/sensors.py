"""Clocks, temperatures, power rails and throttling of a board, out of the kernel's files, without root.

Rails are INA3221 or INA238 monitors under hwmon; the total is VDD_IN (Orin Nano, NX) or VIN (Thor), on an AGX Orin the
sum of its rails. What can't be read is left out: missing is not 0.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from edgecnn.measure.clocks import read_clocks

GPU_DEVFREQ = re.compile(r"gpu|ga10b|gv11b|gp10b|gb10b", re.IGNORECASE)
MONITORS = ("ina3221", "ina3221x", "ina238")
TOTALS = ("VDD_IN", "VIN")
EMC_CLOCKS = ("sys/kernel/debug/bpmp/debug/clk/emc/rate", "sys/kernel/debug/clk/emc/clk_rate")
GPU_NODES = re.compile(r"/dev/(nvhost-(ctrl-)?gpu|nvgpu/|nvidia\d)")


@dataclass(frozen=True)
class Rail:
    """One monitored supply: its label and the files of its voltage (mV) and current (mA), or of its power (µW)."""

    name: str
    volts: Path | None
    amperes: Path | None
    watts: Path | None = None

    def mw(self) -> float | None:
        """Its power in mW, None when it can't be read."""
        if self.watts is not None:
            power = number(self.watts)
            return None if power is None else power / 1000
        volts, amperes = (number(path) if path else None for path in (self.volts, self.amperes))
        return None if volts is None or amperes is None else volts * amperes / 1000


def find_rails(root: Path) -> tuple[Rail, ...]:
    """The supplies that can be read here."""
    rails = []
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if text(folder / "name") not in MONITORS:
            continue
        for label in sorted(folder.glob("in*_label")):
            channel = label.name.removeprefix("in").removesuffix("_label")
            volts, amperes = folder / f"in{channel}_input", folder / f"curr{channel}_input"
            # The channel that sums the others has no current; one that is not connected is called NC.
            if volts.exists() and amperes.exists() and text(label) != "NC":
                rails.append(Rail(text(label), volts, amperes))
        if (folder / "power1_input").exists():
            rails.append(Rail(text(folder / "label") or "VIN", None, None, folder / "power1_input"))
    return tuple(rails)


def rail_names(root: Path) -> list[str]:
    """Their labels."""
    return [rail.name for rail in find_rails(root)]


def total_mw(rails: dict[str, float]) -> float | None:
    """The whole module's power: its input rail, else the sum; None without rails."""
    for name in TOTALS:
        if name in rails:
            return rails[name]
    return sum(rails.values()) if rails else None


def find_gpu(root: Path) -> Path | None:
    """The devfreq folder of the GPU."""
    folders = sorted((root / "sys/class/devfreq").glob("*"))
    return next((folder for folder in folders if GPU_DEVFREQ.search(folder.name)), None)


def temperatures(root: Path) -> dict[str, float]:
    """°C by zone, as `tj`, `gpu`; a zone whose part is switched off is left out."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        value = number(zone / "temp")
        if value is not None and value > -200_000:  # -256 °C: no reading
            found[text(zone / "type").removesuffix("-thermal").removesuffix("-therm") or zone.name] = value / 1000
    return found


def alerts(root: Path) -> tuple[Path, ...]:
    """Cooling devices that the kernel engages when it slows the chip down for its heat: files of their state."""
    return tuple(
        device / "cur_state"
        for device in sorted((root / "sys/class/thermal").glob("cooling_device*"))
        if text(device / "type").endswith("throttle-alert")
    )


def overcurrents(root: Path) -> tuple[Path, ...]:
    """Files that count how often the supply's limit slowed the chip down."""
    return tuple(sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")))


def clocks_locked(root: Path) -> bool:
    """Whether neither the CPU's clocks nor, where it tells them, the GPU's can move."""
    if not read_clocks(root / "sys/devices/system/cpu").locked:
        return False
    gpu = find_gpu(root)
    if gpu is None:
        return True
    low, high = (number(gpu / name) for name in ("min_freq", "max_freq"))
    return low is not None and low == high


def gpu_users() -> list[dict[str, object]]:
    """Other processes that have a GPU's device open: pid and name, as far as this user may see."""
    own, found = {os.getpid(), os.getppid()}, []
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) in own:
            continue
        with contextlib.suppress(OSError):
            opened = (os.readlink(one) for one in (folder / "fd").iterdir())
            if any(GPU_NODES.match(path) for path in opened):
                found.append({"pid": int(folder.name), "name": text(folder / "comm")})
    return sorted(found, key=lambda one: int(str(one["pid"])))


def number(path: Path) -> float | None:
    """The number in a file; None when it can't be read: a part that is switched off answers with an error."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def text(path: Path) -> str:
    """The text in a file, '' when it can't be read."""
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
