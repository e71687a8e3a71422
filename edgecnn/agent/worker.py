"""The process that does a job. It may crash, run out of memory or be killed: the guard says so."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from edgecnn.agent import files
from edgecnn.agent.protocol import HOLDING, Cache, Json, Refusal, answer_of, read_job, sets_power
from edgecnn.process import progress
from edgecnn.process.child import Lines, end_with_parent

PR_SET_PDEATHSIG = 1
OOM_SCORE = "500"  # the kernel, short of memory, takes this process before the guard and sshd


def work(cache: Cache, name: str, parent: int) -> int:
    """Do the job and print its last line; never raises, always ends the process."""
    _end_with(parent)
    lines = Lines()
    end_with_parent()
    folder = cache.job(name)
    answer: Json
    try:
        job = read_job(folder)
        with progress.showing(lines):
            if job["do"] in HOLDING and not sets_power(job):  # else the keeper has, and its own note is there
                _mend(cache)
            answer = {"result": _do(cache, folder, job)}
    except BaseException as error:  # noqa: BLE001  # the border of a process: everything becomes one line and a log
        with contextlib.suppress(OSError):  # the log is on that disk
            traceback.print_exc()
        answer = answer_of(error, folder)
    lines.send(**_named(answer, folder))
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(0 if "result" in answer else 1)  # no waiting for native threads of an engine


def _do(cache: Cache, folder: Path, job: Json) -> Json:
    match job["do"]:
        case "describe":
            from edgecnn.agent.describe import describe

            return describe(cache)
        case "accept":
            return files.accept(cache, job)
        case "clean":
            return files.clean(cache, job)
        case "compile":
            from edgecnn.agent.compiling import compile_graph

            return compile_graph(cache, folder, job)
        case "score":
            from edgecnn.agent.scoring import score

            return score(cache, folder, job)
        case "time":
            from edgecnn.agent.timing import time_pairs

            return time_pairs(cache, folder, job)
        case other:
            raise Refusal("refused", f"the agent has no job `{other}`")


def _mend(cache: Cache) -> None:
    """Restore what a job that was killed together with its keeper left set."""
    if any(cache.restore.glob("*.json")):
        from edgecnn.agent.keeper import mend

        mend(cache)


def _named(answer: Json, folder: Path) -> Json:
    """Errors speak of files by their names on the host, not by digests."""
    if "error" not in answer:
        return answer
    try:
        job = json.loads((folder / "job.json").read_text())
    except (OSError, ValueError):
        return answer
    names = job.get("names") or {}
    if "name" in job and "graph" in job:
        names = {job["graph"]: job["name"], **names}
    for digest, name in names.items():
        for part in ("error", "hint"):
            answer[part] = answer[part].replace(str(folder.parents[1] / "files" / digest), name).replace(digest, name)
    return answer


def _end_with(parent: int) -> None:
    """Let the kernel end this process when the guard ends, whatever native code it is in by then."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it ended before
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
