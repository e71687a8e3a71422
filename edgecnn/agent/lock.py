"""One job at a time on a board: an flock on a file that says who holds it.

The guard hands the descriptor to the worker and the keeper, so that the board is free only when all of them are gone,
however they ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

from edgecnn.agent.protocol import Json


class Lock:
    """The lock file, opened. Free it by closing, which the end of the process does too."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, holder: str, do: str) -> bool:
        """Take it if it is free, and say in it who holds it; False when somebody else does."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        # The time since start-up: the board's clock may be off by years, and be set right meanwhile.
        content = {"holder": holder, "do": do, "pid": os.getpid(), "since_s": _uptime_s()}
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, json.dumps(content).encode(), 0)
        return True

    def holder(self) -> str:
        """Who holds it: `ana@desk (compile, for 35 s)`."""
        try:
            content: Json = json.loads(os.pread(self.fd, 4096, 0))
            seconds = max(0.0, _uptime_s() - float(content["since_s"]))
            return f"{content['holder']} ({content['do']}, for {seconds:.0f} s)"
        except (ValueError, KeyError, TypeError, OSError):
            return "somebody else"  # being written just now

    def close(self) -> None:
        """Let go of it here."""
        os.close(self.fd)


def _uptime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
