"""Files to and from a board over a real sshd: sent once, continued after a cut, believed only by their hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK, Connect
from models import SLOW_ENGINES
from proxy import Proxy
from sshd import Sshd

from edgecnn.agent.pack import pack_agent
from edgecnn.board.jobs import Board
from edgecnn.board.limits import LinkLimits
from edgecnn.board.link import LOOP, FileRefused, LinkLost
from edgecnn.board.replies import read_reply
from edgecnn.process.disk import drop_but_resume
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.load import load_device
from edgecnn.targets import ssh as target_ssh

pytestmark = pytest.mark.slow


def made(path: Path, size: int, seed: int = 0) -> tuple[str, Path]:
    """A file of random bytes and its SHA-256."""
    path.write_bytes(random.Random(seed).randbytes(size))
    return hashlib.sha256(path.read_bytes()).hexdigest(), path


def send(board: Board, *files: tuple[str, Path]) -> dict[str, Any]:
    """Bring files to the board, and ask which it has."""
    listed = [{"sha256": digest, "size": path.stat().st_size} for digest, path in files]
    return board.run({"do": "accept", "files": listed}, dict(files), step="send")


def test_what_is_sent_arrives_is_private_and_is_sent_once(
    connect: Connect, server: Sshd, link: Proxy, tmp_path: Path
) -> None:
    board = connect()
    files = [made(tmp_path / f"{size}", size, size) for size in (0, 1, 300_000, 3_000_000)]
    assert sorted(send(board, *files)["have"]) == sorted(digest for digest, _ in files)
    for digest, path in files:
        there = server.cache / "files" / digest
        assert there.read_bytes() == path.read_bytes()
        assert oct(there.stat().st_mode)[-3:] == "600"
    assert {oct(path.stat().st_mode)[-3:] for path in server.cache.rglob("*") if path.is_dir()} == {"700"}
    assert not list(server.cache.rglob("*.part"))
    assert list((server.cache / "jobs").iterdir()) == []  # a finished job leaves nothing
    before = link.up
    send(connect(), *files)
    assert link.up - before < 20_000


@pytest.mark.parametrize("name", ["$(touch x).onnx", "two\nlines.onnx", "`touch x`;touch x.onnx", "-rf", "a'b\"c.onnx"])
def test_names_never_reach_a_shell(connect: Connect, server: Sshd, tmp_path: Path, name: str) -> None:
    """The board sees digests, whatever a file is called here, and whatever a job's text says."""
    file = made(tmp_path / name, 1000)
    board = connect()
    listed = [{"sha256": file[0], "size": 1000}]
    assert board.run({"do": "accept", "files": listed, "name": name, "names": {file[0]: name}}, dict([file]))["have"]
    out = tmp_path / "out" / name
    board.fetch(file[0], 1000, out)
    assert out.read_bytes() == file[1].read_bytes()
    names = {path.name for path in server.home.rglob("*")}
    assert "x" not in names
    assert all(one.isascii() and one.isprintable() and "$" not in one for one in names)
    assert not Path("x").exists()


def test_the_command_line_is_a_constant(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    entry = server.folder / "enter"
    note = f'echo "$SSH_ORIGINAL_COMMAND" >> {server.folder}/seen'
    entry.write_text(entry.read_text().replace('cd "$HOME"', f'{note}\ncd "$HOME"'))
    board = connect()
    board.run({"do": "accept", "files": [], "name": "$(touch x)"})
    lines = (server.folder / "seen").read_text().splitlines()
    assert lines == [f"exec /bin/sh -c {shlex.quote(LOOP)}"]


@pytest.mark.parametrize("word", ["$(touch x)", "`touch x`", "a;touch x", "../../x", "files/../../../x", "a|b", "*"])
def test_what_is_no_plain_name_is_refused_there(connect: Connect, server: Sshd, word: str) -> None:
    link = connect().link
    assert link is not None
    for verb in ("size", "drop", "get", "new 1", "put 1"):
        with pytest.raises(FileRefused, match="refused"):
            link.ask(verb, word)
    assert not [path for path in server.home.rglob("*") if path.name == "x"]
    assert link.ask("free")  # it goes on


def test_a_file_is_never_taken_for_commands(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    """Not even where the board cannot write it."""
    content = b"drop kept\nroom 999999999\n" * 20_000
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    board = connect()
    (server.cache / "jobs" / "kept").mkdir()
    assert send(board, (hashlib.sha256(content).hexdigest(), path))["have"]
    link = board.link
    assert link is not None
    server.add_program("dd", "exit 1")
    with path.open("rb") as source, pytest.raises(FileRefused):
        link.put(source, "files/x.part", len(content), lambda _: None)
    assert link.ask("free")
    assert (server.cache / "jobs" / "kept").is_dir()
    assert len(list((server.cache / "files").iterdir())) == 2


@pytest.fixture
def cut_at(link: Proxy) -> Callable[[int], None]:
    """Cut the link after so many more bytes to the board."""

    def one(size: int) -> None:
        link.faults.cut_after = link.up + size

    return one


@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_a_cut_transfer_goes_on_where_it_was(
    connect: Connect, server: Sshd, link: Proxy, tmp_path: Path, share: float, cut_at: Callable[[int], None]
) -> None:
    size = 40_000_000
    file = made(tmp_path / "weights.bin", size)
    board = connect()
    cut_at(int(size * share))
    start = time.monotonic()
    with pytest.raises(LinkLost) as caught:
        send(board, file)
    assert time.monotonic() - start < 15
    assert "send on `board`: the link to `board` was lost: nothing was heard from it for 1.5 s" in caught.value.message
    assert "the same command continues where this one stopped" in caught.value.hint
    assert not (server.cache / "files" / file[0]).exists()
    begun = (server.cache / "files" / f"{file[0]}.part").stat().st_size
    assert begun > size * share - 10_000_000
    link.heal()
    before = link.up
    assert send(connect(), file)["have"] == [file[0]]
    assert (server.cache / "files" / file[0]).read_bytes() == file[1].read_bytes()
    assert link.up - before < size * (1 - share) + 10_000_000


def test_the_same_board_object_goes_on_after_a_cut(
    connect: Connect, link: Proxy, tmp_path: Path, cut_at: Callable[[int], None]
) -> None:
    file = made(tmp_path / "weights.bin", 20_000_000)
    board = connect()
    cut_at(5_000_000)
    with pytest.raises(LinkLost, match="the board does not answer now"):
        send(board, file)
    link.heal()
    assert send(board, file)["have"] == [file[0]]


def test_what_was_left_damaged_is_sent_again(connect: Connect, server: Sshd, link: Proxy, tmp_path: Path) -> None:
    """A power cut may leave a file of the right length with zeros in it."""
    board = connect()
    for case, left in enumerate((bytes(2_000_000), bytes(3_000_000), bytes(4_000_000))):
        file = made(tmp_path / f"{case}", 3_000_000, case)
        (server.cache / "files" / f"{file[0]}.part").write_bytes(left)
        send(board, file)
        assert (server.cache / "files" / file[0]).read_bytes() == file[1].read_bytes()


def test_a_file_that_changes_under_way(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    digest, path = made(tmp_path / "changing.bin", 1_000_000)
    path.write_bytes(bytes(1_000_000))
    with pytest.raises(EdgeError, match=r"changing\.bin` changed while it was sent to `board`"):
        send(connect(), (digest, path))
    assert list((server.cache / "files").iterdir()) == []


def test_a_fetch_goes_on_where_it_was(connect: Connect, link: Proxy, tmp_path: Path) -> None:
    file = made(tmp_path / "engine.bin", 30_000_000)
    board = connect()
    send(board, file)
    link.faults.cut_after_down = link.down + 20_000_000
    out = tmp_path / "out" / "engine"
    with pytest.raises(LinkLost, match="fetching `engine` on `board`"):
        board.fetch(file[0], 30_000_000, out)
    assert not out.exists()
    link.heal()
    before = link.down
    board.fetch(file[0], 30_000_000, out)
    assert out.read_bytes() == file[1].read_bytes()
    assert link.down - before < 15_000_000
    assert [path.name for path in out.parent.iterdir()] == ["engine"]


def test_a_rerun_goes_on_with_an_engine_that_was_half_fetched(
    connect: Connect, link: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stage that failed, only `resume/` is there for the next try."""
    digest, path = made(tmp_path / "engine.bin", 30_000_000)
    board = connect()
    send(board, (digest, path))
    built = {"engine": digest, "size": 30_000_000}
    monkeypatch.setattr(board, "run", lambda *_, **__: built)
    graph, out = tmp_path / "model.onnx", tmp_path / "stage"
    graph.write_bytes(b"graph")
    out.mkdir()
    profile = load_device("jetson-orin-nano")
    link.faults.cut_after_down = link.down + 20_000_000
    with pytest.raises(LinkLost):
        target_ssh._compile(board, profile, graph, out / "orin.engine")
    drop_but_resume(out)
    link.heal()
    before = link.down
    assert target_ssh._compile(board, profile, graph, out / "orin.engine") == built
    assert (out / "orin.engine").read_bytes() == path.read_bytes()
    assert link.down - before < 15_000_000
    assert list((out / "resume").iterdir()) == []  # the store removes it


def test_a_fetch_is_checked(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    file = made(tmp_path / "engine.bin", 1_000_000)
    board = connect()
    send(board, file)
    (server.cache / "files" / file[0]).write_bytes(bytes(1_000_000))
    with pytest.raises(EdgeError, match="is not what the board said it is"):
        board.fetch(file[0], 1_000_000, tmp_path / "out" / "engine")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(EdgeError, match="cannot be fetched from `board`"):
        board.fetch("0" * 64, 5, tmp_path / "out" / "other")


@pytest.mark.parametrize(
    ("what", "odd"),
    [
        *(("name", name) for name in ("../../evil", "/etc/passwd", ".ssh", "a/b", "", "two\nlines", "ä.npz", None)),
        *(("sha256", digest) for digest in ("../../evil", f"../{'0' * 61}", "0" * 63, "A" * 64, "0" * 64 + "\n", 7)),
        *(("size", size) for size in (-1, "1", 1.5, None)),
    ],
)
def test_a_board_cannot_choose_where_a_file_goes(what: str, odd: object) -> None:
    file = {"name": "name", "sha256": "0" * 64, "size": 1, what: odd}
    with pytest.raises(EdgeError, match=f"not one of our agent's: score: `files.0.{what}`"):
        read_reply("score", {"files": [file], "how": "fp32", "seconds": 1.0, "images": 1})


def test_a_file_larger_than_the_disk_is_not_begun(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(EdgeError, match=r"answers with 9,007,199,255 MB, and .* has room for"):
        connect().fetch("0" * 64, 1 << 53, tmp_path / "out" / "engine")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_saturated_slow_link_is_not_a_dead_one(connect: Connect, server: Sshd, link: Proxy, tmp_path: Path) -> None:
    """Bytes come all the time, though every question of life waits behind seconds of them."""
    file = made(tmp_path / "weights.bin", 700_000)
    link.faults.rate = 60_000
    board = connect(limits=QUICK)
    link.faults.rate = 100_000
    start = time.monotonic()
    send(board, file)
    assert time.monotonic() - start > 4 * QUICK.silence_s
    start = time.monotonic()
    board.fetch(file[0], 700_000, tmp_path / "back")
    assert time.monotonic() - start > 4 * QUICK.silence_s
    assert (tmp_path / "back").read_bytes() == file[1].read_bytes()


@pytest.mark.parametrize("delay_s", [0.04, pytest.param(0.1, marks=pytest.mark.full(reason="a slower link still"))])
def test_loss_and_delay(connect: Connect, link: Proxy, tmp_path: Path, delay_s: float) -> None:
    """A slow round trip, every twentieth chunk a retransmission late, in every step."""
    link.faults.delay_s, link.faults.loss = delay_s, 0.05
    board = connect(limits=LinkLimits())
    file = made(tmp_path / "weights.bin", 1_000_000)
    assert send(board, file)["have"] == [file[0]]
    board.fetch(file[0], 1_000_000, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file[1].read_bytes()


@pytest.mark.usefixtures("root")
def test_a_full_disk(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    server.home.joinpath(".cache").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m,mode=700", "none", server.home / ".cache"], check=True)
    try:
        board = connect()
        file, small = made(tmp_path / "weights.bin", 60_000_000), made(tmp_path / "small.bin", 10_000_000)
        with pytest.raises(EdgeError) as caught:
            send(board, file)
        assert "send on `board`: the disk of `board` is full: " in caught.value.message
        assert "60 MB to send" in caught.value.message
        assert "edgecnn devices clean --host board" in caught.value.hint
        # It may become full by others while a file is on its way.
        ballast = server.home / ".cache" / "ballast"
        ballast.write_bytes(bytes(8_000_000))
        with pytest.raises(EdgeError, match="its disk is full"):
            send(filling(board, ballast), small)
        assert board.link is not None
        del board.link.put  # type: ignore[attr-defined]
        ballast.unlink()
        assert not (server.cache / "files" / small[0]).exists()
        assert send(board, small)["have"] == [small[0]]
        # Full to the last byte with what is kept: nobody is locked out, the longest unused goes first.
        old = made(tmp_path / "old.bin", 5_000_000)
        send(board, old)
        os.utime(server.cache / "files" / old[0], (0, 0))
        with contextlib.suppress(OSError), ballast.open("wb") as other:
            while other.write(bytes(4096)):
                pass
        assert os.statvfs(ballast).f_bavail == 0
        again = connect(agent=pack_agent(replace=SLOW_ENGINES))  # another agent, to be sent
        assert again.facts["agent"]
        assert not (server.cache / "files" / old[0]).exists()
        again.run({"do": "clean", "max_bytes": 0})
        assert not list((server.cache / "files").iterdir())
    finally:
        subprocess.run(["umount", "-l", server.home / ".cache"], check=True)


def filling(board: Board, ballast: Path) -> Board:
    """The board, whose disk is filled once the first file begins: less room than was seen."""
    link = board.link
    assert link is not None
    put = link.put

    def put_and_fill(*arguments: Any) -> None:
        free = os.statvfs(ballast).f_bavail * os.statvfs(ballast).f_frsize
        with ballast.open("ab") as other:
            other.write(bytes(free - 2_000_000))
        put(*arguments)

    link.put = put_and_fill  # type: ignore[method-assign]
    return board
