"""Clocks, temperatures, power rails and throttling of a board, without root.

A Jetson tells them in the kernel's files, and the rest by NVIDIA's tegrastats; a desktop GPU by its driver's library.
Rails are INA3221 or INA238 monitors under hwmon; the total is VDD_IN (Orin Nano, NX) or VIN (Thor), on an AGX Orin the
sum of its rails. What can't be read is left out: missing is not 0.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path

from edgecnn.agent.protocol import Json
from edgecnn.measure.clocks import read_clocks

GPU_DEVFREQ = re.compile(r"gpu|ga10b|gv11b|gp10b|gb10b", re.IGNORECASE)
MONITORS = ("ina3221", "ina3221x", "ina238")
TOTALS = ("VDD_IN", "VIN")
EMC_CLOCKS = ("sys/kernel/debug/bpmp/debug/clk/emc/rate", "sys/kernel/debug/clk/emc/clk_rate")
GPU_NODES = re.compile(r"/dev/(nvhost-(ctrl-)?gpu|nvgpu/|nvidia\d)")
LIBRARY = "libnvidia-ml.so.1"
GRAPHICS, MEMORY = 0, 2  # nvmlClockType_t
# nvmlClocksEventReasons that slow a GPU down against its clocks' setting; a power cap by software is how it works.
SLOWDOWNS = {0x8: "hardware slowdown", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown",
             0x80: "power brake slowdown"}  # fmt: skip
TEGRA_GPU = re.compile(r"\bGR3D_FREQ\s+(?:\d+%)?@\[?(\d+)")
TEGRA_EMC = re.compile(r"\bEMC_FREQ\s+(?:\d+%)?@(\d+)")
TEGRA_CPUS = re.compile(r"\bCPU\s+\[([^\]]*)\]")
TEGRA_CPU = re.compile(r"%@(\d+)")
TEGRA_ZONE = re.compile(r"\b([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C")
TEGRA_RAIL = re.compile(r"\b((?:VDD|VIN|POM|VDDQ|CV|SYS)[A-Z0-9_]*)\s+(\d+)(?:mW)?/\d+(?:mW)?")


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


class Nvml:
    """The first GPU of the driver.

    Raises:
        OSError: there is no driver, or it has no GPU.
    """

    def __init__(self) -> None:
        self.library = ctypes.CDLL(LIBRARY)
        if self.library.nvmlInit_v2() != 0:
            raise OSError("the NVIDIA driver does not answer")
        self.gpu = ctypes.c_void_p()
        if self.library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self.gpu)) != 0:
            raise OSError("the NVIDIA driver has no GPU")

    def read(self) -> Json:
        """One sample; what this GPU doesn't tell is left out."""
        found: Json = {}
        for key, kind in (("gpu_mhz", GRAPHICS), ("emc_mhz", MEMORY)):
            if (value := self._ask("nvmlDeviceGetClockInfo", kind)) is not None:
                found[key] = float(value)
        if (value := self._ask("nvmlDeviceGetTemperature", 0)) is not None:
            found["temperature_c"] = {"gpu": float(value)}
        if (value := self._ask("nvmlDeviceGetPowerUsage")) is not None:
            found["mw"] = {"GPU": float(value)}
        reasons = self._reasons()
        found["throttle"] = [name for bit, name in SLOWDOWNS.items() if reasons & bit]
        return found

    def _ask(self, function: str, *arguments: int) -> int | None:
        value = ctypes.c_uint()
        status = getattr(self.library, function)(self.gpu, *arguments, ctypes.byref(value))
        return value.value if status == 0 else None

    def _reasons(self) -> int:
        value = ctypes.c_ulonglong()
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            function = getattr(self.library, name, None)  # the first since driver 535
            if function is not None and function(self.gpu, ctypes.byref(value)) == 0:
                return value.value
        return 0


def parse_tegrastats(line: str) -> Json:
    """Clocks in MHz, temperatures in °C and rails in mW of one line of tegrastats, of every L4T release known here.

    A rail's first number is the present power; an idle GPU's clock may stand without its load, or not at all.
    """
    found: Json = {}
    for key, pattern in (("gpu_mhz", TEGRA_GPU), ("emc_mhz", TEGRA_EMC)):
        if match := pattern.search(line):
            found[key] = float(match[1])
    if (cpus := TEGRA_CPUS.search(line)) and (clocks := [float(one) for one in TEGRA_CPU.findall(cpus[1])]):
        found["cpu_mhz"] = max(clocks)
    if zones := {name.lower(): float(value) for name, value in TEGRA_ZONE.findall(line) if float(value) > -200}:
        found["temperature_c"] = zones
    if rails := {name: float(value) for name, value in TEGRA_RAIL.findall(line)}:
        found["mw"] = rails
    return found
