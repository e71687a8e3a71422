"""How large the blocks of a file transfer are: small on a slow link, so that its answers come often; else large."""

from __future__ import annotations

import time

LEAST = 16 << 10
MOST = 128 << 10  # larger ones end OpenSSH's sftp-server
MOST_FLYING = 4 << 20  # asked or sent, not yet answered
WINDOW_S = 0.1


class Pace:
    """Follows one transfer: `sent` and `arrived` are told of every block, `block` is the size of the next."""

    def __init__(self) -> None:
        self.block = LEAST
        self.flying = 0
        self.counted = 0
        self.since = time.monotonic()

    @property
    def full(self) -> bool:
        """Whether to wait for an answer before the next block."""
        return self.flying >= MOST_FLYING

    def sent(self, size: int) -> None:
        self.flying += size

    def arrived(self, size: int) -> None:
        """A block was answered; a block is what the link moves in a tenth of a second."""
        self.flying -= size
        self.counted += size
        seconds = time.monotonic() - self.since
        if seconds >= WINDOW_S:
            self.block = max(LEAST, min(MOST, int(self.counted / seconds * WINDOW_S)))
            self.counted, self.since = 0, time.monotonic()
