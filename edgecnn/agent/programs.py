"""NVIDIA's programs on a board: found also where a plain ssh command has no PATH to, asked with a time limit."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from edgecnn.agent.protocol import Refusal

MORE_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin")
SUDOERS = "put `{user} ALL=(root) NOPASSWD: {programs}` into /etc/sudoers.d/edgecnn"
JETSON = "/usr/sbin/nvpmodel, /usr/bin/jetson_clocks"


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


def order(*command: str, seconds: float = 30.0) -> str:
    """Run a program that changes the board, as root or by `sudo -n`; returns what it printed.

    Its stdin says no: nvpmodel asks whether to reboot when a mode needs that.

    Raises:
        Refusal: it isn't here, sudo wants a password, it failed, or took longer than `seconds`.
    """
    program = find(command[0])
    if program is None:
        raise Refusal(
            "refused", f"the board has no `{command[0]}`, so its power mode and clocks cannot be set",
            "leave out --power-mode and --lock-clocks",
        )  # fmt: skip
    words = [program, *command[1:]]
    if os.geteuid() != 0:
        words = [find("sudo") or "sudo", "-n", *words]
    shown = " ".join(command)
    try:
        done = subprocess.run(words, input=b"no\n", capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise Refusal("refused", f"`{shown}` on the board took longer than {seconds:g} s") from error
    except OSError as error:
        raise Refusal("refused", f"`{shown}` cannot be run on the board: {error}") from error
    said = (done.stdout + done.stderr).decode(errors="replace").strip()
    if done.returncode != 0:
        if words[0].endswith("sudo") and "password" in said:
            programs = program if "nvidia" in program else JETSON
            raise Refusal(
                "refused", f"`{shown}` needs root on the board, and sudo asks for a password there",
                SUDOERS.format(user=_user(), programs=programs) + ", or leave out --power-mode and --lock-clocks",
            )  # fmt: skip
        raise Refusal("refused", f"`{shown}` failed on the board with status {done.returncode}", said)
    return said


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
