"""Files of a board over SFTP: Files over asyncssh."""

from __future__ import annotations

import asyncio
import contextlib
import io
import stat
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import asyncssh
from asyncssh import sftp as sftp_protocol

from edgecnn.board.life import Life
from edgecnn.board.pace import MOST, Pace
from edgecnn.board.shell import FileRefused, Space, Used

T = TypeVar("T")
BANNER_BYTES = 1 << 16
MOST_NAMES = 100_000  # in one folder
READ_ONLY = 1  # SSH_FXE_STATVFS_ST_RDONLY


async def start_sftp(connection: asyncssh.SSHClientConnection) -> asyncssh.SFTPClient:
    """Start the file server of a connection, whatever its login shell prints first."""
    writer, reader, _ = await connection.open_session(subsystem="sftp", encoding=None)
    loop = asyncio.get_running_loop()
    behind: Any = _AfterBanner(reader)
    return await sftp_protocol.start_sftp_client(connection, loop, "strict", behind, writer, "utf-8", "strict", 3)


class _AfterBanner:
    """The stream behind a banner. Text has no zero byte; the length of the first packet starts with one."""

    def __init__(self, reader: asyncssh.SSHReader[bytes]) -> None:
        self.reader = reader
        self.started = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reader, name)

    async def readexactly(self, count: int) -> bytes:
        if self.started:
            return await self.reader.readexactly(count)
        banner = b""
        while (byte := await self.reader.read(1)) != b"\0":
            banner += byte
            if not byte or len(banner) > BANNER_BYTES:
                said = banner.decode(errors="replace").strip().splitlines()
                raise asyncssh.SFTPConnectionLost(
                    f"the login shell said `{said[-1][:200]}`" if said else "it ended at once"
                )
        self.started = True
        return byte + await self.reader.readexactly(count - 1)


class Sftp:
    """See Files."""

    def __init__(self, client: asyncssh.SFTPClient, life: Life) -> None:
        self.client, self.life = client, life

    async def put(self, local: Path, remote: str, *, offset: int, on_bytes: Callable[[int], None]) -> None:
        """See Files."""
        with local.open("rb") as source:
            source.seek(offset)
            await self._write(source, remote, asyncssh.FXF_WRITE | asyncssh.FXF_CREAT, offset, on_bytes)

    async def put_bytes(self, data: bytes, remote: str) -> None:
        """See Files."""
        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_TRUNC
        await self._write(io.BytesIO(data), remote, flags, 0, lambda _: None)

    async def _write(
        self, source: BinaryIO, remote: str, flags: int, offset: int, on_bytes: Callable[[int], None]
    ) -> None:
        """Blocks leave and are confirmed in order, so that what a cut leaves is a true beginning."""
        file = await self._open(remote, flags)
        pace = Pace()
        flying: deque[tuple[int, asyncio.Future[int]]] = deque()
        try:
            while (data := source.read(pace.block)) or flying:
                if data:
                    flying.append((len(data), asyncio.ensure_future(file.write(data, offset))))
                    offset += len(data)
                    pace.sent(len(data))
                while flying and (not data or pace.full or flying[0][1].done()):
                    size, request = flying.popleft()
                    await self._answer(remote, request)
                    pace.arrived(size)
                    on_bytes(size)
            await self._answer(remote, self._flush(file))
        finally:
            _drop([request for _, request in flying])
            self._close(file)

    async def get(self, remote: str, local: Path, *, offset: int, size: int, on_bytes: Callable[[int], None]) -> None:
        """See Files."""
        file = await self._open(remote, asyncssh.FXF_READ)
        pace = Pace()
        flying: deque[tuple[int, asyncio.Future[bytes]]] = deque()
        wanted = offset
        try:
            with local.open("r+b" if local.exists() else "w+b") as sink:
                sink.truncate(offset)
                sink.seek(offset)
                while wanted < size or flying:
                    while wanted < size and not pace.full:
                        count = min(pace.block, size - wanted)
                        flying.append((count, asyncio.ensure_future(file.read(count, wanted))))
                        pace.sent(count)
                        wanted += count
                    count, request = flying.popleft()
                    data = await self._answer(remote, request)
                    pace.arrived(count)
                    sink.write(data)
                    on_bytes(len(data))
                    if len(data) > count:
                        raise FileRefused(remote, "failed", "the board sends more bytes than it was asked for")
                    if len(data) < count:
                        return  # the file ends here
        finally:
            _drop([request for _, request in flying])
            self._close(file)

    async def get_bytes(self, remote: str, limit: int) -> bytes:
        """See Files."""
        file = await self._open(remote, asyncssh.FXF_READ)
        try:
            return cast(bytes, await self._answer(remote, file.read(limit, 0)))
        finally:
            self._close(file)

    async def size(self, remote: str) -> int | None:
        """See Files."""
        try:
            return (await self._answer(remote, self.client.stat(remote))).size
        except FileRefused as error:
            if error.kind == "missing":
                return None
            raise

    async def used(self, remote: str) -> Used:
        """See Files."""
        found = await self._answer(remote, self.client.stat(remote))
        return Used(found.size or 0, float(found.mtime or 0))

    async def make_folder(self, remote: str) -> None:
        """See Files."""
        try:
            await self._answer(remote, self.client.mkdir(remote, asyncssh.SFTPAttrs(permissions=0o700)))
        except FileRefused:
            with contextlib.suppress(FileRefused):  # what is told is why it can't be made
                found = await self._answer(remote, self.client.stat(remote))
                if stat.S_ISDIR(found.permissions or 0):
                    return
            raise

    async def names(self, remote: str) -> list[str]:
        """See Files."""
        try:
            found = await self._answer(remote, self._listed(remote))
        except FileRefused as error:
            if error.kind == "missing":
                return []
            raise
        return sorted(name for name in found if name not in (".", ".."))

    async def _listed(self, remote: str) -> list[str]:
        found = []
        async for entry in self.client.scandir(remote):
            found.append(str(entry.filename))
            if len(found) > MOST_NAMES:
                raise FileRefused(remote, "failed", f"it lists more than {MOST_NAMES:,} names")
        return found

    async def rename(self, remote: str, to: str) -> None:
        """See Files."""
        await self._answer(remote, self.client.posix_rename(remote, to))

    async def remove(self, remote: str) -> None:
        """See Files."""
        await self._missing_is_fine(remote, self.client.remove(remote))

    async def remove_folder(self, remote: str) -> None:
        """See Files."""
        await self._missing_is_fine(remote, self.client.rmdir(remote))

    async def space(self, remote: str) -> Space | None:
        """See Files."""
        try:
            found = await self._answer(remote, self.client.statvfs(remote))
        except FileRefused:
            return None
        return Space(found.bavail * found.frsize, bool(found.flags & READ_ONLY))

    async def _answer(self, path: str, request: Awaitable[T]) -> T:
        """Await one answer of the file server; its errors are told in our words."""
        try:
            return await request
        except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
            raise self.life.lost() from error
        except asyncssh.SFTPError as error:
            match error:
                case asyncssh.SFTPNoSuchFile() | asyncssh.SFTPNoSuchPath():
                    raise FileRefused(path, "missing", error.reason) from error
                case asyncssh.SFTPPermissionDenied() | asyncssh.SFTPWriteProtect():
                    raise FileRefused(path, "denied", error.reason) from error
                case _:
                    raise FileRefused(path, "failed", error.reason) from error
        except (asyncssh.Error, ConnectionError) as error:
            raise self.life.lost() from error

    async def _missing_is_fine(self, remote: str, request: Awaitable[None]) -> None:
        try:
            await self._answer(remote, request)
        except FileRefused as error:
            if error.kind != "missing":
                raise

    async def _open(self, remote: str, flags: int) -> asyncssh.SFTPClientFile:
        private = asyncssh.SFTPAttrs(permissions=0o600)
        return await self._answer(remote, self.client.open(remote, flags, private, None, block_size=MOST))

    async def _flush(self, file: asyncssh.SFTPClientFile) -> None:
        with contextlib.suppress(asyncssh.SFTPOpUnsupported):  # an extension of OpenSSH
            await file.fsync()

    def _close(self, file: asyncssh.SFTPClientFile) -> None:
        """Give a handle back without waiting: on a full link the answer comes behind all that is still flying."""
        _drop([asyncio.ensure_future(file.close())], cancel=False)


def _drop(requests: Iterable[asyncio.Future[Any]], *, cancel: bool = True) -> None:
    """Nobody waits for these any more; their errors are those of the one that was awaited."""
    for request in requests:
        if cancel:
            request.cancel()
        request.add_done_callback(lambda done: done.cancelled() or done.exception())
