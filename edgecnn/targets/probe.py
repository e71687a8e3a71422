"""What a board answers about itself: shown, and written as a device file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgecnn.backends import BackendName
from edgecnn.backends.tensorrt import rtx_gpus
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.device import DeviceProfile
from edgecnn.recipe.load import load_device, packed
from edgecnn.recipe.yaml_file import dump_yaml
from edgecnn.store.clean import gigabytes
from edgecnn.targets.hosts import Boards
from edgecnn.targets.ssh import gpu_of, open_fleet
from edgecnn.targets.target import is_device

Json = dict[str, Any]
# What a device file is written for, the first that the board has: those of a GPU only where there is one.
GPU_BACKENDS: tuple[BackendName, ...] = ("tensorrt", "tensorrt-rtx")
CPU_BACKENDS: tuple[BackendName, ...] = ("onnxruntime", "openvino")


def probe(host: str, boards: Boards, write: Path | None) -> tuple[Json, str]:
    """Ask a board what it is; with `write`, make a device file of it. Returns (JSON document, text).

    Raises:
        EdgeError: it can't be reached, has no engine at all, or the file can't be written.
    """
    [described] = open_fleet(Boards((host,), boards.limits)).each(lambda board: dict(board.facts))
    answer = described.result
    names = fitting_devices(answer)
    lines = [f"{name:<13} {text}" for name, text in _rows(answer) if text]
    lines.append(f"{'device':<13} {', '.join(names) or 'no packed device file fits: --write FILE makes one'}")
    if write is not None:
        try:
            write.write_text(device_file(answer, write.stem, names))
        except OSError as error:
            raise EdgeError(f"cannot write `{write}`: {error.strerror}", "choose another file") from error
        load_device(str(write))  # what is written must be readable
        lines.append(f"wrote {write}: build with --device {write} --host {host}")
    return {"host": host, **answer, "devices": names}, "\n".join(lines)


def fitting_devices(answer: Mapping[str, Any]) -> list[str]:
    """The packed devices that this board is."""
    profiles = [load_device(name) for name in packed("devices")]
    return [profile.name for profile in profiles if _fits(profile, answer)]


def _fits(profile: DeviceProfile, answer: Mapping[str, Any]) -> bool:
    if profile.architecture != answer["machine"] or profile.backend not in answer["backends"]:
        return False
    if profile.backend in CPU_BACKENDS:
        return True
    gpu = gpu_of(answer)
    return gpu is not None and is_device(profile, gpu)


def device_file(answer: Mapping[str, Any], name: str, names: list[str]) -> str:
    """The text of a device file: of the packed one that fits best, or by what the board has, with the board as source.

    Raises:
        EdgeError: the board has no engine that edgecnn knows and that takes its GPU.
    """
    gpu = gpu_of(answer)
    usable = [one for one in (*(GPU_BACKENDS if gpu else ()), *CPU_BACKENDS) if one in answer["backends"]]
    backend = next((one for one in usable if not _unknown(one, answer)), None)
    if backend is None:
        raise EdgeError(
            "the board has no engine that its python3 finds and its GPU can run: TensorRT, onnxruntime or OpenVINO",
            "on a Jetson: sudo apt install python3-libnvinfer; elsewhere: pip install --user onnxruntime",
        )
    near = [load_device(one) for one in (*names, *packed("devices"))]
    like = next((one for one in near if one.backend == backend and one.architecture == answer["machine"]), None)
    scheme = (like or next(one for one in near if one.backend == backend)).scheme
    version = answer["backends"][backend]
    content: Json = {
        "name": re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "board", "backend": backend,
        "architecture": answer["machine"],
    }  # fmt: skip
    if backend in GPU_BACKENDS and gpu:
        content |= {"compute_capability": gpu.compute_capability, "memory_mb": gpu.memory_mb or answer["memory_mb"]}
    content["precisions"] = ["fp32", "fp16", "int8"] if backend in GPU_BACKENDS else ["fp32", "int8"]
    if backend == "tensorrt-rtx":
        content["unverified"] = ["int8"]
    if backend == "tensorrt" and version.startswith("TensorRT 10.3"):
        content["tensorrt_rules"] = "10.3"
    content["scheme"] = scheme.model_dump(mode="json", exclude={"weight_bits", "activation_bits"}, exclude_none=True)
    told = ", ".join(text for label, text in _rows(answer) if label in ("board", "JetPack", "engines", "GPU") and text)
    content["source"] = f"the board's own answer on {datetime.now(timezone.utc):%Y-%m-%d}: {told}"
    head = f"# {answer['board'] or answer['hostname']}"
    if answer["power_modes"]:
        head += f"; power modes: {', '.join(answer['power_modes'])} (bench.power_mode, or --power-mode)"
    return f"{head}\n{dump_yaml(content, width=110, default_flow_style=None)}"


def _unknown(backend: str, answer: Mapping[str, Any]) -> tuple[str, ...]:
    gpu = gpu_of(answer)
    capability = (gpu.compute_capability,) if gpu else ()
    return rtx_gpus.unknown(backend, capability, answer["backends"].get(backend))


def _rows(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    gpu = gpu_of(answer)
    engines = [text + (" (not for this GPU)" if _unknown(name, answer) else "")
               for name, text in answer["backends"].items()]  # fmt: skip
    named = f"{gpu.name}, " if gpu and gpu.name != answer["board"] else ""
    modes = f" of {', '.join(answer['power_modes'])}" if answer["power_modes"] else ""
    locked = "clocks locked" if answer["clocks_locked"] else "clocks not locked"
    jetpack = f"{answer['jetpack']} (L4T {answer['l4t']})" if answer["l4t"] else answer["jetpack"]
    hot = ", ".join(f"{zone} {value:.0f} °C" for zone, value in answer["temperature_c"].items())
    users = ", ".join(f"{one['name']} ({one['pid']})" for one in answer["gpu_users"])
    return [
        ("board", answer["board"] or answer["hostname"]),
        ("JetPack", jetpack),
        ("CPU", f"{answer['cpu']} ({answer['machine']})"),
        ("GPU", f"{named}compute capability {gpu.compute_capability}, driver {gpu.driver or 'of L4T'}" if gpu else ""),
        ("memory", f"{answer['memory_mb']:,} MB, {answer['free_memory_mb']:,} free"),
        ("disk", f"{answer['disk_free_mb']:,} MB free"),
        ("python3", answer["python"]),
        ("engines", ", ".join(engines) or "none"),
        ("power mode", f"{answer['power_mode']}{modes}" if answer["power_mode"] else ""),
        ("clocks", locked),
        ("temperature", hot),
        ("GPU in use by", users),
    ]


def clean(boards: Boards, max_gb: float) -> tuple[list[Json], str]:
    """Bound what edgecnn keeps on boards: files used longest ago go. Returns (JSON document, text).

    Raises:
        EdgeError: no board can be reached.
    """
    limit = gigabytes(max_gb)
    done = open_fleet(boards).each(lambda board: board.run({"do": "clean", "max_bytes": limit}))
    document = [{"host": one.host, **one.result} for one in done]
    lines = [
        f"{one['host']}: dropped {one['dropped']}, freed {one['freed_bytes'] / 1e6:.1f} MB;"
        f" kept {one['kept_bytes'] / 1e6:.1f} MB"
        for one in document
    ]
    return document, "\n".join(lines)
