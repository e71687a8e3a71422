"""Signs of life from the host, and the pipes that are listened to beside them."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import threading
import time
from types import FrameType

from edgecnn.agent.protocol import HEARTBEAT_S

STDIN, STDOUT = 0, 1
BACKLOG = 1000  # lines that wait for a slow link before progress is dropped


class HostGone(Exception):
    """The host is gone, or wants the end: why, and in one word."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why


class Life:
    """Reads the heartbeats on stdin while others' pipes are waited for. Lives in the main thread: it takes signals."""

    def __init__(self, heartbeat_s: float = HEARTBEAT_S) -> None:
        self.heartbeat_s = heartbeat_s
        self.last = time.monotonic()
        self.signal: int | None = None
        self.listening = True
        self.poll = select.poll()
        self.poll.register(STDIN, select.POLLIN)
        self.woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.poll.register(self.woken, select.POLLIN)
        signal.set_wakeup_fd(wakes)
        for one in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(one, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number

    def watch(self, descriptor: int) -> None:
        """Wait for this one too."""
        self.poll.register(descriptor, select.POLLIN)

    def unwatch(self, descriptor: int) -> None:
        """No longer."""
        with contextlib.suppress(KeyError):
            self.poll.unregister(descriptor)

    def stop_listening(self) -> None:
        """The host no longer counts: what is left to do is done without it."""
        self.listening = False
        self.unwatch(STDIN)

    def listen_again(self) -> None:
        """The host counts again, as if it had just been heard."""
        self.listening, self.last = True, time.monotonic()
        self.poll.register(STDIN, select.POLLIN)

    def wait(self, seconds: float) -> set[int]:
        """The watched descriptors with something to read, or at their end, within `seconds`.

        Raises:
            HostGone: no heartbeat for `heartbeat_s`, stdin at its end, or a signal to end.
        """
        if self.listening:
            seconds = min(seconds, max(0.0, self.last + self.heartbeat_s - time.monotonic()))
        ready = {descriptor for descriptor, _ in self.poll.poll(max(1, int(seconds * 1000) + 1))}
        if self.woken in ready:
            ready.discard(self.woken)
            os.read(self.woken, 4096)
        if not self.listening:
            return ready
        if self.signal is not None:
            raise HostGone("ended", f"the agent was asked to end ({signal.Signals(self.signal).name})")
        # Read before judging: after a stop of this process the heartbeats are waiting here.
        if STDIN in ready:
            ready.discard(STDIN)
            if not os.read(STDIN, 65536):
                raise HostGone("ended", "the host closed the connection")
            self.last = time.monotonic()
        if time.monotonic() - self.last >= self.heartbeat_s:
            raise HostGone("heartbeat", f"no sign of life from the host for {self.heartbeat_s:g} s")
        return ready


class Out:
    """Lines to the host, written by a thread: a link that takes nothing must not stop the listening."""

    def __init__(self) -> None:
        self.lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._write, daemon=True)
        self.thread.start()

    def put(self, line: bytes, *, droppable: bool = False) -> None:
        """Send one line, its newline in it; progress is dropped where the link is too slow for it."""
        if not droppable or self.lines.qsize() < BACKLOG:
            self.lines.put(line)

    def end(self) -> None:
        """Nothing more comes."""
        self.lines.put(None)

    def ended(self, seconds: float) -> bool:
        """Whether all of it gets out within `seconds`."""
        self.thread.join(seconds)
        return not self.thread.is_alive()

    def _write(self) -> None:
        while (line := self.lines.get()) is not None:
            with contextlib.suppress(OSError):  # nobody listens any more: the heartbeat decides what that means
                while line:
                    line = line[os.write(STDOUT, line) :]
