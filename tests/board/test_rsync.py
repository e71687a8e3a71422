"""Large files by rsync: as well checked, continued and given up as those by SFTP, which takes over where it fails."""

from __future__ import annotations

import hashlib
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import QUICK, Connect
from proxy import Proxy
from sshd import Sshd, missing

from edgecnn import progress
from edgecnn.agent.pack import pack_agent
from edgecnn.board.jobs import Board
from edgecnn.board.limits import LinkLimits
from edgecnn.board.rsync import WITH_US, Rsync
from edgecnn.board.shell import LinkLost


class Notes(progress.Plain):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


SIZE = 40 << 20  # above what is worth a second login


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    if why := missing("rsync", "ssh"):
        pytest.skip(f"no rsync: {why}")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp("large") / "$(touch x) 'a'\nb"
    path.write_bytes(random.Random(0).randbytes(SIZE))
    return hashlib.sha256(path.read_bytes()).hexdigest(), path


@pytest.fixture
def asked(server: Sshd) -> Path:
    """The board's rsync notes how it was called, and how it ended."""
    note = server.folder / "asked"
    server.add_program("rsync", f'echo "$@" >> {note}\n{shutil.which("rsync")} "$@"\necho "status $?" >> {note}')
    return note


def notes(asked: Path) -> tuple[list[str], list[str]]:
    """(how it was called, how it ended), each time."""
    lines = asked.read_text().splitlines()
    return [line for line in lines if line.startswith("--")], [line for line in lines if line.startswith("status")]


def send(board: Board, digest: str, path: Path) -> None:
    job = {"do": "accept", "files": [{"sha256": digest, "size": path.stat().st_size}]}
    assert board.run(job, {digest: path}, step="send")["have"] == [digest]


def part(server: Sshd, digest: str) -> Path:
    return server.cache / "files" / f"{digest}.part"


def until(found: Callable[[], bool], seconds: float = 30.0) -> None:
    limit = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < limit
        time.sleep(0.02)


def senders(digest: str) -> list[int]:
    """Processes here and there with this file's digest in their command line: rsync, its ssh, the board's rsync."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if digest.encode() in command:
            found.append(int(folder.name))
    return found


def test_a_large_file_goes_by_rsync(
    connect: Connect, server: Sshd, link: Proxy, asked: Path, large: tuple[str, Path]
) -> None:
    digest, path = large
    send(connect(), digest, path)
    there = server.cache / "files" / digest
    assert there.read_bytes() == path.read_bytes()
    assert oct(there.stat().st_mode)[-3:] == "600"
    [line], ended = notes(asked)
    assert ended == ["status 0"]  # it moved the file: nothing was left to SFTP
    assert line.startswith("--server ")
    assert line.endswith(f" . .cache/edgecnn/files/{digest}.part")  # no name of the user's, no shell text
    assert link.up < 1.05 * SIZE


def test_it_goes_on_behind_a_cut(
    connect: Connect, server: Sshd, link: Proxy, asked: Path, large: tuple[str, Path]
) -> None:
    digest, path = large
    board = connect()
    before = link.up
    link.faults.cut_after = before + SIZE // 8  # so much is left that rsync goes on
    start = time.monotonic()
    with pytest.raises(LinkLost, match="send on `board`"):
        send(board, digest, path)
    assert time.monotonic() - start < 15
    until(lambda: not senders(digest))  # the board's ends itself, though nobody tells it of the cut
    first = part(server, digest).stat().st_size
    assert 0 < first < SIZE
    sent = link.up - before
    link.heal()
    before = link.up
    send(board, digest, path)
    assert sent + link.up - before < 1.1 * SIZE
    called, ended = notes(asked)
    assert (len(called), ended[-1]) == (2, "status 0")


def test_a_beginning_that_is_not_one_is_sent_anew(
    connect: Connect, server: Sshd, asked: Path, large: tuple[str, Path]
) -> None:
    digest, path = large
    board = connect()
    part(server, digest).write_bytes(bytes(5_000_000))
    send(board, digest, path)
    assert (server.cache / "files" / digest).read_bytes() == path.read_bytes()
    assert notes(asked)[1] == ["status 0"]


def test_a_link_to_a_file_is_the_file(connect: Connect, asked: Path, large: tuple[str, Path], tmp_path: Path) -> None:
    """By itself rsync passes over one, and ends well."""
    digest, path = large
    (tmp_path / "link").symlink_to(path)
    send(connect(), digest, tmp_path / "link")
    assert notes(asked)[1] == ["status 0"]


@pytest.mark.parametrize("script", ["exit 0", "echo hello; sleep 60", "exec sleep 60", "kill -9 $$"])
def test_sftp_takes_over(connect: Connect, server: Sshd, large: tuple[str, Path], script: str) -> None:
    """Whatever the other end's rsync does; one that says nothing is waited for as long as a login may take."""
    digest, path = large
    asked = server.folder / "asked"
    server.add_program("rsync", f"echo asked >> {asked}\n{script}")
    board = connect(limits=replace(QUICK, connect_s=4.0))
    shown = Notes()
    with progress.showing(shown):
        send(board, digest, path)
    assert (server.cache / "files" / digest).read_bytes() == path.read_bytes()
    assert sum("rsync to `board` does not work" in note for note in shown.said) == 1
    (server.cache / "files" / digest).unlink()
    send(board, digest, path)
    assert asked.read_text() == "asked\n"  # not tried again


def test_what_another_tool_has_brought_meanwhile_is_there(
    connect: Connect, server: Sshd, large: tuple[str, Path], link: Proxy
) -> None:
    """Its check gives the file its name while our rsync still writes; nothing is sent once more."""
    digest, path = large
    files = server.cache / "files"
    server.add_program("rsync", f"cp {shlex.quote(str(path))} {files}/{digest}\nrm -f {files}/{digest}.part\nexit 23")
    board = connect()
    before = link.up
    send(board, digest, path)
    assert link.up - before < SIZE / 4


def test_a_login_that_only_ours_knows(connect: Connect, server: Sshd, large: tuple[str, Path], asked: Path) -> None:
    """A word in the configuration that ssh refuses and asyncssh passes over."""
    digest, path = large
    server.write_config(more="  NoSuchWord yes\n")
    send(connect(), digest, path)
    assert not asked.exists()


def test_ctrl_c_leaves_no_sender(connect: Connect, link: Proxy, asked: Path, large: tuple[str, Path]) -> None:
    digest, path = large
    board = connect()
    link.faults.rate = 2e6

    def close() -> None:
        until(asked.exists)
        board.close()

    thread = threading.Thread(target=close)
    thread.start()
    with pytest.raises((CancelledError, LinkLost)):
        send(board, digest, path)
    thread.join()
    until(lambda: not senders(digest))


def test_a_killed_tool_leaves_no_sender(server: Sshd, link: Proxy, asked: Path, large: tuple[str, Path]) -> None:
    digest, path = large
    link.faults.rate = 2e6
    tool = subprocess.Popen([sys.executable, __file__, str(server.config), digest, str(path)])
    until(lambda: asked.exists() and part(server, digest).exists())
    os.kill(tool.pid, signal.SIGKILL)
    tool.wait()
    until(lambda: not senders(digest))


def test_a_slow_link_is_not_a_dead_one(
    connect: Connect, server: Sshd, link: Proxy, asked: Path, large: tuple[str, Path]
) -> None:
    digest, path = large
    link.faults.rate = 10e6
    send(connect(), digest, path)
    assert notes(asked)[1] == ["status 0"]


def test_a_tool_that_ended_before_its_rsync_began() -> None:
    began = subprocess.run([sys.executable, "-I", "-c", WITH_US, "1", "echo", "began"], capture_output=True)
    assert (began.returncode, began.stdout) == (1, b"")


def test_where_it_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = LinkLimits()
    way = Rsync.to("ana@[fe80::1]:2222", "rsync", limits, tmp_path / "config", lambda: False)
    assert way is not None
    command = way.command(tmp_path / "-x", ".cache/y")
    assert command[-3:] == ["--", f"{tmp_path}/-x", "ana@[fe80::1]:.cache/y"]
    assert " -p 2222 " in command[command.index("-e") + 1]
    assert Rsync.to("orin", "rsync", limits, tmp_path / "my config", lambda: False) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Rsync.to("orin", "rsync", limits, None, lambda: False) is None


if __name__ == "__main__":  # the tool that is killed
    with Board.connect("board", agent=pack_agent(), limits=QUICK, config=Path(sys.argv[1])) as one:
        send(one, sys.argv[2], Path(sys.argv[3]))
