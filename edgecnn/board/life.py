"""Whether a link is alive: it is as long as bytes come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edgecnn.board.shell import LinkLost

TICKS = 8  # in which silence is counted


class Life:
    """Watches one link; whoever receives anything calls `heard`."""

    def __init__(self, address: str, silence_s: float) -> None:
        self.address, self.silence_s = address, silence_s
        self.silent_ticks = 0
        self.why_lost = "the board closed the connection"

    def heard(self) -> None:
        """Something came, whatever it was."""
        self.silent_ticks = 0

    async def watch(self, give_up: Callable[[], None]) -> None:
        """Give the link up when nothing at all was heard for `silence_s`.

        Silence is counted in ticks of this loop, not by the clock: a host that was suspended, or too busy to read,
        blames itself.
        """
        while self.silent_ticks <= TICKS:
            await asyncio.sleep(self.silence_s / TICKS)
            self.silent_ticks += 1
        self.why_lost = f"nothing was heard from it for {self.silence_s:g} s"
        give_up()

    def lost(self) -> LinkLost:
        """The error of a link that is gone."""
        return LinkLost(
            f"the link to `{self.address}` was lost: {self.why_lost}",
            "look after the board's network and power; the same command continues where this one stopped",
        )
