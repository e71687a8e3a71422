"""Content hashes of files and folders, remembered by stat so that an unchanged gigabyte is not read twice."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from pathlib import Path

from edgecnn.errors import EdgeError

# A file changed within this time of being hashed may change again without a new time stamp: not remembered.
RACY_NS = 2_000_000_000


class Digests:
    """SHA-256 of files, kept in a small database keyed by path, size, inode, mtime and ctime.

    Safe for many processes: SQLite locks; a database that can't be used only costs the hashing.
    """

    def __init__(self, database: Path) -> None:
        self.database = database
        self.connection: sqlite3.Connection | None = None

    def of(self, path: Path) -> str:
        """Hex SHA-256 of a file, or of a folder's sorted (name, content) pairs; `missing` when there is none."""
        if path.is_dir():
            content = hashlib.sha256()
            # Linked folders too: their images are read, so a change in them must be seen.
            for root, folders, names in os.walk(path, followlinks=True):
                folders.sort()
                for name in sorted(names):
                    file = Path(root, name)
                    content.update(f"{file.relative_to(path).as_posix()}\0{self._of_file(file)}\n".encode())
            return content.hexdigest()
        if not path.exists():
            return "missing"
        return self._of_file(path)

    def _of_file(self, path: Path) -> str:
        stat = path.stat()
        known = (str(path.absolute()), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
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
            raise EdgeError(f"cannot read `{path}`: {error.strerror}") from error
        digest = content.hexdigest()
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > RACY_NS:
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
