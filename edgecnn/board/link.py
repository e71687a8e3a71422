"""The link to a board: OpenSSH's own `ssh`, in which one small shell loop takes our commands one after the other.

So the person's configuration, keys, agents, jump hosts and known_hosts mean here what they mean to `ssh`. The remote
command line is a constant; what we ask travels as lines on its stdin, whose words the loop takes as data. Whatever a
login shell prints comes before the loop's first word. Files travel as a number of bytes, so that no content is ever
taken for a command. ssh's keepalives end a silent link, and any byte that comes counts as life: where their answers
would stand behind seconds of a file on its way, the loop says something every second.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import BinaryIO

from edgecnn.board.limits import LinkLimits
from edgecnn.board.login import OPTIONS, Address, Unreachable, login_words, refusal_of
from edgecnn.board.replies import BadAnswer
from edgecnn.process.errors import EdgeError, printable

BLOCK = 1 << 16  # at whose multiples a put may begin
LINE_BYTES = 1 << 20  # a longer line is not ours, nor our agent's
BANNER_BYTES = 1 << 16
MOST_LINES = 100_000  # of one answer
SILENT = 300.0  # seconds without a word from a board that has a command
HELLO, DATA, END = b"edgecnn-link", b"edgecnn-data ", b"edgecnn-end "

# Beside a beat nothing else may write: words of the shell about it, in pieces, would get into a line of ours.
# What a put can't write is read all the same, or it would be taken for the next command. dd writes at an offset: two
# tools that send the same file do each other no harm.
LOOP = r"""
umask 077; set -f; R=.cache/edgecnn; L=$LC_ALL; export LC_ALL=C; echo edgecnn-link;
beat() { while sleep 1 2>/dev/null; do echo; done; };
free() { df -Pk $R/. | { read -r a; read -r a b c k d; echo $k; }; };
take() { s=$?; cat > /dev/null; return $s; };
while read -r do a b c; do
case $a$b$c in *[!0-9A-Za-z._/-]*|*..*) do=refuse;; esac;
t=; case $do in
boot) cat /proc/sys/kernel/random/boot_id;;
free) free;;
size) for f in $a $b; do if [ -f $R/$f ]; then wc -c < $R/$f; else echo -1; fi; done;;
new) beat & t=$!; mkdir -p $R/${b%/*} && : > $R/$b.$$ && echo edgecnn-data $a &&
head -c $a | { cat > $R/$b.$$ && mv -f $R/$b.$$ $R/$b; take; } || { rm -f $R/$b.$$; false; };;
put) beat & t=$!; mkdir -p $R/${b%/*} && : >> $R/$b && echo edgecnn-data $a &&
head -c $a | { dd of=$R/$b bs=65536 seek=$c conv=notrunc; take; };;
get) if n=$(wc -c < $R/$a); then n=$((n - b)); [ $n -gt $c ] && n=$c; [ $n -lt 0 ] && n=0; echo edgecnn-data $n;
tail -c +$((b + 1)) $R/$a | head -c $n; else false; fi;;
drop) [ $a ] && rm -rf $R/jobs/$a;;
room) { ls -tr $R/files | grep -v part; ls -tr $R/files | grep part; } | while read -r f; do
[ $(free) -ge $a ] && break; wc -c < "$R/files/$f"; rm -f "$R/files/$f"; done;;
run) LC_ALL=$L python3 -u $R/agents/$a.pyz $b;;
"") continue;;
*) echo refused; false;;
esac 2>&1; s=$?; [ $t ] && kill $t 2>/dev/null; echo; echo edgecnn-end $s; done
""".replace("\n", " ").strip()


class LinkLost(EdgeError):
    """A session that was open is gone: cut, silent for too long, or closed by the board."""


class FileRefused(Exception):
    """The board refused a file operation: its programs' words."""


class Link:
    """A session on a board, logged in when made. For one thread at a time; any thread may `close` it.

    Args:
        host: `[user@]host[:port]`, or an alias of the configuration.
        limits: `connect_s` bounds the login.
        config: an OpenSSH client configuration in place of the user's own.

    Every method raises LinkLost when the session is gone.

    Raises:
        Unreachable: which step failed (name, network, host key, login, login shell), and what to do.
    """

    def __init__(self, host: str, limits: LinkLimits, config: Path | None = None) -> None:
        self.host, self.limits = host, limits
        self.closed, self.rest, self.number = False, bytearray(), 0
        words = login_words(Address.parse(host), config)
        alive = ("-o", f"ServerAliveCountMax={max(1, math.ceil(limits.silence_s) - 1)}", "-o", "ServerAliveInterval=1")
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the link
        try:
            self.process = subprocess.Popen(
                [*OPTIONS, *alive, *words, f"exec /bin/sh -c {shlex.quote(LOOP)}"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=self.errors, bufsize=0, start_new_session=True,
                env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},
            )  # fmt: skip
        except OSError as error:
            raise Unreachable(f"`ssh` cannot be started here: {error.strerror}", "install OpenSSH's client") from error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        try:
            self._greet(words)
        except BaseException:
            self.close()
            raise

    def _greet(self, words: Sequence[str]) -> None:
        """Wait for the loop's first word, behind whatever the login shell prints."""
        until = time.monotonic() + self.limits.connect_s
        timely = True
        while (found := self.rest.find(HELLO + b"\n")) < 0 and timely and len(self.rest) < BANNER_BYTES:
            try:
                timely = self._fill(until - time.monotonic())
            except LinkLost:
                break
        if found < 0:
            if not timely:
                self.close()
            printed = self.rest.decode(errors="replace").strip()
            raise refusal_of(printed, timely, self._said(), Address.parse(self.host), words, self.limits)
        del self.rest[: found + len(HELLO) + 1]

    @property
    def open(self) -> bool:
        """False once the session is known to be gone."""
        return not self.closed and self.process.poll() is None

    # --- files: names are relative to ROOT ---

    def ask(self, *words: object) -> list[str]:
        """Have the loop do something, and return the lines that it says.

        Raises:
            FileRefused: it says that it failed.
        """
        self._write(" ".join(map(str, words)).encode() + b"\n")
        return self._end()

    def put(self, source: BinaryIO, name: str, size: int, on_bytes: Callable[[int], None]) -> None:
        """Write a file from where `source` stands, a multiple of BLOCK, to `size`; what it holds there is replaced."""
        begin = source.tell()
        self._give(f"put {size - begin} {name} {begin // BLOCK}", source, size - begin, on_bytes)

    def put_new(self, source: BinaryIO, name: str, size: int) -> None:
        """Write a small file as a whole or not at all, and the folders above it."""
        self._give(f"new {size} {name}", source, size, lambda _: None)

    def _give(self, command: str, source: BinaryIO, size: int, on_bytes: Callable[[int], None]) -> None:
        self._write(f"{command}\n".encode())
        self._begun()
        while size:
            data = source.read(min(BLOCK, size)) or bytes(min(BLOCK, size))  # it was cut short here: the hash tells
            self._write(data)
            size -= len(data)
            on_bytes(len(data))
        self._end()

    def get(self, name: str, sink: BinaryIO, size: int, on_bytes: Callable[[int], None]) -> None:
        """Bring a file's bytes from where `sink` stands to `size`; fewer where it ends earlier."""
        begin = sink.tell()
        self._write(f"get {name} {begin} {size - begin}\n".encode())
        left = self._begun()
        if left > size - begin:
            raise BadAnswer("more bytes than were requested")
        while left:
            while not self.rest:
                self._fill(60.0)
            data = self.rest[:left]
            del self.rest[:left]
            sink.write(data)
            left -= len(data)
            on_bytes(len(data))
        self._end()

    # --- the agent ---

    def run(self, agent: str, job: str) -> None:
        """Start a job; `line` brings what it says, its last is told by `ending`."""
        self._write(f"run {agent} {job}\n".encode())

    def beat(self) -> None:
        """Tell the agent, or the loop, which passes over it, that we are here."""
        self._write(b"\n")

    def line(self, seconds: float) -> bytes | None:
        """The next line; None where there is none within so many seconds."""
        until = time.monotonic() + seconds
        while (end := self.rest.find(b"\n")) < 0:
            if len(self.rest) > LINE_BYTES:
                raise BadAnswer(f"a line of more than {LINE_BYTES >> 20} MiB")
            if not self._fill(until - time.monotonic()):
                return None
        line = bytes(self.rest[:end])
        del self.rest[: end + 1]
        return line

    def _begun(self) -> int:
        """Wait for the number of bytes that will be moved."""
        self._until(DATA)
        return self.number

    def _end(self) -> list[str]:
        return self._until(END)

    def _until(self, mark: bytes) -> list[str]:
        """The lines before the one that starts with a mark, whose number is then `number`."""
        said: list[str] = []
        for _ in range(MOST_LINES):
            line = self.line(SILENT)
            if line is None:
                raise BadAnswer(f"it has said nothing for {SILENT / 60:.0f} minutes")
            if line.startswith((mark, END)):
                self.number = _number(line)
                if line.startswith(END) and (self.number or mark != END):
                    raise FileRefused(*said[:1])
                return said
            if line:  # a beat is empty
                said.append(printable(line.decode(errors="replace"))[:200])
        raise BadAnswer("it goes on and on")

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[self.stdin.write(left) or 0 :]
        except (OSError, ValueError) as error:
            raise self.lost() from error

    def _fill(self, seconds: float) -> bool:
        """Take what comes within so many seconds; False for nothing."""
        try:
            if not select.select([self.stdout], [], [], max(0.0, seconds))[0]:
                return False
            data = os.read(self.stdout.fileno(), BLOCK)
        except (OSError, ValueError) as error:
            raise self.lost() from error
        if not data:
            raise self.lost()
        self.rest += data
        return True

    # --- its end ---

    def lost(self) -> LinkLost:
        """The error of a link that is gone.

        Raises:
            CancelledError: it was closed by another thread of ours.
        """
        if self.closed:
            raise CancelledError
        why = "the board closed the connection"
        if "not responding" in self._said():
            why = f"nothing was heard from it for {self.limits.silence_s:g} s"
        return LinkLost(
            f"the link to `{self.host}` was lost: {why}",
            "look after the board's network and power; the same command continues where this one stopped",
        )

    def _said(self) -> str:
        """What ssh itself said."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")

    def stop(self) -> None:
        """End what runs there by closing its stdin; wait for that as long as the limits say, and close the link."""
        with contextlib.suppress(OSError):
            self.stdin.close()
        until = time.monotonic() + self.limits.stop_s
        with contextlib.suppress(LinkLost, CancelledError):
            while self._fill(until - time.monotonic()):
                self.rest.clear()
        self.close()

    def close(self) -> None:
        """End the session; a job that runs there loses its host, and ends."""
        self.closed = True
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def ending(line: bytes) -> int | None:
    """The exit status in the loop's line after a command; None of any other line."""
    return _number(line) if line.startswith(END) else None


def _number(line: bytes) -> int:
    """The number behind the loop's word."""
    word = line.partition(b" ")[2]
    if not word.isdigit() or len(word) > 18:
        raise BadAnswer("not a number of bytes")
    return int(word)
