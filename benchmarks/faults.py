"""Cut the link to a board at random moments of a session, run the session again, compare with an unbroken one.

    python benchmarks/faults.py [--cuts 100] [--seed 0]

A session: log in, bring the agent and 20 MB, build an engine (a stand-in that takes a second and writes piece by piece)
and fetch it, score 300 images, time two models. Every cut starts from an empty board. Compared: every file on the
board with its name, its hash; the engine; every answer. Counted too: how long the error took, and what still ran on
the board when it was last asked. Ends with code 1 when one of them isn't as it must be.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "board"))
from models import SLOW_ENGINES, Job, answers, compile_job, digest_of, score_job, time_job
from programs import why_missing
from proxy import Proxy, between
from sshd import Sshd, running

from edgecnn.agent.pack import pack_agent
from edgecnn.board.jobs import Board
from edgecnn.board.limits import LinkLimits
from edgecnn.process.errors import EdgeError

LIMITS = LinkLimits(silence_s=1.5, look_s=2.0, heartbeat_s=1.5)
WITHIN_S = 15.0


@dataclass(frozen=True)
class Jobs:
    """What a session does; made once."""

    file: Path
    compile: Job
    score: Job
    time: Job


def make_jobs(folder: Path) -> Jobs:
    file = folder / "weights.bin"
    file.write_bytes(os.urandom(20_000_000))
    parts = {name: folder / name for name in ("compile", "score", "time")}
    for part in parts.values():
        part.mkdir()
    score, inputs = score_job(parts["score"], 300)
    return Jobs(file, compile_job(parts["compile"]), ({**score, "batch": 2}, inputs), time_job(parts["time"], 0.2))


def session(server: Sshd, jobs: Jobs, out: Path) -> dict[str, Any]:
    """Everything, in order; what must be equal whatever was cut before."""
    out.mkdir(exist_ok=True)
    with Board.connect("board", agent=pack_agent(replace=SLOW_ENGINES), limits=LIMITS, config=server.config) as board:
        sent = digest_of(jobs.file)
        size = jobs.file.stat().st_size
        have = board.run({"do": "accept", "files": [{"sha256": sent, "size": size}]}, {sent: jobs.file}, step="send")
        made = board.run(*jobs.compile, step="compile")
        board.fetch(made["engine"], made["size"], out / "engine")
        board.run(*jobs.score, out=out, step="score")
        found = joined(out)
        pairs = board.run(*jobs.time, out=out, step="time")["conditions"]["pairs"]
    kept = {path.name: digest_of(path) for path in (server.cache / "files").iterdir()}
    return {
        "have": have["have"], "engine": made["engine"], "fetched": digest_of(out / "engine"), "answers": found,
        "enough pairs": pairs >= 64, "kept": kept, "kept by hash": all(name == hash_ for name, hash_ in kept.items()),
    }  # fmt: skip


def joined(folder: Path) -> dict[str, str]:
    """Digest of the answers by name, in order of the images: how they were cut into files is not part of them."""
    found: dict[str, list[Any]] = {}
    for name, rows in answers(folder).items():
        part = name.rpartition("/")[2]
        if not name.startswith("pairs.npz") and part != "names":
            found.setdefault(part, []).extend(rows)
    return {part: hashlib.sha256(repr(rows).encode()).hexdigest() for part, rows in found.items()}


def cut_session(server: Sshd, link: Proxy, jobs: Jobs, out: Path, moment: float) -> tuple[str, float]:
    """A session whose link is cut after `moment` seconds: its error, and how long after the cut it came."""
    cut_at = [0.0]

    def cut() -> None:
        link.faults.cut = True
        cut_at[0] = time.monotonic()

    timer = threading.Timer(moment, cut)
    timer.start()
    try:
        session(server, jobs, out)
    except EdgeError as error:
        return error.message, time.monotonic() - cut_at[0]
    finally:
        timer.cancel()
        timer.join()
    return "", 0.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if why := why_missing("sshd", "ssh"):
        sys.exit(why)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server is ended, the folder removed
    chance = random.Random(options.seed)
    waits, broken, failed = [], 0, 0
    environment = {"EDGECNN_TEST_BUILD_S": "1.0", "OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryDirectory() as name,
        running(Path(name) / "board", environment=environment) as server,
        between(server.port) as link,
    ):
        server.write_config(port=link.port)
        folder = Path(name)
        jobs = make_jobs(folder)
        start = time.monotonic()
        unbroken = session(server, jobs, folder / "unbroken")
        seconds = time.monotonic() - start
        print(f"an unbroken session: {seconds:.1f} s; load {os.getloadavg()[0]:.1f}; {LIMITS}", flush=True)
        for number in range(options.cuts):
            shutil.rmtree(server.cache)
            out = folder / f"out-{number}"
            moment = chance.uniform(0.02, 0.95) * seconds
            message, wait = cut_session(server, link, jobs, out, moment)
            link.heal()
            again = session(server, jobs, out)
            equal = again == unbroken
            left = server.agents()
            broken += bool(message)
            failed += not equal or wait > WITHIN_S or bool(left)
            if message:
                waits.append(wait)
            verdict = "equal" if equal else f"DIFFERENT in {[part for part in again if again[part] != unbroken[part]]}"
            what = message or "it was done before the cut"
            print(f"{number:3d} cut at {moment:5.2f} s, error after {wait:4.1f} s, rerun {verdict}: {what}", flush=True)
            if left:
                print(f"    still running: {left}")
            shutil.rmtree(out)
    worst = f"errors after {statistics.median(waits):.1f} s (median), {max(waits):.1f} s (longest)" if waits else ""
    print(f"{options.cuts - failed} of {options.cuts} reruns complete and equal; {broken} sessions were cut; {worst}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
