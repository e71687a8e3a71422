"""A Jetson's power modes and clocks: read and set by NVIDIA's programs, as root by fixed commands alone.

A sudoers line names each command with its arguments. A program named without arguments would be allowed all of them:
`jetson_clocks --store FILE` writes any file as root, and `--restore FILE` writes whatever FILE says to wherever it
says. So that file stands where only root writes. A desktop GPU's clocks are locked by its driver's nvidia-smi.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgecnn.agent.protocol import Refusal

MORE_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin")
CURRENT = re.compile(r"^\s*NV Power Mode:\s*(\S+)\s*$(?:\s*^\s*(\d+)\s*$)?", re.MULTILINE)
LISTED = re.compile(r"POWER_MODEL:?\s+ID=(\d+)\s+NAME=([^\s>]+)")
Command = tuple[str, ...]
FOLDERS = {"nvpmodel": "/usr/sbin", "jetson_clocks": "/usr/bin", "nvidia-smi": "/usr/bin"}  # where only root installs
RESET_GPU: Command = ("nvidia-smi", "--id=0", "--reset-gpu-clocks")
SUDO_REFUSES = re.compile(r"^sudo(-rs)?: |^Sorry, user |is not in the sudoers file", re.MULTILINE)
PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
DESKTOP, JETSON = "nvidia-smi", "jetson_clocks"


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


@dataclass(frozen=True)
class PowerMode:
    """A mode: its name, the same on every board of a kind, and its number, which differs between modules."""

    name: str
    number: int | None


def parse_current(text: str) -> PowerMode | None:
    """What `nvpmodel -q` prints: warnings, then `NV Power Mode: 15W` and the number on its own line."""
    found = CURRENT.search(text)
    if found is None:
        return None
    return PowerMode(found[1], int(found[2]) if found[2] else None)


def parse_modes(text: str) -> tuple[PowerMode, ...]:
    """The modes in nvpmodel.conf, or in what `nvpmodel -p --verbose` prints, in their order."""
    modes = {name: PowerMode(name, int(number)) for number, name in LISTED.findall(text)}
    return tuple(modes.values())


def read_mode() -> PowerMode | None:
    """The mode in force; None without nvpmodel. Some images tell it to root only."""
    program = find("nvpmodel")
    if program is None:
        return None
    return parse_current(ask(program, "-q")) or parse_current(ask("sudo", "-n", program, "-q"))


def read_modes() -> tuple[PowerMode, ...]:
    """The modes of this board; none without nvpmodel."""
    try:
        modes = parse_modes((sys_root() / "etc/nvpmodel.conf").read_text(errors="replace"))
    except OSError:
        modes = ()
    return modes or parse_modes(ask("nvpmodel", "-p", "--verbose"))


def find_mode(name: str) -> PowerMode:
    """The mode of this name.

    Raises:
        Refusal: the board has no such mode.
    """
    modes = read_modes()
    for mode in modes:
        if mode.name.lower() == name.lower():
            return mode
    names = ", ".join(mode.name for mode in modes)
    raise Refusal(
        "refused", f"the board has no power mode `{name}`",
        f"it has {names}" if names else "it has no nvpmodel: drop --power-mode",
    )  # fmt: skip


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
            "drop --power-mode and --lock-clocks",
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
        "restore the clocks. Or drop --power-mode and --lock-clocks"
    )


def _user() -> str:
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = ""
    return name if PLAIN_NAME.fullmatch(name) else f"#{os.geteuid()}"  # sudoers' own form for a number


def store_clocks() -> str:
    """Keep what is to be restored; returns by which program `restore_clocks` does it.

    The driver doesn't tell an earlier lock; its restoring is to have none.

    Raises:
        Refusal: there is no program for it, it may not be used, or it failed.
    """
    if find(JETSON) is None and find(DESKTOP) is not None:
        return DESKTOP
    order(JETSON, "--store", str(clocks_file()), answer="y")  # over what an earlier job left, which was restored
    if not clocks_file().is_file():
        raise Refusal("refused", f"jetson_clocks did not store the clocks in {clocks_file()}", "drop --lock-clocks")
    return JETSON


def lock_clocks(program: str) -> None:
    """Hold the clocks at their highest.

    Raises:
        Refusal: see `store_clocks`.
    """
    if program == JETSON:
        order(JETSON)
        return
    highest = ask(DESKTOP, "--id=0", "--query-gpu=clocks.max.graphics", "--format=csv,noheader,nounits").strip()
    if not highest.isdigit():
        raise Refusal("refused", f"the GPU does not report its highest clock: `{highest}`", "drop --lock-clocks")
    order(DESKTOP, "--id=0", f"--lock-gpu-clocks={highest},{highest}")


def restore_clocks(program: str) -> None:
    """Bring the clocks back to what `store_clocks` kept.

    Raises:
        Refusal: it failed.
    """
    if program == DESKTOP:
        order(*RESET_GPU)
    else:
        order(JETSON, "--restore", str(clocks_file()))
