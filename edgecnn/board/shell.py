"""What we need of a board's login: one constant command, and files. `ssh.py` is the one real implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from edgecnn.process.errors import EdgeError

ROOT = ".cache/edgecnn"  # of the login's home: the one folder on the board that is ours


class Unreachable(EdgeError):
    """No session on the board could be opened: name, network, host key, login."""


class LinkLost(EdgeError):
    """A session that was open is gone: cut, silent for too long, or closed by the board."""


class FileRefused(Exception):
    """The board refused a file operation. SFTP says little: `missing`, `denied`, or just `failed`."""

    def __init__(self, path: str, kind: Literal["missing", "denied", "failed"], words: str) -> None:
        super().__init__(f"{path}: {words}")
        self.path, self.kind, self.words = path, kind, words


@dataclass(frozen=True)
class Exit:
    """How a command ended: its exit code or, ended by a signal, its name as `KILL`; and the end of its stderr."""

    code: int | None
    signal: str | None
    log: str


@dataclass(frozen=True)
class Space:
    """The disk behind a folder of the board."""

    free_bytes: int
    read_only: bool


@dataclass(frozen=True)
class Used:
    """A file's bytes, and when it was last written or touched: seconds by the board's clock."""

    size: int
    time_s: float


class Files(Protocol):
    """Files on the board. Paths are relative to the login's home.

    Every method raises LinkLost when the session is gone, and FileRefused when the board refuses a file.
    """

    async def put(self, local: Path, remote: str, *, offset: int, on_bytes: Callable[[int], None]) -> None:
        """Write a local file from `offset` on at the same offset of a remote one (made when missing, mode 0600), and
        flush it to the disk. `on_bytes` is told of every number of bytes that the board has confirmed."""

    async def put_bytes(self, data: bytes, remote: str) -> None:
        """Write a small file as a whole, mode 0600, and flush it to the disk."""

    async def get(self, remote: str, local: Path, *, offset: int, size: int, on_bytes: Callable[[int], None]) -> None:
        """Append bytes `offset` to `size` of a remote file to a local one that holds the first `offset`.

        A remote file that ends earlier gives a local one that is shorter.
        """

    async def get_bytes(self, remote: str, limit: int) -> bytes:
        """At most the first `limit` bytes (64 KiB) of a file, of one in /proc too."""

    async def size(self, remote: str) -> int | None:
        """Bytes of a file; None when there is none."""

    async def used(self, remote: str) -> Used:
        """How large a file is and when it was last used."""

    async def make_folder(self, remote: str) -> None:
        """Make a folder of mode 0700 unless it is there."""

    async def names(self, remote: str) -> list[str]:
        """Names in a folder; none when it is missing."""

    async def rename(self, remote: str, to: str) -> None:
        """Rename a file over whatever has the new name, atomically."""

    async def remove(self, remote: str) -> None:
        """Remove a file; one that is missing is fine."""

    async def remove_folder(self, remote: str) -> None:
        """Remove an empty folder; one that is missing is fine."""

    async def space(self, remote: str) -> Space | None:
        """The disk behind a folder; None where the board doesn't tell."""


class Shell(Protocol):
    """An open session on a board."""

    @property
    def address(self) -> str:
        """The board as the person named it."""

    @property
    def open(self) -> bool:
        """False once the session is known to be gone."""

    @property
    def files(self) -> Files:
        """Its files."""

    async def run(self, command: str, *, beat_s: float, on_line: Callable[[bytes], None]) -> Exit:
        """Run a command until it ends; a byte goes to its stdin every `beat_s` seconds, each stdout line to `on_line`.

        Cancelled, its stdin is closed and its end awaited for as long as the limits say.

        Raises:
            LinkLost: the session is gone.
        """

    async def close(self) -> None:
        """End the session."""
