"""A TCP proxy with the faults of a link: cut without a word, delay, stalls as lost packets make them, a low rate."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

CHUNK = 16384
RETRANSMIT_S = 0.25  # about what TCP waits before it sends a lost segment again


@dataclass
class Faults:
    """What the link does. All may be changed while it runs."""

    delay_s: float = 0.0  # each way
    loss: float = 0.0  # share of chunks that come one retransmission late, and all behind them
    rate: float = 0.0  # bytes per second each way; 0: unlimited
    cut: bool = False  # nothing passes, and nobody is told
    refuse: bool = False  # new connections are closed at once
    cut_after: int = 0  # cut by itself once this many bytes went to the server; 0: never
    cut_after_down: int = 0  # the same for bytes to the client


@dataclass
class Proxy:
    """Listens on `port` of 127.0.0.1 in a thread of its own and passes everything on to `target`."""

    target: int
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    port: int = 0
    up: int = 0  # bytes sent to the server so far
    down: int = 0
    connections: int = 0

    def __post_init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.random = random.Random(self.seed)
        self.tasks: set[asyncio.Task[None]] = set()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def start(self) -> None:
        self.thread.start()
        self._call(self._listen())

    def stop(self) -> None:
        self._call(self._close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def heal(self) -> None:
        """Forget every fault; connections that were cut are dropped, as after a reboot of the router."""
        self.faults = Faults()
        self._call(self._drop())

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    async def _listen(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=CHUNK)
        self.port = self.server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self.server.close()
        await self._drop()

    async def _drop(self) -> None:
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.connections += 1
        writers = [writer]
        try:
            while self.faults.cut:
                await asyncio.sleep(0.05)  # the handshake was the kernel's; nobody answers
            if self.faults.refuse:
                return
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target, limit=CHUNK)
            writers.append(up_writer)
            for end in writers:
                sock = end.get_extra_info("socket")
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            first = asyncio.ensure_future(self._pass(reader, up_writer, up=True))
            second = asyncio.ensure_future(self._pass(up_reader, writer, up=False))
            try:
                # One side's end ends both: SSH has no half-open state.
                await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                first.cancel()
                second.cancel()
                await asyncio.gather(first, second, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the server is not there, or the test is over
        finally:
            self.tasks.discard(task)
            for end in writers:
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        """Move chunks in order; each leaves at the time that delay, rate and losses allow."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)

        async def deliver() -> None:
            while True:
                due, data = await queue.get()
                wait = due - self.loop.time()
                if wait > 0:
                    await asyncio.sleep(wait)
                while self.faults.cut:
                    await asyncio.sleep(0.05)
                if not data:
                    return
                writer.write(data)
                await writer.drain()

        delivery = asyncio.ensure_future(deliver())
        free = 0.0  # when the link is free again
        try:
            while True:
                data = await reader.read(CHUNK)
                while self.faults.cut:
                    await asyncio.sleep(0.05)
                self._count(len(data), up=up)
                now = self.loop.time()
                free = max(free, now)
                if self.faults.rate:
                    free += len(data) / self.faults.rate
                if self.faults.loss and self.random.random() < self.faults.loss:
                    free += RETRANSMIT_S + 2 * self.faults.delay_s
                await queue.put((free + self.faults.delay_s, data))
                if not data:
                    await delivery
                    return
                if self.faults.rate and free > now:
                    await asyncio.sleep(free - now)
        except OSError:
            return
        finally:
            delivery.cancel()
            await asyncio.gather(delivery, return_exceptions=True)

    def _count(self, size: int, *, up: bool) -> None:
        if up:
            self.up += size
            if self.faults.cut_after and self.up >= self.faults.cut_after:
                self.faults.cut = True
        else:
            self.down += size
            if self.faults.cut_after_down and self.down >= self.faults.cut_after_down:
                self.faults.cut = True


@contextlib.contextmanager
def between(target: int, faults: Faults | None = None, seed: int = 0) -> Iterator[Proxy]:
    """A started proxy before a port of 127.0.0.1."""
    proxy = Proxy(target, faults or Faults(), seed)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
