"""The one walk over a folder, and content hashes of what it finds.

Hashes are remembered by stat, so that an unchanged gigabyte is not read twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgecnn.process.errors import EdgeError

# A file changed within this time of being hashed may change again without a new time stamp: not remembered.
RACY_NS = 2_000_000_000


@dataclass(frozen=True)
class Entry:
    """One name below a folder: `path` is relative to it, `real` where its bytes are.

    `again` is a folder that was entered under another name, `dangling` a link that leads nowhere or in a circle,
    `special` a pipe, socket or device: opening one may wait for ever.
    """

    path: str
    real: str
    kind: Literal["file", "again", "dangling", "special"]
    link: bool = False


def walk(folder: Path, *, hidden: bool = True) -> Iterator[Entry]:
    """All names below a folder but folders: links are followed, and every real folder is entered once.

    Folders in the tree itself come before those behind links, so what is there twice goes by its own name.

    Raises:
        EdgeError: a folder cannot be read.
    """
    waiting, linked = deque([(os.path.realpath(folder), "")]), deque[tuple[str, str]]()
    entered: set[str] = set()
    while waiting or linked:
        real, prefix = (waiting or linked).popleft()
        if real in entered:
            yield Entry(prefix.rstrip("/"), real, "again", link=True)
            continue
        entered.add(real)
        try:
            names = sorted(os.listdir(real))
        except OSError as error:
            raise EdgeError(
                f"cannot read the folder `{folder / prefix}`: {error.strerror}", "check its permissions"
            ) from error
        for name in names:
            if name.startswith(".") and not hidden:
                continue
            entry = _entry(real, name, prefix)
            if entry is None:
                continue
            if isinstance(entry, Entry):
                yield entry
            else:
                target, link = entry
                (linked if link else waiting).append((target, f"{prefix}{name}/"))


def _entry(folder: str, name: str, prefix: str) -> Entry | tuple[str, bool] | None:
    """The entry of one name; (real path, whether it is a link) of a folder; None of what has gone meanwhile."""
    path, real = f"{prefix}{name}", os.path.join(folder, name)
    try:
        mode = os.lstat(real).st_mode
    except OSError:
        return None
    link = stat.S_ISLNK(mode)
    if link:
        try:
            mode = os.stat(real).st_mode
        except OSError:  # nothing there, a circle, a name that is too long
            return Entry(path, real, "dangling", link=True)
        real = os.path.realpath(real)
    if stat.S_ISDIR(mode):
        return real, link
    return Entry(path, real, "file" if stat.S_ISREG(mode) else "special", link)


def is_regular(path: Path) -> bool:
    """Whether a path leads to a file of bytes: no folder, pipe, socket or device, and no name that cannot be one."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a part over 255 bytes, a NUL
        return False


def exists(path: Path) -> bool:
    """Whether anything is there; False for a name that cannot be."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether a path leads to a folder; False for a name that cannot be one."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


class Digests:
    """SHA-256 of files, kept in a small database keyed by path, size, inode, mtime and ctime.

    Safe for many processes: SQLite locks; a database that can't be used only costs the hashing.
    """

    def __init__(self, database: Path) -> None:
        self.database = database
        self.connection: sqlite3.Connection | None = None

    def of(self, path: Path) -> str:
        """Hex SHA-256 of a file, or of the names and contents below a folder; `missing` when there is none.

        Raises:
            EdgeError: a pipe or device, or what cannot be read.
        """
        if is_folder(path):
            content = hashlib.sha256()
            for entry in walk(path):
                told = entry.kind if entry.kind != "file" else self._of_file(path / entry.path)
                content.update(os.fsencode(entry.path) + f"\0{told}\n".encode())
            return content.hexdigest()
        if not is_regular(path):
            if exists(path):
                raise EdgeError(f"`{path}` is a pipe, socket or device", "give a regular file, or a folder of them")
            return "missing"
        return self._of_file(path)

    def _of_file(self, path: Path) -> str:
        try:
            facts = path.stat()
        except OSError as error:
            raise EdgeError(f"cannot read `{path}`: {error.strerror}", "check the path and its permissions") from error
        # SQLite takes no text that is not UTF-8: such a path is kept as bytes.
        name = str(path.absolute())
        where = name if name.isprintable() else os.fsencode(name)
        known = (where, facts.st_size, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns)
        with contextlib.suppress(sqlite3.Error):
            row = self._open().execute(
                "SELECT digest FROM digests WHERE path=? AND size=? AND inode=? AND mtime=? AND ctime=?", known
            ).fetchone()  # fmt: skip
            if row:
                return str(row[0])
        try:
            with path.open("rb") as file:
                content = hashlib.sha256()
                while block := file.read(1 << 20):
                    content.update(block)
        except OSError as error:
            raise EdgeError(f"cannot read `{path}`: {error.strerror}", "check the path and its permissions") from error
        digest = content.hexdigest()
        if time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) > RACY_NS:
            with contextlib.suppress(sqlite3.Error):
                self._open().execute("INSERT OR REPLACE INTO digests VALUES (?,?,?,?,?,?)", (*known, digest))
        return digest

    def _open(self) -> sqlite3.Connection:
        if self.connection is None:
            connection = sqlite3.connect(self.database, timeout=10, isolation_level=None)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS digests"
                " (path TEXT PRIMARY KEY, size INT, inode INT, mtime INT, ctime INT, digest TEXT)"
            )
            self.connection = connection
        return self.connection
