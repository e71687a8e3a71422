"""Holding the clocks still: jetson_clocks on a Jetson, the driver's own lock on a desktop GPU. Both need root."""

from __future__ import annotations

from pathlib import Path

from edgecnn.agent.programs import ask, find, order
from edgecnn.agent.protocol import Refusal
from edgecnn.agent.sensors import text

DESKTOP = "nvidia-smi"


def store(file: Path) -> None:
    """Write down what is to be restored. The driver doesn't tell an earlier lock; its restoring is to have none."""
    if _desktop():
        file.write_text(DESKTOP)
    else:
        order("jetson_clocks", "--store", str(file))


def lock() -> None:
    """Hold the clocks at their highest.

    Raises:
        Refusal: there is no program for it, it may not be used, or it failed.
    """
    if not _desktop():
        order("jetson_clocks")
        return
    highest = ask(DESKTOP, "--id=0", "--query-gpu=clocks.max.graphics", "--format=csv,noheader,nounits").strip()
    if not highest.isdigit():
        raise Refusal("refused", f"the GPU does not tell its highest clock: `{highest}`", "leave out --lock-clocks")
    order(DESKTOP, "--id=0", f"--lock-gpu-clocks={highest},{highest}")


def restore(file: Path) -> None:
    """Bring the clocks back to what `store` wrote down.

    Raises:
        Refusal: it failed.
    """
    if text(file) == DESKTOP:  # jetson_clocks' own file may be root's alone to read
        order(DESKTOP, "--id=0", "--reset-gpu-clocks")
    else:
        order("jetson_clocks", "--restore", str(file))


def _desktop() -> bool:
    return find("jetson_clocks") is None and find(DESKTOP) is not None
