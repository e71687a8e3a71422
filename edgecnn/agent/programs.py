"""NVIDIA's programs on a board: found also where a plain ssh command has no PATH to, asked with a time limit."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

MORE_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin")


def sys_root() -> Path:
    """Where the kernel's files are read; EDGECNN_SYS_ROOT names another root than /."""
    return Path(os.environ.get("EDGECNN_SYS_ROOT") or "/")


def boot_id() -> str:
    """Another one after every start of the board; '' where the kernel doesn't tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def find(name: str) -> str | None:
    """A program's path."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *MORE_PATHS)))


def ask(*command: str, seconds: float = 10.0) -> str:
    """What a program prints, '' when it isn't here, fails, or takes longer. Its stdin is empty."""
    program = find(command[0])
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""
