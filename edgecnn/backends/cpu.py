"""What this machine's CPU is. Reads /proc only, imports no engine."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

# CPUID leaf 7 names of Linux. Without one of them x86 INT8 kernels add 16-bit products with saturation.
VNNI_FLAGS = frozenset({"avx512_vnni", "avx_vnni"})
ARCHITECTURES = {"AMD64": "x86_64", "amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Cpu:
    """`name` as the kernel tells it; `vnni` None where it means nothing (not x86)."""

    name: str
    architecture: str
    vnni: bool | None


def parse_cpuinfo(text: str, architecture: str) -> Cpu:
    """Read the text of /proc/cpuinfo. An x86 CPU whose flags are unknown counts as one without VNNI: the safe side."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or fields.get("Model") or f"{architecture} CPU"
    vnni = bool(VNNI_FLAGS & set(fields.get("flags", "").split())) if architecture == "x86_64" else None
    return Cpu(name, architecture, vnni)


def read_cpu() -> Cpu:
    """This machine's CPU."""
    machine = platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    return parse_cpuinfo(text, ARCHITECTURES.get(machine, machine))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
