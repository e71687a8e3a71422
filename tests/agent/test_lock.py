"""Two logins of one board: each has its own cache and lock file, and still one job runs at a time."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from agent_home import AgentHome, Running

from edgecnn.agent.lock import Lock

ODD = Path(__file__).with_name("odd_engine.py")
ME = pwd.getpwuid(os.getuid()).pw_name


def start(home: AgentHome, what: str, **job: object) -> Running:
    return home.start("compile", backend="onnxruntime", graph=home.put(what.encode()), name="m.onnx", **job)


def test_another_login_waits_and_is_told_who_holds_the_board(tmp_path: Path) -> None:
    env = {"EDGECNN_BOARD": str(tmp_path)}
    mine, theirs = (AgentHome(tmp_path / name, env=env, replace={"backends.ort": ODD}) for name in ("mine", "theirs"))
    first = start(mine, "sleeps", holder="ana@desk")
    first.worker()
    assert theirs.result("clean", max_bytes=10**9)["dropped"] == 0  # of one's own files only: needs no board
    second = start(theirs, "fine", holder="ben@lab")
    holder = f"another login of the board, {ME} (process {first.process.pid})"
    assert second.until("note")["note"] == f"the board is held by {holder}: waiting"
    answer = start(theirs, "fine", lock_wait_s=0.3).wait()
    assert (answer["kind"], answer["error"].startswith(f"the board is held by {holder}; waited")) == ("lock", True)
    assert "EDGECNN_BOARD" in answer["hint"]
    assert second.process.poll() is None
    first.kill()
    first.process.wait()
    assert second.wait()["result"]["version"] == "odd engine 1.0"


def test_whoever_waits_long_still_knows_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody accepts the questions: a queue of them would fill up."""
    monkeypatch.setenv("EDGECNN_BOARD", str(tmp_path))
    first, other = Lock(tmp_path / "lock"), Lock(tmp_path / "other")
    assert first.take("ana@desk", "time")
    holder = f"another login of the board, {ME} (process {os.getpid()})"
    for _ in range(300):
        assert not other.take("ben@lab", "time")
        assert other.holder() == holder
    first.close()
    assert other.take("ben@lab", "time")
    assert other.holder().startswith("ben@lab (time")
    other.close()


def test_another_board_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks = []
    for name in ("one", "two"):
        monkeypatch.setenv("EDGECNN_BOARD", f"{tmp_path}/{name}")
        locks.append(Lock(tmp_path / name))
        assert locks[-1].take("ana@desk", "time")
    for lock in locks:
        lock.close()


def test_whoever_inherits_it_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECNN_BOARD", str(tmp_path))
    first, other = Lock(tmp_path / "lock"), Lock(tmp_path / "other")
    assert first.take("ana@desk", "time")
    heir = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=first.descriptors())
    first.close()
    assert not other.take("ben@lab", "time")
    heir.communicate()
    assert other.take("ben@lab", "time")
    other.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_real_other_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECNN_BOARD", str(tmp_path))
    mine = Lock(tmp_path / "lock")
    assert mine.take("ana@desk", "time")
    code = (
        "import os, sys, pathlib\nfrom edgecnn.agent.lock import Lock\nos.setuid(65534)\n"
        "other = Lock(pathlib.Path(sys.argv[1]))\nprint(other.take('ben', 'time'), other.holder())"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        command = [sys.executable, "-c", code, f"{folder}/lock"]
        held = subprocess.run(command, capture_output=True, text=True)
        mine.close()
        free = subprocess.run(command, capture_output=True, text=True)
    assert held.stdout == f"False another login of the board, root (process {os.getpid()})\n", held.stderr
    assert free.stdout.startswith("True ben (time"), free.stderr
