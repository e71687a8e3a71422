"""What the CPU and the GPUs are, read from texts of real machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecnn.backends.cpu import parse_cpuinfo
from edgecnn.backends.gpu import Gpu, parse_nvidia_smi, read_board

ZEN4 = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9354 32-Core Processor
flags\t\t: fpu sse2 avx2 avx512f avx512bw avx512_vnni avx512_bitalg

processor\t: 1
model name\t: AMD EPYC 9354 32-Core Processor
"""
ALDER_LAKE = "model name : 12th Gen Intel(R) Core(TM) i7-12700\nflags : fpu sse2 avx2 avx_vnni serialize\n"
HASWELL = "model name : Intel(R) Core(TM) i7-4790 CPU @ 3.60GHz\nflags : fpu sse2 avx avx2 fma avx512vnni_not\n"
RASPBERRY = (
    "processor\t: 0\nFeatures\t: fp asimd evtstrm\nCPU part\t: 0xd08\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"
)


@pytest.mark.parametrize(
    ("text", "architecture", "name", "vnni"),
    [
        (ZEN4, "x86_64", "AMD EPYC 9354 32-Core Processor", True),
        (ALDER_LAKE, "x86_64", "12th Gen Intel(R) Core(TM) i7-12700", True),
        (HASWELL, "x86_64", "Intel(R) Core(TM) i7-4790 CPU @ 3.60GHz", False),
        (RASPBERRY, "aarch64", "Raspberry Pi 4 Model B Rev 1.4", None),
        ("", "x86_64", "x86_64 CPU", False),
    ],
)
def test_cpuinfo(text: str, architecture: str, name: str, vnni: bool | None) -> None:
    cpu = parse_cpuinfo(text, architecture)
    assert (cpu.name, cpu.architecture, cpu.vnni) == (name, architecture, vnni)


def test_nvidia_smi() -> None:
    text = "NVIDIA GeForce RTX 4060, 8.9, 8188, 580.65.06\nOrin (nvgpu), [N/A], [N/A], 540.4.0\n"
    assert parse_nvidia_smi(text) == (Gpu("NVIDIA GeForce RTX 4060", "8.9", 8188, "580.65.06"),)


def test_a_jetson_is_read_off_its_device_tree(tmp_path: Path) -> None:
    (tmp_path / "compatible").write_text("nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0")
    (tmp_path / "model").write_text("NVIDIA Jetson Orin Nano Developer Kit\0")
    assert read_board(tmp_path) == (Gpu("NVIDIA Jetson Orin Nano Developer Kit", "8.7"),)
    assert read_board(tmp_path / "nowhere") == ()
