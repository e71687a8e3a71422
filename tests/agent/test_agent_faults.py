"""Whatever happens on a board ends in one last line that says so, and nothing keeps running there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from agent_home import AgentHome, Running, children, gone, is_running, left_over
from golden_graphs import colours

from edgecnn.agent.protocol import PROTOCOL
from edgecnn.data.index import write_shards
from edgecnn.recipe.io_contract import read_contract

ODD = Path(__file__).with_name("odd_engine.py")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[AgentHome]:
    """A board whose engine does what a model file says; nothing may be left running."""
    made = AgentHome(tmp_path / "home", replace={"backends.ort": ODD})
    yield made
    limit = time.monotonic() + 5
    while left_over(made.home) and time.monotonic() < limit:
        time.sleep(0.05)
    assert left_over(made.home) == []


def start(home: AgentHome, what: str, **job: object) -> Running:
    graph = home.put(what.encode())
    return home.start("compile", **{"backend": "onnxruntime", "graph": graph, "name": "m.onnx", **job})


def in_the_middle(home: AgentHome, what: str = "sleeps", **job: object) -> tuple[Running, int]:
    """A job whose engine is at work, and its worker's process id."""
    running = start(home, what, **job)
    worker, log = running.worker(), running.folder / "log.txt"
    limit = time.monotonic() + 10
    while "the engine loads" not in log.read_text() and time.monotonic() < limit:
        time.sleep(0.02)
    return running, worker


# --- the host goes away ---


def test_no_heartbeat(home: AgentHome) -> None:
    job, worker = in_the_middle(home, heartbeat_s=0.5)
    job.cut()
    start = time.monotonic()
    answer = job.wait()
    assert time.monotonic() - start < 4
    assert (answer["error"], answer["kind"]) == ("no sign of life from the host for 0.5 s", "heartbeat")
    assert not is_running(worker)


def test_a_job_goes_on_as_long_as_there_are_heartbeats(home: AgentHome) -> None:
    job, worker = in_the_middle(home, heartbeat_s=1.0)
    time.sleep(2.5)
    assert is_running(worker)
    job.close()
    assert job.wait()["kind"] == "ended"


def test_stdin_ends(home: AgentHome) -> None:
    job, worker = in_the_middle(home)
    job.close()
    assert job.wait(5)["error"] == "the host closed the connection"
    assert not is_running(worker)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal(home: AgentHome, number: signal.Signals) -> None:
    job, worker = in_the_middle(home)
    job.process.send_signal(number)
    answer = job.wait(5)
    assert (answer["error"], answer["kind"]) == (f"the agent was asked to end ({number.name})", "ended")
    assert not is_running(worker)


@pytest.mark.parametrize("what", ["sleeps", "deaf"])
def test_the_guard_is_killed(home: AgentHome, what: str) -> None:
    job, worker = in_the_middle(home, what)
    job.kill()
    job.wait(5)
    assert gone(worker, 3)


def test_a_worker_that_heeds_no_signal_and_its_children(home: AgentHome) -> None:
    job, worker = in_the_middle(home, "deaf")
    job.until("note")
    job.close()
    assert job.wait(6)["kind"] == "ended"
    assert not is_running(worker)
    job, _ = in_the_middle(home, "parent")
    child = int(job.until("note")["note"])
    job.close()
    job.wait(6)
    assert gone(child, 1)


def test_a_host_that_takes_no_output_does_not_stop_the_guard(home: AgentHome) -> None:
    """The link is cut: what the worker says fills every pipe, and the heartbeats end."""
    graph = home.put(b"talks 100000000")
    folder = home.cache.job("full")
    folder.mkdir(parents=True)
    job = {"protocol": PROTOCOL, "do": "compile", "backend": "onnxruntime", "graph": graph, "heartbeat_s": 1.5}
    (folder / "job.json").write_text(json.dumps(job))
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-u", str(home.pyz), "full"], cwd=home.home, env=home.env, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.wait(15) == 1
    assert time.monotonic() - start < 10
    assert process.stdin
    assert process.stdout
    process.stdin.close()
    process.stdout.close()


def test_a_slow_host_gets_the_last_line_all_the_same(home: AgentHome) -> None:
    job = home.write_job("compile", backend="onnxruntime", graph=home.put(b"talks 20000"), heartbeat_s=2.0)
    process = subprocess.Popen(
        [sys.executable, "-u", str(home.pyz), job], cwd=home.home, env=home.env, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    stop = threading.Event()

    def beat() -> None:
        assert process.stdin
        with contextlib.suppress(OSError):
            while not stop.wait(0.1):
                process.stdin.write(b".")
                process.stdin.flush()

    beating = threading.Thread(target=beat)
    beating.start()
    limit = time.monotonic() + 60
    while any(b"--worker" in line for line in commands(process.pid)) or time.monotonic() < limit - 57:
        time.sleep(0.1)  # it is done, and nobody has read a byte yet
        assert time.monotonic() < limit
    assert process.poll() is None
    lines = process.stdout.read().splitlines()
    stop.set()
    beating.join()
    process.stdin.close()
    process.stdout.close()
    assert json.loads(lines[-1])["result"]["version"] == "odd engine 1.0"
    assert len(lines) < 5000  # progress was dropped
    assert process.wait(5) == 0


def commands(pid: int) -> list[bytes]:
    """Command lines of a process's children."""
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{child}/cmdline").read_bytes())
    return found


# --- the job dies ---


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("segfault", "crashed", "the job on the board crashed with SIGSEGV"),
        ("killed", "killed", "was killed (signal 9): most often the board ran out of memory"),
        ("memory", "memory", "the board is out of memory: MemoryError"),
        ("exits", "crashed", "ended with status 3 and no answer"),
    ],
)
def test_the_worker_dies(home: AgentHome, what: str, kind: str, words: str) -> None:
    job = start(home, what)
    answer = job.wait()
    assert (job.process.returncode, answer["kind"]) == (1, kind)
    assert words in answer["error"]
    if what != "memory":
        assert "the engine loads" in answer["hint"]  # the end of its log
    assert start(home, "fine").wait()["result"]["version"] == "odd engine 1.0"  # nothing holds the board


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, but: int) -> None:
    """Fill a disk but for some bytes."""
    with (disk / "filler").open("wb", buffering=0) as filler:
        filler.write(bytes(shutil.disk_usage(disk).free - but))


@pytest.mark.parametrize("free", [0, 16_384])
def test_the_disk_is_full(small_disk: Path, tmp_path: Path, free: int) -> None:
    """At the start of a job, and in the middle; with space again, the same job completes."""
    home = AgentHome(small_disk)
    model = colours(tmp_path / "m.onnx")
    contract = read_contract(model)
    assert contract is not None
    pixels = np.random.default_rng(0).integers(0, 256, (4000, 4, 4, 3), np.uint8)
    write_shards(tmp_path, "scored", len(pixels), list(pixels))
    job = home.write_job(
        "score", backend="onnxruntime", model=home.put(model), io=contract.model_dump(mode="json"), first=0, batch=64,
        shards=[home.put(tmp_path / "scored-00000.npy")], keep={},
    )  # fmt: skip
    fill(small_disk, free)
    answer = home.launch(job).wait()
    assert (answer["kind"], "the board's disk is full" in answer["error"]) == ("disk-full", True)
    assert "edgecnn devices clean" in answer["hint"]
    (small_disk / "filler").unlink()
    again = home.launch(job)
    assert again.wait()["result"]["images"] == 4000
    assert not list(again.folder.glob("out/*partial*"))


def test_a_fault_of_the_agents_own(home: AgentHome) -> None:
    answer = start(home, "raises").wait()
    assert (answer["kind"], answer["error"]) == ("fault", "the agent failed: LookupError: nobody foresaw this")
    assert answer["hint"].startswith("Traceback")
    assert "compile_graph" in answer["hint"]


def test_a_home_that_cannot_be_written(home: AgentHome) -> None:
    """Root may write anywhere, so a file stands where the folder must be."""
    shutil.rmtree(home.cache.timing)
    home.cache.timing.write_text("")
    answer = home.run("describe")
    assert answer["kind"] in ("failed", "read-only")
    assert "timing" in answer["error"]


# --- two at once ---


def test_a_second_waits_and_says_who_holds_the_board(home: AgentHome) -> None:
    first, _ = in_the_middle(home, holder="ana@desk")
    second = start(home, "fine", holder="ben@lab", heartbeat_s=1.0)
    note = second.until("note")["note"]
    assert note.startswith("the board is held by ana@desk (compile, for ")
    assert home.result("accept", files=[])["have"] == []  # asking and sending go on meanwhile
    assert second.process.poll() is None
    first.close()
    first.wait()
    assert second.wait()["result"]["version"] == "odd engine 1.0"


def test_waiting_has_an_end(home: AgentHome) -> None:
    first, _ = in_the_middle(home, holder="ana@desk")
    answer = start(home, "fine", lock_wait_s=0.5).wait()
    assert answer["kind"] == "lock"
    assert answer["error"].startswith("the board is held by ana@desk (compile")
    first.close()
    first.wait()


def test_who_waits_is_watched_too(home: AgentHome) -> None:
    first, _ = in_the_middle(home)
    second = start(home, "fine", heartbeat_s=0.5)
    second.until("note")
    second.cut()
    assert second.wait(5)["kind"] == "heartbeat"
    first.close()
    first.wait()
