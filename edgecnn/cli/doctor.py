"""What is here, what each device needs, and the command that installs what is missing. Loads no engine and no torch."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

from edgecnn.backends import openvino
from edgecnn.backends.cpu import Cpu, read_cpu
from edgecnn.backends.gpu import Gpu, list_gpus
from edgecnn.backends.tensorrt import rtx_gpus, trt
from edgecnn.process.disk import cache_root
from edgecnn.process.versions import install_command, installed_version
from edgecnn.recipe.device import DeviceProfile
from edgecnn.targets.target import is_device

State = Literal["ok", "missing", "warn"]
EXTRAS = {
    "train": "training and exporting models",
    "rtx": "engines for RTX GPUs, and the parser check of every TensorRT device",
    "tensorrt": "engines for an NVIDIA GPU in this machine",
    "openvino": "the faster INT8 engine of x86 CPUs",
    "report": "plots in the HTML report",
}
SMALL_DISK = 5_000_000_000  # bytes; a classification build keeps one to three GB
# TensorRT since 10.0 has no code for older GPUs (support matrix: Turing and up).
OLDEST_CAPABILITY = (7, 5)


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fix` is a command or an instruction, empty where nothing is to be done."""

    topic: str
    state: State
    detail: str
    fix: str = ""


def _requirements() -> tuple[str, ...]:
    try:
        return tuple(metadata.requires("edgecnn") or ())
    except metadata.PackageNotFoundError:
        return ()


def _origin(module: str) -> str | None:
    found = importlib.util.find_spec(module)
    return (found.origin or "") if found else None


@dataclass(frozen=True)
class Here:
    """What the doctor looks at; each part can be given, so that any machine can be examined on any other.

    `version` answers `absent` for what is not installed; `origin` is the file of a module, None without it.
    """

    python: str = field(default_factory=platform.python_version)
    requirements: tuple[str, ...] = field(default_factory=_requirements)
    version: Callable[[str], str] = installed_version
    origin: Callable[[str], str | None] = _origin
    cpu: Cpu = field(default_factory=read_cpu)
    gpus: tuple[Gpu, ...] = field(default_factory=list_gpus)
    has_driver: bool = field(default_factory=lambda: shutil.which("nvidia-smi") is not None)
    is_jetson: bool = field(default_factory=lambda: Path("/etc/nv_tegra_release").exists())
    store: Path = field(default_factory=cache_root)

    def tensorrt(self, name: trt.Name) -> str | None:
        """Version of a TensorRT, None where its module is absent."""
        if self.origin(name.replace("-", "_")) is None:
            return None
        versions = (self.version(package) for package in trt.PACKAGES[name])
        return next((found for found in versions if found != "absent"), "of unknown version")


def examine(here: Here | None = None, profiles: tuple[DeviceProfile, ...] | None = None) -> list[Finding]:
    """Look at this machine (or a given one) and say what it can do for each device (default: the packed ones)."""
    here = here or Here()
    if profiles is None:
        from edgecnn.recipe.load import load_device, packed

        profiles = tuple(load_device(str(path)) for path in packed("devices").values())
    return [*_python(here), *_libraries(here), *_cpu(here), *_gpu(here), *_jetson(here), *_store(here),
            *(_device(here, profile) for profile in profiles)]  # fmt: skip


def _python(here: Here) -> Iterator[Finding]:
    old = _numbers(here.python) < (3, 10)
    yield Finding("python", "missing" if old else "ok", here.python, "use Python 3.10 or newer" if old else "")


def _libraries(here: Here) -> Iterator[Finding]:
    """Core libraries, then each extra, from the package's own list of requirements."""
    groups: dict[str, list[str]] = {"": [], **{extra: [] for extra in EXTRAS}}
    for line in here.requirements:
        marker = re.search(r"extra\s*==\s*['\"](\w+)['\"]", line)
        groups.setdefault(marker.group(1) if marker else "", []).append(line)
    if not here.requirements:
        yield Finding("libraries", "warn", "edgecnn itself is not installed, only found", "pip install -e .")
    for extra, lines in groups.items():
        if not lines or (extra and extra not in EXTRAS):
            continue
        present, wrong = [], []
        for line in lines:
            name, floor = _name_and_floor(line)
            version = here.version(name)
            if version == "absent":
                wrong.append(f"{name} is not installed")
            elif _numbers(version) < _numbers(floor):
                wrong.append(f"{name} {version} is older than {floor}")
            else:
                present.append(f"{name} {version}")
        topic = f"extra `{extra}`" if extra else "core libraries"
        purpose = f" ({EXTRAS[extra]})" if extra else ""
        fix = install_command(extra) if extra else "pip install --upgrade edgecnn"
        if not wrong:
            yield Finding(topic, "ok", ", ".join(present) + purpose)
        elif extra == "tensorrt" and here.is_jetson:
            yield Finding(topic, "ok", "not from pip on a Jetson; see `jetson`")
        elif extra == "tensorrt" and not here.gpus:
            yield Finding(topic, "ok", "not installed, not needed: no NVIDIA GPU here")
        else:
            yield Finding(topic, "missing", ", ".join(wrong) + purpose, fix)


def _cpu(here: Here) -> Iterator[Finding]:
    match here.cpu.vnni:
        case True:
            yield Finding("cpu", "ok", f"{here.cpu.name} ({here.cpu.architecture}), VNNI: 8-bit weights")
        case False:
            detail = "no VNNI: INT8 sums saturate at 16 bits, so weights get 7 bits and INT8 gains little speed"
            yield Finding("cpu", "ok", f"{here.cpu.name} ({here.cpu.architecture}), {detail}")
        case None:
            yield Finding("cpu", "ok", f"{here.cpu.name} ({here.cpu.architecture})")


def _gpu(here: Here) -> Iterator[Finding]:
    if not here.gpus:
        if here.has_driver:
            yield Finding(
                "gpu", "warn", "nvidia-smi is here but names no GPU", "run nvidia-smi and follow what it says"
            )
        else:
            yield Finding("gpu", "ok", "no NVIDIA GPU: training and scoring run on the CPU")
    for gpu in here.gpus:
        driver = f", driver {gpu.driver}" if gpu.driver else ""
        detail = f"{gpu.name}, compute capability {gpu.compute_capability}{driver}"
        if _numbers(gpu.compute_capability) < OLDEST_CAPABILITY:
            yield Finding(
                "gpu", "warn", f"{detail}: TensorRT 10 and newer do not support it", "use a GPU of 7.5 or newer"
            )
        else:
            yield Finding("gpu", "ok", detail)


def _jetson(here: Here) -> Iterator[Finding]:
    """On a Jetson only the board's own TensorRT has code for its GPU; one of pip shadows it."""
    if not here.is_jetson:
        return
    origin = here.origin("tensorrt")
    if origin is None:
        fix = "sudo apt install python3-libnvinfer; in a virtual environment, make it with --system-site-packages"
        yield Finding("jetson", "missing", "the board's TensorRT has no Python module here", fix)
    elif "dist-packages" not in origin:
        detail = (
            f"TensorRT {here.tensorrt('tensorrt')} of pip ({origin}) hides the board's own; it may lack this GPU's code"
        )
        yield Finding("jetson", "warn", detail, "pip uninstall tensorrt tensorrt-cu12 tensorrt-cu13")
    else:
        yield Finding("jetson", "ok", f"the board's own TensorRT {here.tensorrt('tensorrt')}")


def _store(here: Here) -> Iterator[Finding]:
    nearest = here.store
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    free = shutil.disk_usage(nearest).free
    detail = f"{here.store}, {free / 1e9:.0f} GB free"
    if not os.access(nearest, os.W_OK):
        yield Finding("store", "missing", f"{detail}, not writable", "set EDGECNN_CACHE to a writable folder")
    elif free < SMALL_DISK:
        yield Finding("store", "warn", detail, "edgecnn clean, or set EDGECNN_CACHE to a larger disk")
    else:
        yield Finding("store", "ok", detail)


def _device(here: Here, profile: DeviceProfile) -> Finding:
    """What this machine can do for one device."""
    topic, rtx = f"device {profile.name}", here.tensorrt("tensorrt-rtx")
    present = any(is_device(profile, gpu) for gpu in here.gpus) and profile.architecture == here.cpu.architecture
    install_rtx = trt.INSTALL["tensorrt-rtx"]
    match profile.backend:
        case "onnxruntime":
            if profile.architecture == here.cpu.architecture:
                return Finding(topic, "ok", "run here: build, score, time")
            return Finding(topic, "ok", f"simulate only: this machine is {here.cpu.architecture}")
        case "openvino":
            if profile.architecture != here.cpu.architecture:
                return Finding(topic, "ok", f"simulate only: this machine is {here.cpu.architecture}")
            if (version := here.version("openvino")) == "absent":
                return Finding(topic, "missing", "simulate only: OpenVINO is not installed", openvino.INSTALL)
            return Finding(topic, "ok", f"run here: build, score, time (OpenVINO {version})")
        case "tensorrt-rtx":
            unknown = rtx_gpus.unknown(profile.backend, profile.capabilities or ("unknown",), rtx)
            if unknown:
                detail = f"TensorRT for RTX does not compile for compute capability {', '.join(unknown)}"
                return Finding(topic, "warn", detail, f"it knows {', '.join(rtx_gpus.CAPABILITIES)}")
            if not rtx:
                return Finding(topic, "missing", "simulate only: TensorRT for RTX is not installed", install_rtx)
            if not present:
                return Finding(topic, "ok", f"compile only (TensorRT for RTX {rtx}): no such GPU here")
            if here.version("polygraphy") == "absent":
                return Finding(topic, "missing", "the GPU is here; running needs polygraphy", "pip install polygraphy")
            return Finding(topic, "ok", f"run here: build, score, time (TensorRT for RTX {rtx})")
        case "tensorrt":
            if present and (own := here.tensorrt("tensorrt")):
                return Finding(topic, "ok", f"run here: build, score, time (TensorRT {own})")
            rules = f"TensorRT {profile.tensorrt_rules} rules" if profile.tensorrt_rules else "no rules"
            if not rtx:
                detail = f"check only: {rules}; no parser: TensorRT for RTX is not installed"
                return Finding(topic, "missing", detail, install_rtx)
            return Finding(
                topic, "ok", f"check and simulate only: TensorRT for RTX {rtx} parser, {rules}; no board here"
            )


def _name_and_floor(requirement: str) -> tuple[str, str]:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    floor = re.search(r">=\s*([0-9.]+)", requirement)
    return name.group(0) if name else requirement, floor.group(1) if floor else "0"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
