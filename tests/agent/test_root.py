"""What is run as root on a board, and the sudoers line that allows it: these commands with these arguments alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from programs import program, why_missing

from edgecnn.agent import power as root
from edgecnn.agent.power import PowerMode
from edgecnn.agent.protocol import Refusal

MODES = (PowerMode("15W", 0), PowerMode("MAXN_SUPER", 2), PowerMode("unnumbered", None))
LINE = (
    "ana ALL=(root) NOPASSWD: /usr/sbin/nvpmodel -q, /usr/sbin/nvpmodel -m 0, /usr/sbin/nvpmodel -m 2, "
    '/usr/bin/jetson_clocks "", /usr/bin/jetson_clocks --store /run/edgecnn-1000.clocks, '
    "/usr/bin/jetson_clocks --restore /run/edgecnn-1000.clocks"
)
GPU = (("nvidia-smi", "--id=0", "--lock-gpu-clocks=2520,2520"), root.RESET_GPU)
GPU_LINE = (
    r"ana ALL=(root) NOPASSWD: /usr/bin/nvidia-smi --id\=0 --lock-gpu-clocks\=2520\,2520, "
    r"/usr/bin/nvidia-smi --id\=0 --reset-gpu-clocks"
)


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> None:
    """A login that isn't root, whoever runs the tests."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("EDGECNN_SYS_ROOT", raising=False)


def test_the_line_names_every_argument(login: None) -> None:
    """A program without arguments would be allowed any: `jetson_clocks --store FILE` writes FILE as root."""
    assert root.sudoers(root.jetson_commands(MODES), "ana") == LINE
    assert root.sudoers(GPU, "ana") == GPU_LINE
    assert not any(sign in LINE + GPU_LINE for sign in "*?[!")


@pytest.mark.parametrize("line", [LINE, GPU_LINE, "#1000" + LINE.removeprefix("ana")])
def test_sudo_reads_the_line(tmp_path: Path, line: str) -> None:
    if why := why_missing("visudo"):
        pytest.skip(why)
    file = tmp_path / "edgecnn"
    file.write_text(f"{line}\n")
    file.chmod(0o440)
    done = subprocess.run([str(program("visudo")), "-cf", file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    for name, script in scripts.items():
        path = folder / name.replace("_smi", "-smi")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    "said",
    [
        "sudo: a password is required", "sudo-rs: interactive authentication is required",
        "Sorry, user ana is not allowed to execute '/usr/sbin/nvpmodel -m 9' as root on orin.",
    ],
)  # fmt: skip
def test_sudo_that_refuses(login: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    programs(tmp_path, monkeypatch, nvpmodel="exit 0", sudo=f'echo "{said}" >&2; exit 1')
    with pytest.raises(Refusal) as caught:
        root.order("nvpmodel", "-m", "2")
    assert (caught.value.kind, "nvpmodel -m 2" in caught.value.message) == ("refused", True)
    assert "/usr/bin/jetson_clocks --restore /run/edgecnn-1000.clocks\nIt grants " in caught.value.hint
    assert "with exactly these arguments" in caught.value.hint


def test_the_driver_tool_is_granted_its_two_commands(
    login: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs(tmp_path, monkeypatch, nvidia_smi="exit 0", sudo='echo "sudo: a password is required" >&2; exit 1')
    with pytest.raises(Refusal) as caught:
        root.order(*GPU[0])
    assert GPU_LINE.removeprefix("ana") in caught.value.hint


def test_a_programs_own_refusal_is_told(login: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "NVPM ERROR: Error opening /etc/nvpmodel.conf"
    programs(tmp_path, monkeypatch, nvpmodel="exit 0", sudo=f'echo "{said}" >&2; exit 1')
    with pytest.raises(Refusal) as caught:
        root.order("nvpmodel", "-m", "2")
    assert caught.value.hint == said
