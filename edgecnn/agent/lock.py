"""One job at a time on a board: an flock on a file of this login, and a name that all logins of the board share.

The file says who holds it. The name is an abstract Unix socket: bound by one process at most, whoever it belongs to,
with no file that others could plant or block, and open to nobody: it answers nothing. The kernel tells its owner. The
guard hands both descriptors to the worker and the keeper, so that the board is free only when all of them are gone,
however they ended.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import pwd
import socket
import struct
import time
from pathlib import Path

from edgecnn.agent.protocol import Json, Refusal

# Where several boards share one kernel and network (containers with a GPU each, tests): a name for each.
BOARD = "EDGECNN_BOARD"


class Lock:
    """The lock file, opened. Free it by closing, which the end of the process does too.

    Args:
        whole_board: other logins are kept out too, not only the other jobs of this one.
    """

    def __init__(self, path: Path, *, whole_board: bool = True) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.whole_board = whole_board
        self.board: socket.socket | None = None
        self.asked: socket.socket | None = None  # open to whoever holds the board
        self.elsewhere = False  # not another job of this login holds it, when last tried

    def take(self, holder: str, do: str) -> bool:
        """Take it if it is free, and say in it who holds it; False when somebody else does.

        Raises:
            Refusal: this system has no such sockets for us.
        """
        self.elsewhere = False
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        if self.whole_board and not self._bind():
            self.elsewhere = True
            fcntl.flock(self.fd, fcntl.LOCK_UN)
            return False
        self._hang_up()
        # The time since start-up: the board's clock may be off by years, and be set right meanwhile.
        content = {"holder": holder, "do": do, "pid": os.getpid(), "since_s": _uptime_s()}
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, json.dumps(content).encode(), 0)
        return True

    def holder(self) -> str:
        """Who holds it: `ana@desk (compile, for 35 s)`, or another login of the board."""
        if self.elsewhere:
            return self._owner()
        try:
            content: Json = json.loads(os.pread(self.fd, 4096, 0))
            seconds = max(0.0, _uptime_s() - float(content["since_s"]))
            return f"{content['holder']} ({content['do']}, for {seconds:.0f} s)"
        except (ValueError, KeyError, TypeError, OSError):
            return "somebody else"  # being written just now

    def descriptors(self) -> tuple[int, ...]:
        """What keeps it held in whoever inherits it."""
        return (self.fd, *([self.board.fileno()] if self.board else []))

    def close(self) -> None:
        """Let go of it here."""
        self._hang_up()
        if self.board is not None:
            self.board.close()
        os.close(self.fd)

    def _bind(self) -> bool:
        board = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            board.bind(_name())
            board.listen()  # from now on the kernel tells who asks whose it is
        except OSError as error:
            board.close()
            if error.errno == errno.EADDRINUSE:
                return False
            raise Refusal("refused", f"the board cannot be locked: {error}", "allow the login Unix sockets") from error
        self.board = board
        return True

    def _owner(self) -> str:
        """The login that holds the board, as the kernel knows it.

        Asked once: nobody accepts, so that every question stays in a queue of some hundred until the holder ends.
        """
        try:
            if self.asked is None or not _is_open(self.asked):
                self._hang_up()
                self.asked = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self.asked.setblocking(False)
                self.asked.connect(_name())
            pid, uid, _ = struct.unpack("3i", self.asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError:
            self._hang_up()
            return "another login of the board"
        try:
            login = pwd.getpwuid(uid).pw_name
        except KeyError:
            login = f"number {uid}"
        return f"another login of the board, {login} (process {pid})"

    def _hang_up(self) -> None:
        if self.asked is not None:
            self.asked.close()
            self.asked = None


def _is_open(asked: socket.socket) -> bool:
    """Whether the other end is still there: it never says anything."""
    try:
        return bool(asked.recv(1))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _name() -> bytes:
    which = os.environ.get(BOARD, "")
    return b"\0edgecnn-board" + (hashlib.sha256(which.encode()).hexdigest().encode() if which else b"")


def _uptime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
