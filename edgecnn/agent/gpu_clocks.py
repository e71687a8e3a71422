"""Holding the clocks still: jetson_clocks on a Jetson, the driver's own lock on a desktop GPU. Both need root."""

from __future__ import annotations

from edgecnn.agent.programs import ask, find
from edgecnn.agent.protocol import Refusal
from edgecnn.agent.root import RESET_GPU, clocks_file, order

DESKTOP, JETSON = "nvidia-smi", "jetson_clocks"


def store() -> str:
    """Keep what is to be restored; returns by which program `restore` does it.

    The driver doesn't tell an earlier lock; its restoring is to have none.

    Raises:
        Refusal: there is no program for it, it may not be used, or it failed.
    """
    if find(JETSON) is None and find(DESKTOP) is not None:
        return DESKTOP
    order(JETSON, "--store", str(clocks_file()), answer="y")  # over what an earlier job left, which was restored
    if not clocks_file().is_file():
        raise Refusal(
            "refused", f"jetson_clocks did not store the clocks in {clocks_file()}", "leave out --lock-clocks"
        )
    return JETSON


def lock(program: str) -> None:
    """Hold the clocks at their highest.

    Raises:
        Refusal: see `store`.
    """
    if program == JETSON:
        order(JETSON)
        return
    highest = ask(DESKTOP, "--id=0", "--query-gpu=clocks.max.graphics", "--format=csv,noheader,nounits").strip()
    if not highest.isdigit():
        raise Refusal("refused", f"the GPU does not tell its highest clock: `{highest}`", "leave out --lock-clocks")
    order(DESKTOP, "--id=0", f"--lock-gpu-clocks={highest},{highest}")


def restore(program: str) -> None:
    """Bring the clocks back to what `store` kept.

    Raises:
        Refusal: it failed.
    """
    if program == DESKTOP:
        order(*RESET_GPU)
    else:
        order(JETSON, "--restore", str(clocks_file()))
