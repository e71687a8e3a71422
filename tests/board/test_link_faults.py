"""What the link and the power do in the middle of a job: an error in time, nothing left, and a rerun is as unbroken."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import QUICK, Connect
from lossy import lossy, why_not
from models import SLOW_ENGINES, Job, answers, compile_job, digest_of, score_job, time_job
from proxy import Proxy
from sshd import Sshd, running
from test_board_jobs import eventually, worker_of

from edgecnn.agent.pack import Agent, pack_agent
from edgecnn.board.jobs import Board
from edgecnn.board.limits import LinkLimits
from edgecnn.board.link import LinkLost
from edgecnn.process.errors import EdgeError

pytestmark = pytest.mark.slow

SHARES = [round(share, 2) for share in np.random.default_rng(7).uniform(0.05, 0.9, 3)]  # of a step's time
CUTS = pytest.mark.parametrize(
    "share",
    [
        SHARES[0],
        *(pytest.param(share, marks=pytest.mark.full(reason="another moment to cut at")) for share in SHARES[1:]),
    ],
)

SHORT = LinkLimits(silence_s=1.0, look_s=1.0, heartbeat_s=1.5)


def cut_later(link: Proxy, seconds: float) -> threading.Timer:
    """Cut the link after a while."""

    def cut() -> None:
        link.faults.cut = True

    timer = threading.Timer(seconds, cut)
    timer.start()
    return timer


def broken(board: Board, job: Job, link: Proxy, seconds: float, **more: Any) -> LinkLost:
    """Run a job whose link is cut after `seconds`; the error must come within 15 s of the cut.

    A job that was done before is run again with an earlier cut: a run to the end leaves nothing that a next one uses.
    """
    while True:
        timer = cut_later(link, seconds)
        start = time.monotonic()
        try:
            board.run(*job, **more)
        except LinkLost as error:
            assert time.monotonic() - start < seconds + 15
            return error
        timer.cancel()
        timer.join()
        link.heal()
        seconds /= 2


@CUTS
def test_cuts_in_a_compile(connect: Connect, server: Sshd, link: Proxy, tmp_path: Path, share: float) -> None:
    agent, job = pack_agent(replace=SLOW_ENGINES), compile_job(tmp_path)
    engine = connect(agent=agent).run(*job)["engine"]  # the unbroken result
    server.environment["EDGECNN_TEST_BUILD_S"] = "4.0"  # longer than the board goes on alone
    shutil.rmtree(server.cache)
    server.restart()
    board = connect(agent=agent, limits=SHORT)
    error = broken(board, job, link, 0.3 + share * 2.5, step="compile-int8")
    assert "compile-int8 on `board`: the link to `board` was lost" in error.message
    eventually(lambda: server.agents() == {}, SHORT.heartbeat_s + 4)  # ended there, though nobody could tell it
    assert engine not in {path.name for path in (server.cache / "files").iterdir()}
    link.heal()
    server.environment["EDGECNN_TEST_BUILD_S"] = "0"
    server.restart()
    made = connect(agent=agent).run(*job)
    assert (made["cached"], made["engine"]) == (False, engine)
    kept = {path.name for path in (server.cache / "files").iterdir()}
    assert kept == {job[0]["graph"], engine}


@CUTS
def test_cuts_in_a_timing(connect: Connect, server: Sshd, link: Proxy, tmp_path: Path, share: float) -> None:
    connect().run(*time_job(tmp_path, 0.1))  # the files are there from now on
    error = broken(connect(limits=SHORT), time_job(tmp_path, 20.0), link, 0.3 + share * 2.0, out=tmp_path, step="speed")
    assert "speed on `board`: the link to `board` was lost" in error.message
    assert not (tmp_path / "pairs.npz").exists()
    eventually(lambda: server.agents() == {}, SHORT.heartbeat_s + 4)
    link.heal()
    assert connect().run(*time_job(tmp_path, 0.1), out=tmp_path)["conditions"]["pairs"] >= 64


@CUTS
def test_cuts_in_a_score(connect: Connect, server: Sshd, link: Proxy, tmp_path: Path, share: float) -> None:
    job, inputs = score_job(tmp_path, 1_500)
    job["batch"] = 1
    (tmp_path / "unbroken").mkdir()
    board = connect()
    board.run(job, inputs)
    start = time.monotonic()
    board.run(job, inputs, out=tmp_path / "unbroken")
    seconds = time.monotonic() - start
    again = tmp_path / f"again-{share}"
    again.mkdir()
    broken(connect(limits=SHORT), (job, inputs), link, 0.1 + share * seconds * 0.6, out=again, step="score-int8")
    link.heal()
    connect().run(job, inputs, out=again)
    assert sum(len(rows) for name, rows in answers(again).items() if name.endswith("/rows")) == 1_500
    assert joined(again) == joined(tmp_path / "unbroken")


def joined(folder: Path) -> dict[str, list[Any]]:
    """The answers of all files by name, in order: how they were cut into files is not part of them."""
    found: dict[str, list[Any]] = {}
    for name, rows in answers(folder).items():
        if not name.endswith("/names"):
            found.setdefault(name.rpartition("/")[2], []).extend(rows)
    return found


def test_a_stall_shorter_than_the_limits(connect: Connect, link: Proxy, tmp_path: Path) -> None:
    board = connect(limits=LinkLimits(silence_s=4.0, heartbeat_s=4.0))

    def stall() -> None:
        link.faults.cut = True
        time.sleep(1.5)
        link.faults.cut = False

    thread = threading.Timer(1.0, stall)
    thread.start()
    assert board.run(*time_job(tmp_path, 2.0))["conditions"]["pairs"] >= 64
    thread.join()


@pytest.mark.parametrize("delay_s", [0.04, pytest.param(0.1, marks=pytest.mark.full(reason="a slower link still"))])
def test_jobs_with_loss_and_delay(connect: Connect, link: Proxy, tmp_path: Path, delay_s: float) -> None:
    """A slow round trip, every twentieth chunk one retransmission late; the limits are the default ones."""
    link.faults.delay_s, link.faults.loss = delay_s, 0.05
    board = connect(limits=LinkLimits())
    (tmp_path / "out").mkdir()
    job, inputs = score_job(tmp_path)
    assert board.run(job, inputs, out=tmp_path / "out")["images"] == 50


@pytest.mark.full(reason="the kernel's own losses; the proxy's are as long")
def test_jobs_with_real_packets_lost(openssh: None, agent: Agent, tmp_path: Path) -> None:
    """The same with IP packets: 100 ms each way, 5 % of them never arrive, either way; TCP does the rest."""
    if why := why_not():
        pytest.skip(why)
    (tmp_path / "out").mkdir()
    with (
        lossy(delay_s=0.1, loss=0.05) as far,
        running(tmp_path / "board", address=far.there, prefix=far.prefix) as server,
        Board.connect("board", agent=agent, limits=LinkLimits(), config=server.config) as board,
    ):
        start = time.monotonic()
        assert board.run({"do": "describe"})["agent"]
        assert time.monotonic() - start > 1.0  # ten exchanges of 200 ms are the least
        job, inputs = score_job(tmp_path)
        assert board.run(job, inputs, out=tmp_path / "out")["images"] == 50
    assert sum(len(rows) for name, rows in answers(tmp_path / "out").items() if name.endswith("/rows")) == 50


def test_the_board_is_switched_off(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    board = connect()
    job = time_job(tmp_path, 20.0)
    thread = threading.Timer(1.5, server.crash)
    thread.start()
    start = time.monotonic()
    with pytest.raises(LinkLost) as caught:
        board.run(*job, step="speed")
    assert time.monotonic() - start < 15
    thread.join()
    assert "speed on `board`: the link to `board` was lost" in caught.value.message
    assert "the board does not answer now" in caught.value.message
    with pytest.raises(EdgeError, match="refuses connections"):
        board.run(*job, step="speed")
    server.start()
    assert board.run(*time_job(tmp_path, 0.2))["conditions"]["pairs"] >= 64


@pytest.fixture
def boots(root: None, server: Sshd) -> Path:
    """The board's own boot id, in a mount namespace of its sshd."""
    boot_id = server.folder / "boot_id"
    boot_id.write_text("11111111-1111-4111-8111-111111111111\n")
    server.before = f"mount --bind {boot_id} /proc/sys/kernel/random/boot_id"
    server.restart()
    return boot_id


def test_the_board_reboots_in_a_run(connect: Connect, server: Sshd, boots: Path, tmp_path: Path) -> None:
    board = connect(limits=LinkLimits())
    assert board.boot_id == board.facts["boot_id"] == "11111111-1111-4111-8111-111111111111"

    def reboot() -> None:
        boots.write_text("22222222-2222-4222-8222-222222222222\n")
        server.crash()
        server.start()

    thread = threading.Timer(1.5, reboot)
    thread.start()
    start = time.monotonic()
    errors = []
    try:
        board.run(*time_job(tmp_path, 20.0), step="speed")
    except LinkLost as error:
        errors.append(error)
    assert time.monotonic() - start < 15
    thread.join()
    assert errors[0].message == "speed on `board`: the board rebooted"
    assert "power supply" in errors[0].hint
    assert board.run(*time_job(tmp_path, 0.2))["conditions"]["pairs"] >= 64


# --- the tool goes away ---


def started_tool(server: Sshd, tmp_path: Path, job: Job) -> subprocess.Popen[str]:
    """A tool in a process of its own, its job running on the board."""
    (tmp_path / "job.json").write_text(
        json.dumps({"job": job[0], "inputs": {digest: str(path) for digest, path in job[1].items()}})
    )
    tool = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("tool.py")), str(server.config), str(tmp_path / "job.json")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert tool.stderr is not None
    said = ""
    while not said.splitlines()[-1:] or not said.splitlines()[-1].startswith("timing"):
        line = tool.stderr.readline()
        assert line, said
        said += line
    assert server.agents()
    return tool


def test_ctrl_c_leaves_nothing_running(server: Sshd, tmp_path: Path) -> None:
    tool = started_tool(server, tmp_path, time_job(tmp_path, 60.0))
    os.killpg(tool.pid, signal.SIGINT)
    printed, errors = tool.communicate(timeout=15)
    assert tool.returncode == 130, errors
    assert printed == ""
    assert server.agents() == {}  # gone before the tool is


def test_ctrl_c_in_a_transfer(server: Sshd, link: Proxy, connect: Connect, tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(os.urandom(10_000_000))
    link.faults.rate = 500_000
    digest = digest_of(file)
    job: Job = ({"do": "accept", "files": [{"sha256": digest, "size": 10_000_000}]}, {digest: file})
    (tmp_path / "job.json").write_text(json.dumps({"job": job[0], "inputs": {digest: str(file)}}))
    tool = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("tool.py")), str(server.config), str(tmp_path / "job.json")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    part = server.cache / "files" / f"{digest}.part"
    eventually(lambda: part.exists() and part.stat().st_size > 500_000, 30)
    os.killpg(tool.pid, signal.SIGINT)
    _, errors = tool.communicate(timeout=15)
    assert tool.returncode == 130, errors
    link.heal()
    assert connect().run(*job)["have"] == [digest]
    assert (server.cache / "files" / digest).read_bytes() == file.read_bytes()


def test_a_killed_tool_leaves_nothing_running(server: Sshd, tmp_path: Path) -> None:
    tool = started_tool(server, tmp_path, time_job(tmp_path, 60.0))
    tool.kill()
    tool.communicate(timeout=15)
    eventually(lambda: server.agents() == {}, 6)


def test_a_suspended_tool_leaves_nothing_running(server: Sshd, tmp_path: Path) -> None:
    """The laptop's lid is closed: connections stay, heartbeats don't come."""
    tool = started_tool(server, tmp_path, time_job(tmp_path, 60.0))
    tool.send_signal(signal.SIGSTOP)
    eventually(lambda: server.agents() == {}, 10)
    tool.send_signal(signal.SIGCONT)
    _, errors = tool.communicate(timeout=20)
    assert tool.returncode == 1
    assert "no sign of life from the host for 2 s" in errors


def test_closing_from_another_thread_ends_the_job(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    """As a fleet does on Ctrl-C: the threads that wait for boards get no signal."""
    board = connect()
    ended: list[BaseException] = []

    def run() -> None:
        try:
            board.run(*time_job(tmp_path, 60.0))
        except BaseException as error:  # noqa: BLE001  # what it is, is the test's
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    worker_of(server)
    board.close()
    thread.join(5)
    assert [type(error) for error in ended] == [concurrent.futures.CancelledError]
    eventually(lambda: server.agents() == {}, 1)


def test_a_disk_that_is_slow_to_flush(connect: Connect, server: Sshd, tmp_path: Path) -> None:
    """What writes there waits for the disk, far longer than a link may be silent; sshd itself answers."""
    file = tmp_path / "weights.bin"
    file.write_bytes(os.urandom(1_000_000))
    board = connect()
    job: Job = ({"do": "accept", "files": [{"sha256": digest_of(file), "size": 1_000_000}]}, {digest_of(file): file})
    servers = [pid for pid, command in server.processes().items() if "edgecnn-link" in command]
    for pid in servers:
        os.kill(pid, signal.SIGSTOP)

    def go_on() -> None:
        for pid in servers:
            os.kill(pid, signal.SIGCONT)

    timer = threading.Timer(3 * QUICK.silence_s, go_on)
    timer.start()
    assert board.run(*job)["have"] == [digest_of(file)]
    timer.join()
