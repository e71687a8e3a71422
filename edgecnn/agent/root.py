"""What is done to a board as root: by these commands alone, so that a sudoers line can name each with its arguments.

A program named without arguments would be allowed all of them: `jetson_clocks --store FILE` writes any file as root,
and `--restore FILE` writes whatever FILE says to wherever it says. So that file stands where only root writes.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from edgecnn.agent.power import PowerMode, read_mode, read_modes
from edgecnn.agent.programs import find, sys_root
from edgecnn.agent.protocol import Refusal

Command = tuple[str, ...]
FOLDERS = {"nvpmodel": "/usr/sbin", "jetson_clocks": "/usr/bin", "nvidia-smi": "/usr/bin"}  # where only root installs
RESET_GPU: Command = ("nvidia-smi", "--id=0", "--reset-gpu-clocks")
SUDO_REFUSES = re.compile(r"^sudo(-rs)?: |^Sorry, user |is not in the sudoers file", re.MULTILINE)
PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def clocks_file() -> Path:
    """Where jetson_clocks stores this login's clocks: root's folder, and gone after a restart, as the lock is."""
    return sys_root() / f"run/edgecnn-{os.geteuid()}.clocks"


def order(*command: str, answer: str = "no", seconds: float = 30.0) -> str:
    """Run a program that changes the board, as root or by `sudo -n`; returns what it printed.

    Args:
        answer: to what it asks on stdin: nvpmodel asks whether to reboot when a mode needs that.

    Raises:
        Refusal: it isn't here, sudo refuses it, it failed, or took longer than `seconds`.
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
    shown, spoken = " ".join(command), {**os.environ, "LC_ALL": "C"}  # in English, to tell a refusal of sudo
    try:
        done = subprocess.run(
            words, input=f"{answer}\n".encode(), capture_output=True, timeout=seconds, check=False, env=spoken
        )
    except subprocess.TimeoutExpired as error:
        raise Refusal("refused", f"`{shown}` on the board took longer than {seconds:g} s") from error
    except OSError as error:
        raise Refusal("refused", f"`{shown}` cannot be run on the board: {error}") from error
    said = (done.stdout + done.stderr).decode(errors="replace").strip()
    if done.returncode != 0:
        if words[0].endswith("sudo") and SUDO_REFUSES.search(said):
            raise Refusal("refused", f"`{shown}` needs root on the board, and sudo refuses it there", _hint(command))
        raise Refusal("refused", f"`{shown}` failed on the board with status {done.returncode}", said)
    return said


def set_mode(mode: PowerMode) -> None:
    """Set it, and see that it took.

    Raises:
        Refusal: it couldn't be set; one that needs a reboot never is.
    """
    order("nvpmodel", "-m", str(mode.number))
    now = read_mode()
    if now is None or now.name != mode.name:
        raise Refusal(
            "refused", f"power mode {mode.name} did not take: the board is in {now.name if now else 'an unknown mode'}",
            f"most often it needs a reboot: `sudo nvpmodel -m {mode.number}` on the board, reboot, then run again",
        )  # fmt: skip


def jetson_commands(modes: Iterable[PowerMode]) -> tuple[Command, ...]:
    """All that is ever run as root on a Jetson with these modes."""
    file = str(clocks_file())
    numbers = sorted({mode.number for mode in modes if mode.number is not None})
    return (
        ("nvpmodel", "-q"), *(("nvpmodel", "-m", str(number)) for number in numbers), ("jetson_clocks",),
        ("jetson_clocks", "--store", file), ("jetson_clocks", "--restore", file),
    )  # fmt: skip


def sudoers(commands: Iterable[Command], user: str) -> str:
    """The line that lets a user run these commands as root, each with these arguments and no others."""
    listed = []
    for name, *arguments in commands:
        escaped = [re.sub(r"([\\,:=])", r"\\\1", argument) for argument in arguments]
        listed.append(" ".join([f"{FOLDERS[name]}/{name}", *(escaped or ['""'])]))  # "" is: without arguments
    return f"{user} ALL=(root) NOPASSWD: {', '.join(listed)}"


def _hint(command: Command) -> str:
    user = _user()
    commands = jetson_commands(read_modes()) if command[0] != "nvidia-smi" else (command, RESET_GPU)
    return (
        f"put this line into /etc/sudoers.d/edgecnn with `sudo visudo -f /etc/sudoers.d/edgecnn`:\n"
        f"{sudoers(dict.fromkeys(commands), user)}\n"
        f"It grants {user} these commands as root with exactly these arguments: to set the power mode, and to lock and "
        "restore the clocks. Or leave out --power-mode and --lock-clocks"
    )


def _user() -> str:
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = ""
    return name if PLAIN_NAME.fullmatch(name) else f"#{os.geteuid()}"  # sudoers' own form for a number
