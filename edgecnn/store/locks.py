"""Who makes a stage, who uses it, and who may drop it: the kernel's own locks, which end with whoever holds them.

Two files for each key. `<stage>-<key>`: held by whoever makes the stage, and by its children. `<stage>-<key>.used`:
shared by all builds that rest on the stage, to their end. Whoever drops it must have both alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgecnn.process import progress


@dataclass(frozen=True)
class Locks:
    """The locks of a store, files in `folder`. A name is `<stage>-<key>`."""

    folder: Path

    @contextlib.contextmanager
    def making(self, name: str, stage: str) -> Iterator[int]:
        """Be the only one that makes this stage; waits for another, and says so. Yields the lock's descriptor."""
        lock = self._open(name)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(lock, 64, 0).decode(errors="replace").strip()
                progress.current().note(f"{stage}: being made by process {holder or '?'}; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
            yield lock
        finally:
            os.close(lock)

    def use(self, name: str) -> int:
        """Keep a stage from being dropped until the returned descriptor is closed; waits while it is being dropped."""
        lock = self._open(f"{name}.used")
        fcntl.flock(lock, fcntl.LOCK_SH)
        return lock

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[bool]:
        """Whether nobody makes or uses this stage now; if so, nobody begins to before the context ends."""
        with contextlib.ExitStack() as stack:
            try:
                for part in (name, f"{name}.used"):
                    lock = self._open(part)
                    stack.callback(os.close, lock)
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _open(self, name: str) -> int:
        return os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o600)
