"""A Shell over asyncssh.

Traps that were met, and are answered here and in `sftp.py`: a command whose link is lost ends without an exception
(exit status and signal are both None); SFTP blocks above 128 KiB end OpenSSH's sftp-server; asyncssh's own keepalive
counts unanswered requests even while other bytes arrive, and so ends a slow link that is merely busy; a login shell
that prints a banner prints it into the SFTP stream, too; `UserKnownHostsFile none` means "trust everyone" to asyncssh.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import asyncssh

from edgecnn.board.life import Life
from edgecnn.board.limits import LinkLimits
from edgecnn.board.replies import BadAnswer
from edgecnn.board.sftp import Sftp, start_sftp
from edgecnn.board.shell import Exit, Unreachable
from edgecnn.board.ssh_options import Address, login_of, refusal_of

LOG_BYTES = 4096  # of stderr
LINE_BYTES = 1 << 20  # a longer line is not our agent's


async def connect(host: str, limits: LinkLimits, config: Path | None = None) -> Ssh:
    """Log in with the user's OpenSSH configuration, agent and known_hosts; host keys are always checked.

    Args:
        host: `[user@]host[:port]`, or an alias of the configuration.
        limits: `connect_s` bounds all of it.
        config: an OpenSSH client configuration in place of the user's own.

    Raises:
        Unreachable: which step failed (name, network, host key, login, file server), and what to do.
    """
    logging.getLogger("asyncssh").setLevel(logging.CRITICAL)  # what matters is in our errors
    login = login_of(Address.parse(host), config, limits)
    start = time.monotonic()
    try:
        connection = await asyncio.wait_for(asyncssh.connect(**login.arguments), limits.connect_s)
    except (asyncssh.Error, OSError, ValueError, asyncio.TimeoutError) as error:
        raise refusal_of(error, login, limits) from error
    try:
        left_s = limits.connect_s - (time.monotonic() - start)
        client = await asyncio.wait_for(start_sftp(connection), left_s)
    except (asyncssh.Error, OSError, EOFError, asyncio.TimeoutError) as error:
        connection.abort()
        raise Unreachable(
            f"`{host}` lets us in, but its file server (SFTP) does not start: {str(error) or 'it does not answer'}",
            f"look at what `sftp {host}` says; the login shell must start programs, and sshd needs a `Subsystem sftp`",
        ) from error
    except BaseException:
        connection.abort()
        raise
    return Ssh(host, connection, client, limits)


class Ssh:
    """See Shell. One connection for the command and for files."""

    def __init__(
        self, host: str, connection: asyncssh.SSHClientConnection, client: asyncssh.SFTPClient, limits: LinkLimits
    ) -> None:
        self.address = host
        self.connection, self.limits = connection, limits
        self.life = Life(host, limits.silence_s)
        self.files = Sftp(client, self.life)
        self.ended = asyncio.ensure_future(connection.wait_closed())
        self._listen()
        self.watch = asyncio.ensure_future(self.life.watch(connection.abort))

    def _listen(self) -> None:
        """Let every byte that comes count as life: of half a packet on a slow link too, and those of sshd's answers to
        keepalives while its file server waits for a disk."""
        receive = self.connection.data_received

        def heard(data: bytes, datatype: int | None = None) -> None:
            self.life.heard()
            receive(data, datatype)

        self.connection.data_received = heard  # type: ignore[method-assign]

    @property
    def open(self) -> bool:
        """See Shell."""
        return not self.ended.done()

    async def run(self, command: str, *, beat_s: float, on_line: Callable[[bytes], None]) -> Exit:
        """See Shell."""
        try:
            process = await self.connection.create_process(command, encoding=None)
        except (asyncssh.Error, OSError) as error:
            raise self.life.lost() from error
        log = bytearray()
        lines = _Lines(on_line)
        beats = asyncio.ensure_future(self._beat(process, beat_s))
        logging_ = asyncio.ensure_future(self._read(process.stderr, lambda data: _keep_tail(log, data)))
        try:
            await self._read(process.stdout, lines.take)
            await logging_
            await process.wait_closed()
        except asyncio.CancelledError:
            await self._stop(process)
            raise
        except (asyncssh.Error, OSError) as error:
            raise self.life.lost() from error
        finally:
            beats.cancel()
            logging_.cancel()
            process.close()
        if process.exit_status is None and process.exit_signal is None:
            raise self.life.lost()
        lines.end()
        signal = process.exit_signal[0] if process.exit_signal else None
        return Exit(None if signal else process.exit_status, signal, log.decode(errors="replace").strip())

    async def _read(self, reader: asyncssh.SSHReader[bytes], take: Callable[[bytes], None]) -> None:
        while data := await reader.read(1 << 16):
            take(data)

    async def _beat(self, process: asyncssh.SSHClientProcess[bytes], beat_s: float) -> None:
        with contextlib.suppress(OSError):  # the command has ended
            while True:
                process.stdin.write(b"\n")
                await asyncio.sleep(beat_s)

    async def _stop(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        """Close the command's stdin and wait for its end."""
        with contextlib.suppress(asyncssh.Error, OSError, asyncio.TimeoutError):
            process.stdin.write_eof()
            await asyncio.wait_for(process.wait_closed(), self.limits.stop_s)

    async def close(self) -> None:
        """See Shell."""
        self.watch.cancel()
        self.connection.close()
        with contextlib.suppress(asyncssh.Error, OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self.connection.wait_closed(), 1.0)
        self.connection.abort()


def _keep_tail(log: bytearray, data: bytes) -> None:
    log += data
    del log[:-LOG_BYTES]


class _Lines:
    """Cuts a stream into lines."""

    def __init__(self, on_line: Callable[[bytes], None]) -> None:
        self.on_line = on_line
        self.rest = b""

    def take(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.on_line(line)
        if len(self.rest) > LINE_BYTES:
            raise BadAnswer(f"a line of more than {LINE_BYTES >> 20} MiB")

    def end(self) -> None:
        """What came after the last newline."""
        if self.rest:
            self.on_line(self.rest)
