"""Jobs on a board over a real sshd, and everything there that can be missing, old, full, read-only or killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, Connect
from desk import Desk
from models import SLOW_ENGINES, Job, answers, compile_job, score_job, time_job
from programs import program
from sshd import Sshd

from edgecnn.agent.pack import pack_agent
from edgecnn.board.jobs import Board, JobFailed
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError

pytestmark = pytest.mark.slow


@dataclass
class Notes(progress.Plain):
    """A Progress that keeps what it is told."""

    notes: list[str] = field(default_factory=list)
    interval_s: float = 0.0

    def note(self, text: str) -> None:
        self.notes.append(text)


@contextlib.contextmanager
def noted() -> Iterator[list[str]]:
    notes = Notes()
    with progress.showing(notes):
        yield notes.notes


def sitecustomize(server: Sshd, code: str) -> None:
    """Code that every Python of the board runs first."""
    folder = server.folder / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    server.environment["PYTHONPATH"] = str(folder)
    server.restart()


def eventually(true: object, seconds: float = 10.0) -> None:
    """Wait until a callable answers true."""
    until = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < until, true
        time.sleep(0.02)


def worker_of(server: Sshd) -> int:
    """The process that does the job; waits until it is there."""
    eventually(lambda: any("--worker" in command for command in server.agents().values()))
    return next(pid for pid, command in server.agents().items() if "--worker" in command)


@contextlib.contextmanager
def during(board: Board, job: Job) -> Iterator[list[BaseException]]:
    """Run a job in a thread; the block's end waits for the job's. Takes its error."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            board.run(*job)
        except EdgeError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield errors
    thread.join(30)
    assert not thread.is_alive()


# --- jobs ---


def test_a_score_brings_its_answers(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    job, inputs = score_job(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    with noted() as said:
        result = connect().run(job, inputs, out=out, step="score-int8")
    assert any(line.startswith("scoring") for line in said)
    found = answers(out)
    assert sum(len(rows) for name, rows in found.items() if name.endswith("/rows")) == 50
    assert {path.name for path in out.iterdir()} == {one["name"] for one in result["files"]}
    assert list((server.cache / "jobs").iterdir()) == []


def test_a_score_has_a_folder_there_for_each_folder_here(connect: Connect, tmp_path: Path) -> None:
    """A rerun goes on in the folder of the cut try; another tool of the same user never gets it removed under it."""
    job, inputs = score_job(tmp_path)
    board = connect()
    assert board.link is not None
    names, run = [], board.link.run

    def noting(agent: str, job: str) -> None:
        names.append(job)
        run(agent, job)

    board.link.run = noting  # type: ignore[method-assign]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for out in (tmp_path / "a", tmp_path / "b", tmp_path / "b" / ".." / "a"):
        board.run(job, inputs, out=out)
    *_, first, second, third = names
    assert first == third != second


def test_a_timing_brings_its_pairs(connect: Connect, tmp_path: Path) -> None:
    job, inputs = time_job(tmp_path, 0.2)
    result = connect().run(job, inputs, out=tmp_path)
    with np.load(tmp_path / "pairs.npz") as times:
        assert len(times["first_ms"]) == result["conditions"]["pairs"] >= 64


def test_an_engine_comes_back_and_is_kept(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    board = connect(agent=pack_agent(replace=SLOW_ENGINES))
    assert board.facts["backends"]["tensorrt"] == "TensorRT 10.3.0"
    job = compile_job(tmp_path)
    made = board.run(*job)
    assert made["cached"] is False
    board.fetch(made["engine"], made["size"], tmp_path / "engine")
    assert (tmp_path / "engine").stat().st_size == 1_000_000
    assert board.run(*job)["cached"] is True


def test_the_agent_travels_once(connect: Connect, server: Sshd) -> None:
    board = connect()
    there = server.cache / "agents" / f"{board.agent.sha256}.pyz"
    first = there.stat()
    assert there.read_bytes() == board.agent.data
    again = connect()
    assert there.stat().st_ino == first.st_ino
    assert again.run({"do": "describe"})["agent"] == board.facts["agent"]
    assert [path.name for path in (server.cache / "agents").iterdir()] == [there.name]


@pytest.mark.parametrize("damage", ["zeros", "short", "gone", "one byte"])
def test_a_damaged_agent_is_replaced(connect: Connect, server: Sshd, damage: str) -> None:
    board = connect()
    there = server.cache / "agents" / f"{board.agent.sha256}.pyz"
    content = bytearray(there.read_bytes())
    content[len(content) // 2] ^= 0xFF
    match damage:
        case "zeros":
            there.write_bytes(bytes(len(content)))
        case "short":
            there.write_bytes(content[:1000])
        case "one byte":
            there.write_bytes(content)
        case "gone":
            there.unlink()
    assert board.run({"do": "describe"})["agent"] == board.facts["agent"]
    assert there.read_bytes() == board.agent.data


def test_a_file_that_was_dropped_meanwhile_is_sent_again(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    """Another user's clean, or a damaged disk: between the check and the job's start."""
    board = connect()
    job, inputs = score_job(tmp_path)
    board.run(job, inputs)
    model = server.cache / "files" / job["model"]
    model.write_bytes(bytes(model.stat().st_size))
    assert board.run(job, inputs)["images"] == 50
    assert model.read_bytes() == inputs[job["model"]].read_bytes()


def test_a_link_that_was_lost_while_idle_is_opened_again(connect: Connect, server: Sshd) -> None:
    board = connect()
    server.restart()
    eventually(lambda: board.link is not None and not board.link.open)
    assert board.run({"do": "describe"})["agent"]


# --- what a board can lack ---


def test_no_python(connect: Connect, server: Sshd) -> None:
    (server.bin / "python3").unlink()
    for name in ("sh", "cat", "head", "mkdir", "mv", "rm", "wc"):
        (server.bin / name).symlink_to(program(name))
    server.environment["PATH"] = str(server.bin)
    server.restart()
    with pytest.raises(JobFailed) as caught:
        connect()
    assert caught.value.message == "describe on `board`: there is no `python3` on the board"
    assert "sudo apt install python3" in caught.value.hint


def test_an_old_python(connect: Connect, server: Sshd) -> None:
    sitecustomize(server, "import sys\nsys.version_info = (3, 8, 10)\n")
    with pytest.raises(
        JobFailed, match=r"describe on `board`: the board's python3 is 3.8, the agent needs 3.10"
    ) as caught:
        connect()
    assert caught.value.kind == "python-too-old"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("sleep 60", "the agent has said nothing for 2 s"),
        ("cat /dev/zero", "a line of more than 1 MiB"),
        ("yes", "it goes on and on"),
        ("""yes '{"note": "still here"}'""", "it goes on and on"),
        (r"""printf '{"result": {}}\n'; sleep 60""", "`agent`: Field required"),
        (r"""printf '{"result": {"agent": NaN}}\n'""", "NaN in place of a number"),
    ],
)
def test_something_else_answers_in_the_agents_place(connect: Connect, server: Sshd, script: str, said: str) -> None:
    server.add_program("python3", script)
    start = time.monotonic()
    with pytest.raises(JobFailed) as caught:
        connect(limits=replace(QUICK, answer_s=2.0, stop_s=1.0))
    assert caught.value.message.startswith("describe on `board`: ")
    assert said in caught.value.message
    assert time.monotonic() - start < 10


def test_no_numpy(connect: Connect, server: Sshd) -> None:
    sitecustomize(server, "import sys\nsys.modules['numpy'] = None\n")
    with pytest.raises(JobFailed, match="describe on `board`: numpy is missing on the board") as caught:
        connect()
    assert "sudo apt install python3-numpy" in caught.value.hint


def test_no_tensorrt(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    sitecustomize(server, "import sys\nsys.modules['tensorrt'] = None\n")
    board = connect()
    assert "tensorrt" not in board.facts["backends"]
    with pytest.raises(JobFailed, match=r"compile-int8 on `board`: TensorRT is not (installed|usable)") as caught:
        board.run(*compile_job(tmp_path), step="compile-int8")
    assert "python3-libnvinfer" in caught.value.hint


def test_another_protocol(connect: Connect) -> None:
    board = connect()
    with pytest.raises(JobFailed, match="this edgecnn speaks protocol 99, the board's agent speaks 1") as caught:
        board.run({"do": "describe", "protocol": 99})
    assert caught.value.kind == "agent-too-old"


@contextlib.contextmanager
def read_only(home: Path) -> Iterator[None]:
    """A home that nothing can be written to: by its mode, or for root by a mount."""
    if os.geteuid() != 0:
        folders = [home, *(path for path in home.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        try:
            yield
        finally:
            for folder in folders:
                folder.chmod(0o755)
        return
    subprocess.run(["mount", "--bind", home, home], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", home], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", home], check=True)


def test_a_read_only_home(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    with read_only(server.home), pytest.raises(EdgeError) as caught:
        connect()
    assert "describe on `board`: the agent cannot be written to `board`: the home folder is read-only" in str(
        caught.value
    )
    assert "give the login a home it can write to" in caught.value.hint
    board = connect()
    with read_only(server.home), pytest.raises(EdgeError) as caught:
        board.run(*score_job(tmp_path), step="score-int8")
    assert "score-int8 on `board`" in caught.value.message
    assert "read-only" in caught.value.message.lower()


# --- what can die ---


def test_the_job_is_killed(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    """As the kernel does when memory is short."""
    board = connect()
    with during(board, time_job(tmp_path, 20.0)) as errors:
        os.kill(worker_of(server), signal.SIGKILL)
    [error] = errors
    assert isinstance(error, JobFailed)
    assert (error.kind, "out of memory" in error.message) == ("killed", True)
    eventually(lambda: server.agents() == {})


def test_the_guard_is_killed(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    board = connect()
    with during(board, time_job(tmp_path, 20.0)) as errors:
        worker = worker_of(server)
        guard = next(pid for pid, command in server.agents().items() if pid != worker and "pyz" in command)
        os.kill(guard, signal.SIGKILL)
    [error] = errors
    assert isinstance(error, JobFailed)
    assert (error.kind, "out of memory" in error.message) == ("killed", True)
    eventually(lambda: server.agents() == {})
    assert board.run({"do": "describe"})["agent"]


def test_the_job_crashes(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    board = connect()
    with during(board, time_job(tmp_path, 20.0)) as errors:
        os.kill(worker_of(server), signal.SIGSEGV)
    [error] = errors
    assert isinstance(error, JobFailed)
    assert (error.kind, "crashed with SIGSEGV" in error.message) == ("crashed", True)


def test_the_guard_crashes(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    board = connect()
    with during(board, time_job(tmp_path, 20.0)) as errors:
        worker = worker_of(server)
        os.kill(next(pid for pid, command in server.agents().items() if pid != worker), signal.SIGSEGV)
    [error] = errors
    assert "the agent crashed with signal 11" in str(error)
    eventually(lambda: server.agents() == {})


def test_no_memory_for_the_job(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    sitecustomize(
        server,
        "import resource, sys\n"
        "if '--worker' in sys.argv:\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))\n",
    )
    job, inputs = score_job(tmp_path, 20_000)
    with pytest.raises(JobFailed) as caught:
        connect().run(job, inputs)
    assert caught.value.kind in ("memory", "killed", "crashed", "failed")
    assert "memory" in str(caught.value).lower() or "alloc" in str(caught.value).lower()


def test_a_fault_of_the_agents_own_is_an_internal_error(server: Sshd, tmp_path: Path) -> None:
    """Never bad input: exit code 70, and the file that holds the traceback there is named."""
    sitecustomize(server, "import platform\nplatform.node = lambda: [][1]\n")
    done = Desk(tmp_path / "desk", server.config)("devices", "probe", "board", "--json", code=70)
    answer = json.loads(done.stdout)
    assert "`board`: the agent failed: IndexError: list index out of range" in answer["error"]
    trace = Path(answer["traceback"]).read_text()
    assert "agent/describe.py" in trace
    assert "answer.py" in trace


@pytest.mark.parametrize("year", [1970, 2070])
def test_a_clock_that_is_off_by_years(connect: Connect, server: Sshd, tmp_path: Path, year: int) -> None:
    """No battery: the board starts at 1970, or where its last update was, and files bear the dates of other years."""
    off = (year - 2026) * 365 * 86400
    sitecustomize(
        server,
        "import os, time\n"
        f"now, now_ns, touch = time.time, time.time_ns, os.utime\n"
        f"time.time = lambda: now() + {off}\n"
        f"time.time_ns = lambda: now_ns() + {off} * 10**9\n"
        f"os.utime = lambda path, times=None, **k: touch(path, times or (time.time(), time.time()), **k)\n",
    )
    board = connect()
    assert abs(board.facts["clock"] - time.time()) > 30 * 365 * 86400
    (tmp_path / "out").mkdir()
    job, inputs = score_job(tmp_path)
    assert board.run(job, inputs, out=tmp_path / "out")["images"] == 50
    for path in server.cache.rglob("*"):
        os.utime(path, (0, 0))
    assert connect().run(job, inputs)["images"] == 50
    with noted() as said:
        pair = time_job(tmp_path, 1.0)
        with during(board, pair) as errors:
            worker_of(server)
            connect().run({"do": "clean", "max_bytes": 10**10})
    assert errors == []
    assert any("the board is held by" in line for line in said)


# --- two tools, and a tool that goes away ---


def test_two_tools_the_second_waits_and_says_for_whom(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    first, second = connect(), connect()
    with during(first, time_job(tmp_path, 2.0)) as errors:
        worker_of(server)
        with noted() as said:
            second.run(*time_job(tmp_path, 0.1, holder="second@desk"))
    assert errors == []
    assert any("the board is held by" in line and "time" in line for line in said)


def test_a_lock_that_is_not_waited_for(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    first, second = connect(), connect()
    with during(first, time_job(tmp_path, 20.0, holder="ana@desk")):
        worker_of(server)
        with pytest.raises(JobFailed, match="the board is held by ana@desk") as caught:
            second.run(*time_job(tmp_path, 0.1, lock_wait_s=0.5))
        os.kill(worker_of(server), signal.SIGKILL)  # seen to be held: it need not end by itself
    assert caught.value.kind == "lock"
