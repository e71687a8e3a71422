"""The board's rsync for as long as the host is heard.

By itself it outlives a link that was cut without a word: what it writes to keep the link alive counts as life to it,
while sshd still takes that (seen with rsync 3.5).
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence

from edgecnn.agent.programs import find

STDIN = 0
LOOK_S = 0.2  # how often its end is looked for
BLOCK = 1 << 18


def receive(limit_s: float, arguments: Sequence[str]) -> int:
    """Run rsync's server on our stdin and stdout; its exit status, 127 where there is no rsync.

    Args:
        limit_s: the host's rsync sends data or a sign of life twice in that time; when nothing came, ours is ended.
        arguments: as the host's rsync gives them.
    """
    program = find("rsync")
    if program is None:
        print("no rsync here", file=sys.stderr)
        return 127
    child = subprocess.Popen([program, *arguments], stdin=subprocess.PIPE)
    try:
        _pass_on(child, limit_s)
        return child.wait(limit_s)
    except subprocess.TimeoutExpired:
        return 30  # rsync's own word for it
    finally:
        child.kill()
        child.wait()


def _pass_on(child: subprocess.Popen[bytes], limit_s: float) -> None:
    """Give it what comes, until one of the ends is gone or nothing comes for too long."""
    assert child.stdin is not None
    heard = time.monotonic()
    with contextlib.suppress(BrokenPipeError), child.stdin:
        while child.poll() is None and time.monotonic() - heard < limit_s:
            if not select.select([STDIN], [], [], LOOK_S)[0]:
                continue
            data = os.read(STDIN, BLOCK)
            if not data:
                return
            child.stdin.write(data)
            child.stdin.flush()
            heard = time.monotonic()
        if child.poll() is None:
            child.kill()
