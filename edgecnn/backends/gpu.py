"""Which NVIDIA GPUs are here, asked of nvidia-smi or read off a Jetson's device tree. Loads no CUDA."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

QUERY = ("--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader,nounits")
DEVICE_TREE = Path("/proc/device-tree")
# An integrated GPU answers nvidia-smi with N/A (Orin) or not at all; the SoC's name tells it.
SOC_CAPABILITY = {"nvidia,tegra234": "8.7", "nvidia,tegra264": "11.0"}  # Orin, Thor (CUDA 13 numbering)


@dataclass(frozen=True)
class Gpu:
    """A GPU: its or its board's name, CUDA compute capability such as `8.9`, and the driver's version."""

    name: str
    compute_capability: str
    memory_mb: int | None = None
    driver: str = ""


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """Read the CSV of QUERY; a line without a compute capability is left out."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4 and parts[1].replace(".", "", 1).isdigit():
            memory = int(parts[2]) if parts[2].isdigit() else None
            found.append(Gpu(parts[0], parts[1], memory, parts[3]))
    return tuple(found)


def read_board(tree: Path = DEVICE_TREE) -> tuple[Gpu, ...]:
    """The integrated GPU of a Jetson from its device tree; nothing elsewhere."""
    try:
        compatible = (tree / "compatible").read_text().split("\0")
        name = (tree / "model").read_text().strip("\0\n ")
    except OSError:
        return ()
    return tuple(Gpu(name, SOC_CAPABILITY[soc]) for soc in compatible if soc in SOC_CAPABILITY)[:1]


def list_gpus() -> tuple[Gpu, ...]:
    """The GPUs here; nothing when there is no driver or it does not answer within ten seconds."""
    program = shutil.which("nvidia-smi")
    if program:
        try:
            answer = subprocess.run([program, *QUERY], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            answer = None
        if answer and answer.returncode == 0 and (found := parse_nvidia_smi(answer.stdout)):
            return found
    return read_board()
