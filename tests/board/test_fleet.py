"""Work over several boards: every piece once, a dead board's work to the others, Ctrl-C to all of them."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from desk import Desk
from golden_graphs import data_artifact, model_artifact
from proxy import between
from sshd import Sshd, running

from edgecnn.board.limits import LinkLimits
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.load import load_device
from edgecnn.recipe.recipe import BenchSpec, ScoreSpec
from edgecnn.store.stage import Artifact
from edgecnn.targets.fleet import Fleet, Json
from edgecnn.targets.hosts import Boards, variable
from edgecnn.targets.score_ssh import cut
from edgecnn.targets.ssh import connect_boards

pytestmark = pytest.mark.slow


class Told:
    """A Progress that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def task(self, name: str, total: float | None) -> Any:
        return progress.Plain(1e9).task(name, total)

    def note(self, text: str) -> None:
        self.notes.append(text)


class Pretend:
    """A board in memory; `dies_after` so many jobs it fails."""

    def __init__(self, host: str, dies_after: int | None = None, seconds: float = 0.0) -> None:
        self.host, self.left, self.seconds = host, dies_after, seconds
        self.facts: Json = {"name": host}
        self.closed = False

    def __enter__(self) -> Pretend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, job: Json, inputs: Any = None, *, out: Path | None = None, step: str = "") -> Json:
        if self.left == 0:
            raise EdgeError(f"the link to `{self.host}` was lost", "look after it")
        self.left = None if self.left is None else self.left - 1
        for _ in range(int(self.seconds / 0.01)):
            if self.closed:
                raise EdgeError("closed")
            time.sleep(0.01)
        return {"did": job["piece"]}

    def fetch(self, digest: str, size: int, to: Path) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


def fleet(*boards: Pretend) -> Fleet:
    by_host = {board.host: board for board in boards}
    return Fleet(tuple(by_host), by_host.__getitem__)


def spread(boards: Fleet, count: int) -> list[tuple[str, int]]:
    done = boards.spread(list(range(count)), lambda board, piece: board.run({"piece": piece})["did"])
    return [(one.host, one.result) for one in done]


def test_every_piece_is_done_once_in_order_by_whoever_is_free() -> None:
    done = spread(fleet(Pretend("slow", seconds=0.1), Pretend("quick", seconds=0.01)), 20)
    assert [piece for _, piece in done] == list(range(20))
    counts = Counter(host for host, _ in done)
    assert counts["quick"] > counts["slow"] > 0


def test_a_boards_work_goes_to_the_others_when_it_dies() -> None:
    told = Told()
    with progress.showing(told):
        done = spread(fleet(Pretend("a", seconds=0.02), Pretend("b", dies_after=2, seconds=0.02)), 12)
    assert [piece for _, piece in done] == list(range(12))
    assert Counter(host for host, _ in done)["b"] == 2
    assert told.notes == ["b: the link to `b` was lost; continuing without it"]


def test_the_last_piece_comes_back_from_a_board_that_dies_on_it() -> None:
    """The others wait for what may come back: they don't leave when the queue is empty."""
    slow = Pretend("slow", seconds=1.0)
    slow.left = 1

    def do(board: Any, piece: int) -> int:
        if board.host == "slow":
            time.sleep(0.5)
            raise EdgeError("it died late")
        return piece

    done = fleet(slow, Pretend("quick")).spread([0, 1, 2], do)
    assert [(one.host, one.result) for one in done] == [("quick", 0), ("quick", 1), ("quick", 2)]


def test_when_all_die_the_error_is_told() -> None:
    with pytest.raises(EdgeError, match=r"the link to `[ab]` was lost"):
        spread(fleet(Pretend("a", dies_after=1), Pretend("b", dies_after=0)), 5)
    with pytest.raises(EdgeError, match="the link to `a` was lost"):
        spread(fleet(Pretend("a", dies_after=0)), 5)
    with pytest.raises(EdgeError, match="the link to `a` was lost"):
        fleet(Pretend("a", dies_after=0), Pretend("b", dies_after=0)).each(lambda board: board.run({"piece": 0}))


def test_first_goes_to_the_next_board_where_one_fails() -> None:
    told = Told()
    with progress.showing(told):
        done = fleet(Pretend("a", dies_after=0), Pretend("b")).first(lambda board: board.run({"piece": 7}))
    assert (done.host, done.result) == ("b", {"did": 7})
    assert len(told.notes) == 1


def test_a_mistake_of_ours_is_no_dead_board() -> None:
    def do(board: Any, piece: int) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fleet(Pretend("a"), Pretend("b")).spread([0], do)


def test_ctrl_c_ends_the_jobs_of_every_board() -> None:
    boards = [Pretend("a", seconds=30), Pretend("b", seconds=30)]
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        spread(fleet(*boards), 4)
    assert time.monotonic() - start < 10
    assert all(board.closed for board in boards)


@pytest.mark.parametrize(
    ("count", "size", "boards", "pieces"),
    [(50, 8, 1, 1), (600, 64, 1, 3), (5000, 64, 1, 8), (5000, 64, 2, 16), (1000, 1000, 4, 1), (3, 64, 3, 1)],
)
def test_pieces_begin_where_batches_do(tmp_path: Path, count: int, size: int, boards: int, pieces: int) -> None:
    edges = [0, count // 3, count // 2, count]
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        np.save(tmp_path / f"scored-{number:05d}.npy", np.zeros((stop - start, 1, 1, 1), np.uint8))
    np.save(tmp_path / "scored_labels.npy", np.zeros(count))
    found = list(cut(tmp_path, count, size, boards))
    assert len(found) == pieces
    assert [piece.start for piece in found] == [0, *(piece.stop for piece in found[:-1])]
    assert found[-1].stop == count
    for piece in found:
        assert piece.start % size == 0
        names = [path.name for path in piece.shards]
        assert names == sorted(names)
        held = [edges[int(name[7:12])] for name in names]
        assert piece.first == held[0] <= piece.start
        assert edges[int(names[-1][7:12]) + 1] >= piece.stop


def test_the_variable_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = load_device("jetson-orin-nano")
    assert variable(profile.name) == "EDGECNN_HOST_JETSON_ORIN_NANO"
    monkeypatch.setenv("EDGECNN_HOST_JETSON_ORIN_NANO", "nvidia@a, nvidia@b")
    assert Boards().of(profile).hosts == ("nvidia@a", "nvidia@b")
    assert Boards(("c",)).of(profile).hosts == ("c",)
    assert not Boards().of(load_device("jetson-orin-nx"))


# --- real servers ---


@pytest.fixture
def three(openssh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Sshd]]:
    """Boards `one`, `two` and, in the configuration only, `dead`."""
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(running(tmp_path / name, host=name)) for name in ("one", "two", "dead")
        }  # fmt: skip
        servers["dead"].stop()
        config = tmp_path / "config"
        config.write_text("".join(server.config.read_text() for server in servers.values()))
        monkeypatch.setenv("EDGECNN_SSH_CONFIG", str(config))
        yield servers


def test_a_fleet_with_a_dead_board(three: dict[str, Sshd], tmp_path: Path) -> None:
    told = Told()
    with progress.showing(told):
        target = connect_boards(load_device("cpu-x86"), Boards(("one", "dead", "two")))
        assert target.facts.board == "one, dead, two"
        assert any(note.startswith("dead: `dead` refuses connections") for note in told.notes)
        out = tmp_path / "compiled"
        out.mkdir()
        target.compile(out, target.profile, target.facts, model_artifact(tmp_path / "model", quantized=True))
        engine = Artifact("compile-int8", "2" * 32, out)
        scored = tmp_path / "score"
        scored.mkdir()
        data = data_artifact(tmp_path / "data", count=2000, wrong=20)
        target.score(scored, ScoreSpec(), target.facts, engine, data)
        content = Artifact("score-int8", "3" * 32, scored).json("score.json")
        assert content["value"] == pytest.approx(1980 / 2000)
        assert set(content["boards"]) == {"one", "two"}
        assert sum(content["boards"].values()) == 2000
        assert "one (" in content["how"]
        assert "two (" in content["how"]
        timed = tmp_path / "speed"
        timed.mkdir()
        pace = BenchSpec(warmup_ms=1, min_pairs=64, min_seconds=0.2, max_seconds=0.5)
        target.time_pairs(timed, pace, target.facts, engine, engine)
    speed = Artifact("speed", "4" * 32, timed).json("speed.json")
    assert set(speed["boards"]) == {"one", "two"}
    slowest = max(speed["boards"], key=lambda host: speed["boards"][host]["int8"]["p50_ms"])
    assert speed["board"] == slowest
    assert speed["int8"] == speed["boards"][slowest]["int8"]


def test_a_cut_score_goes_on_where_it_was(openssh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came back before the link was lost is kept; the rerun sends and asks only for the rest."""
    with running(tmp_path / "board") as server, between(server.port) as link:
        server.write_config(port=link.port)
        monkeypatch.setenv("EDGECNN_SSH_CONFIG", str(server.config))
        limits = LinkLimits(connect_s=2.5, silence_s=1.5, heartbeat_s=2.0)
        target = connect_boards(load_device("cpu-x86"), Boards(("board",), limits))
        out, scored = tmp_path / "compiled", tmp_path / "score"
        out.mkdir()
        scored.mkdir()
        target.compile(out, target.profile, target.facts, model_artifact(tmp_path / "model", quantized=True))
        engine, data = Artifact("compile-int8", "2" * 32, out), data_artifact(tmp_path / "data", count=5000)

        def cut_later() -> None:
            while len(list((scored / "resume").glob("*.json"))) < 2:
                time.sleep(0.01)
            link.faults.cut = True

        threading.Thread(target=cut_later, daemon=True).start()
        start = time.monotonic()
        with pytest.raises(EdgeError, match="board"):
            target.score(scored, ScoreSpec(), target.facts, engine, data)
        assert time.monotonic() - start < 40
        link.heal()
        kept = {path.name: path.stat().st_mtime_ns for path in (scored / "resume").glob("*.json")}
        assert 2 <= len(kept) < 8
        before = link.up
        target.score(scored, ScoreSpec(), target.facts, engine, data)
        assert link.up - before < 100_000
        after = {path.name: path.stat().st_mtime_ns for path in (scored / "resume").glob("*.json")}
        assert {name: after[name] for name in kept} == kept
        whole = tmp_path / "whole"
        whole.mkdir()
        target.score(whole, ScoreSpec(), target.facts, engine, data)
        assert (scored / "outcomes.npz").read_bytes() == (whole / "outcomes.npz").read_bytes()


def test_boards_that_are_not_alike_are_no_fleet(three: dict[str, Sshd], tmp_path: Path) -> None:
    three["two"].add_program("nvpmodel", 'echo "NV Power Mode: 15W"; echo 0')
    with pytest.raises(EdgeError, match=r"`two` and `one` are not alike: power mode 15W and none"):
        connect_boards(load_device("cpu-x86"), Boards(("one", "two")))


def test_the_command_line_says_when_no_board_answers(three: dict[str, Sshd], tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk", Path(os.environ["EDGECNN_SSH_CONFIG"]))
    done = desk("plan", "quickstart", "--host", "dead", code=2)
    assert "error: `dead` refuses connections" in done.stderr
    assert "hint:" in done.stderr
