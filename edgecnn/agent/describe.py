"""What a board is, has installed, and is doing just now. Loads no engine and no CUDA."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import time
from dataclasses import asdict
from pathlib import Path

from edgecnn import __version__
from edgecnn.agent import sensors
from edgecnn.agent.keeper import mode_to_come
from edgecnn.agent.power import boot_id, read_mode, read_modes, sys_root
from edgecnn.agent.protocol import PROTOCOL, Cache, Json
from edgecnn.backends import cpu, gpu, openvino, ort
from edgecnn.backends.tensorrt import trt
from edgecnn.measure.clocks import read_clocks

# L4T release → JetPack, where the nvidia-jetpack package isn't installed to tell.
JETPACKS = {
    "36.2": "6.0 DP", "36.3": "6.0", "36.4": "6.1", "36.4.2": "6.1", "36.4.3": "6.2", "36.4.4": "6.2.1", "38.2": "7.0",
}  # fmt: skip


def describe(cache: Cache) -> Json:
    """The facts of this board; sizes in MB (10^6 bytes), temperatures in °C, `clock` in seconds since 1970.

    `power_mode` is the board's own also while a timing job has it in another one.

    Raises:
        ImportError: numpy isn't here, without which no other job works.
    """
    import numpy

    root, one = sys_root(), first_gpu()
    processor = cpu.read_cpu()
    mode = mode_to_come(cache) or read_mode()
    l4t = read_l4t(root)
    memory, free = _memory_mb()
    disk = shutil.disk_usage(cache.root)
    return {
        "agent": __version__, "protocol": PROTOCOL, "python": platform.python_version(), "numpy": numpy.__version__,
        "machine": cpu.ARCHITECTURES.get(platform.machine(), platform.machine()), "hostname": platform.node(),
        "board": sensors.text(root / "proc/device-tree/model"), "l4t": l4t, "jetpack": read_jetpack(root, l4t),
        "cpu": processor.name, "vnni": processor.vnni, "cores": cpu.cores(), "memory_mb": memory,
        "free_memory_mb": free, "disk_free_mb": disk.free // 10**6, "boot_id": boot_id(), "clock": time.time(),
        "backends": _backends(), "gpu": asdict(one) if one else None, "power_mode": mode.name if mode else "",
        "power_modes": [known.name for known in read_modes()], "clocks_locked": sensors.clocks_locked(root),
        "governor": read_clocks(root / "sys/devices/system/cpu").governor,
        "temperature_c": sensors.temperatures(root), "power_rails": sensors.rail_names(root),
        "gpu_users": sensors.gpu_users(),
        "load_average": os.getloadavg()[0],
    }  # fmt: skip


def read_l4t(root: Path) -> str:
    """`36.4.3` of /etc/nv_tegra_release; '' on other machines."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", sensors.text(root / "etc/nv_tegra_release"))
    return f"{found[1]}.{found[2]}".removesuffix(".0") if found else ""


def read_jetpack(root: Path, l4t: str) -> str:
    """`6.2`: the version of the nvidia-jetpack package, else what the L4T release belongs to; '' when unknown."""
    try:
        packages = (root / "var/lib/dpkg/status").read_text(errors="replace")
    except OSError:
        packages = ""
    found = re.search(r"^Package: nvidia-jetpack\n(?:\S.*\n| .*\n)*?Version: ([\d.]+)", packages, re.MULTILINE)
    return found[1] if found else JETPACKS.get(l4t, "")


def _backends() -> dict[str, str]:
    """Name and version by backend, of those that are installed."""
    found = {}
    if importlib.util.find_spec("onnxruntime"):
        found["onnxruntime"] = ort.version()
    if openvino.installed():
        found["openvino"] = openvino.version()
    for name in trt.TITLES:
        if version := trt.installed(name):
            found[name] = f"{trt.TITLES[name]} {version}"
    return found


def first_gpu() -> gpu.Gpu | None:
    """This board's GPU."""
    return next(iter(gpu.list_gpus() or gpu.read_board(sys_root() / "proc/device-tree")), None)


def _memory_mb() -> tuple[int, int]:
    """(all, available) memory."""
    fields = {}
    for line in sensors.text(Path("/proc/meminfo")).splitlines():
        key, _, value = line.partition(":")
        fields[key] = int(value.split()[0]) * 1024 // 10**6 if value.split() else 0
    return fields.get("MemTotal", 0), fields.get("MemAvailable", 0)
