"""Lines of NVIDIA's tegrastats, of every L4T release that edgecnn knows. What a line doesn't say is left out."""

from __future__ import annotations

import re

from edgecnn.agent.protocol import Json

GPU = re.compile(r"\bGR3D_FREQ\s+(?:\d+%)?@\[?(\d+)")
EMC = re.compile(r"\bEMC_FREQ\s+(?:\d+%)?@(\d+)")
CPUS = re.compile(r"\bCPU\s+\[([^\]]*)\]")
CPU = re.compile(r"%@(\d+)")
ZONE = re.compile(r"\b([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C")
RAIL = re.compile(r"\b((?:VDD|VIN|POM|VDDQ|CV|SYS)[A-Z0-9_]*)\s+(\d+)(?:mW)?/\d+(?:mW)?")


def parse_line(line: str) -> Json:
    """Clocks in MHz, temperatures in °C and rails in mW of one line.

    A rail's first number is the present power; an idle GPU's clock may stand without its load, or not at all.
    """
    found: Json = {}
    for key, pattern in (("gpu_mhz", GPU), ("emc_mhz", EMC)):
        if match := pattern.search(line):
            found[key] = float(match[1])
    if (cpus := CPUS.search(line)) and (clocks := [float(one) for one in CPU.findall(cpus[1])]):
        found["cpu_mhz"] = max(clocks)
    if zones := {name.lower(): float(value) for name, value in ZONE.findall(line) if float(value) > -200}:
        found["temperature_c"] = zones
    if rails := {name: float(value) for name, value in RAIL.findall(line)}:
        found["mw"] = rails
    return found
