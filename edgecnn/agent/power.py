"""A Jetson's power modes, as nvpmodel tells them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgecnn.agent.programs import ask, find, sys_root
from edgecnn.agent.protocol import Refusal

CURRENT = re.compile(r"^\s*NV Power Mode:\s*(\S+)\s*$(?:\s*^\s*(\d+)\s*$)?", re.MULTILINE)
LISTED = re.compile(r"POWER_MODEL:?\s+ID=(\d+)\s+NAME=([^\s>]+)")


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
        f"it has {names}" if names else "it has no nvpmodel: leave out --power-mode",
    )  # fmt: skip
