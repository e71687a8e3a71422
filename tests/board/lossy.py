"""A link of real IP packets with delay and loss: a TUN device here, one in a network namespace, and us between them.

For root on Linux. The kernel's own netem needs a module that many machines lack.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from programs import why_missing

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


@dataclass(frozen=True)
class Lossy:
    """The addresses of both ends, and the process in whose network namespace the far one is."""

    here: str
    there: str
    namespace: int

    @property
    def prefix(self) -> tuple[str, ...]:
        """Put before a command that is to run at the far end."""
        return ("nsenter", "-t", str(self.namespace), "-n")


def why_not() -> str | None:
    """Why there can be no such link here; None where it can."""
    if os.geteuid() != 0:
        return "only root makes TUN devices"
    if not os.path.exists("/dev/net/tun"):
        return "no /dev/net/tun"
    if why := why_missing("ip"):
        return why
    done = subprocess.run(["unshare", "-n", "ip", "link"], capture_output=True, text=True)
    return None if done.returncode == 0 else f"no network namespaces: {done.stderr.strip()}"


def _tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


def _move(ends: tuple[int, int], delay_s: float, loss: float, seed: int, stop: threading.Event) -> None:
    """Move packets between two devices: each arrives `delay_s` later, or with chance `loss` never."""
    chance = random.Random(seed)
    flying: list[tuple[float, int, int, bytes]] = []
    number = 0
    while not stop.is_set():
        wait = max(0.0, flying[0][0] - time.monotonic()) if flying else 0.05
        ready, _, _ = select.select(ends, (), (), min(wait, 0.05))
        for end in ready:
            packet = os.read(end, 65536)
            if chance.random() >= loss:
                number += 1
                other = ends[1] if end == ends[0] else ends[0]
                heapq.heappush(flying, (time.monotonic() + delay_s, number, other, packet))
        while flying and flying[0][0] <= time.monotonic():
            *_, other, packet = heapq.heappop(flying)
            with contextlib.suppress(OSError):  # the device is full: one more loss
                os.write(other, packet)


@contextlib.contextmanager
def lossy(*, delay_s: float, loss: float, seed: int = 0) -> Iterator[Lossy]:
    """A link with `delay_s` each way and a share `loss` of packets that never arrive, each way."""
    net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
    here, there = f"{net}.1", f"{net}.2"
    names = (f"edge{os.getpid() % 10**6}a", f"edge{os.getpid() % 10**6}b")
    holder = subprocess.Popen(["unshare", "-n", "sleep", "infinity"])
    ends = (_tun(names[0]), _tun(names[1]))
    stop = threading.Event()
    mover = threading.Thread(target=_move, args=(ends, delay_s, loss, seed, stop), daemon=True)
    link = Lossy(here, there, holder.pid)
    try:
        while os.readlink(f"/proc/{holder.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            time.sleep(0.01)
        commands = [
            ["ip", "link", "set", names[1], "netns", str(holder.pid)],
            ["ip", "addr", "add", here, "peer", there, "dev", names[0]],
            ["ip", "link", "set", names[0], "up"],
            [*link.prefix, "ip", "addr", "add", there, "peer", here, "dev", names[1]],
            [*link.prefix, "ip", "link", "set", names[1], "up"],
        ]
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)
        mover.start()
        yield link
    finally:
        stop.set()
        if mover.is_alive():
            mover.join()
        for end in ends:
            os.close(end)  # which removes the devices
        holder.kill()
        holder.wait()
