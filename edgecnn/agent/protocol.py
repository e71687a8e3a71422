"""What host and agent agree on: the job file, the folder on the board, and the words for what went wrong."""

from __future__ import annotations

import errno
import json
import re
import traceback
from pathlib import Path
from typing import Any

from edgecnn.process.disk import DENIED, is_full
from edgecnn.process.errors import EdgeError

PROTOCOL = 1
HEARTBEAT_S = 6.0
# How engines say it; CUDA's error 2 is cudaErrorMemoryAllocation.
NO_MEMORY = ("out of memory", "Out of memory", "OutOfMemory", "std::bad_alloc", "CUDA Error: 2.")
NUMPY = "install it there: sudo apt install python3-numpy (or pip install --user numpy)"
CUDA = "see `nvidia-smi` there; on a Jetson: sudo apt install nvidia-jetpack. 35 means a driver too old for CUDA"
MOST_WORDS = 20_000  # characters of an error: a log's last lines can be of any length
MAX_BYTES = 20_000_000_000  # of the files kept on a board
DIGEST = re.compile(r"[0-9a-f]{64}")
JOB_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,99}")
JOBS = ("describe", "accept", "clean", "compile", "score", "time")
HOLDING = ("clean", "compile", "score", "time")  # one at a time on a board,
OWN = ("clean",)  # these only beside the other jobs of the same login

Json = dict[str, Any]


class Refusal(EdgeError):
    """An error of a job with one word, `kind`, that the host can act on."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.kind = kind


def answer_of(error: BaseException, folder: Path) -> Json:
    """The last line of a job that failed in this folder: what any exception means to the host.

    `kind` is `fault`, with a traceback for a hint, where nobody foresaw it: a mistake of edgecnn's own.
    """
    known = error if isinstance(error, EdgeError) and not is_full(error, folder) else _meaning(error, folder)
    if known is None:
        trace = "".join(traceback.format_exception(error))
        known = Refusal("fault", f"the agent failed: {_first_line(error)}", trace)
    kind = known.kind if isinstance(known, Refusal) else "failed"
    return {"error": known.message[:MOST_WORDS], "hint": known.hint[-MOST_WORDS:], "kind": kind}


def _meaning(error: BaseException, folder: Path) -> Refusal | None:
    text, where = _first_line(error), getattr(error, "filename", None) or folder
    if is_full(error, folder):
        return Refusal("disk-full", f"the board's disk is full: {text}", "run `edgecnn devices clean`")
    if isinstance(error, OSError) and error.errno in DENIED:
        return Refusal(
            "read-only", f"the agent cannot write to `{where}` on the board: {error.strerror}",
            "make the home folder of this user writable",
        )  # fmt: skip
    no_memory = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if no_memory or any(word in str(error) for word in NO_MEMORY):
        return Refusal(
            "memory", f"the board is out of memory: {text}", "lower the batch, or close other programs there"
        )
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "numpy":
        return Refusal("missing", f"numpy is missing on the board: {error}", NUMPY)
    if "libcudart" in str(error) or "CUDA Error:" in str(error):
        return Refusal("missing", f"CUDA does not work on the board: {text.partition('. To figure')[0]}", CUDA)
    return Refusal("failed", f"the job on the board failed: {text}") if isinstance(error, OSError) else None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().split("\n")[0]


class Cache:
    """The agent's one folder on the board. Names in it are digests or job ids, never a user's text."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = root / "files"  # what was sent and what was built, by SHA-256
        self.engines = root / "engines"  # which engine was built from what: small JSON files that name one of `files`
        self.timing = root / "timing"  # TensorRT's timing caches
        self.restore = root / "restore"  # notes of power modes and clocks that are to be restored
        self.lock = root / "lock"  # held, and filled with who holds it, while a job has the board to itself

    def job(self, name: str) -> Path:
        """The folder of one job."""
        if not JOB_ID.fullmatch(name):
            raise Refusal("refused", f"`{name}` is not a job id")
        return self.root / "jobs" / name

    def file(self, digest: object) -> Path:
        """Where the file of this SHA-256 is, or would be.

        Raises:
            Refusal: it isn't 64 hex digits: nothing else ever becomes a path.
        """
        if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise Refusal("refused", f"`{digest}` is not a SHA-256 in hex")
        return self.files / digest

    def make(self) -> None:
        """Make the folders, private to the user."""
        for folder in (self.files, self.engines, self.timing, self.restore):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)  # whoever made it first


def sets_power(job: Json) -> bool:
    """Whether a keeper stands beside the worker of this job."""
    return job["do"] == "time" and bool(job.get("power_mode") or job.get("lock_clocks"))


def read_job(folder: Path) -> Json:
    """The job file of a job's folder.

    Raises:
        Refusal: there is none, it isn't one, or it speaks another protocol.
    """
    try:
        job = json.loads((folder / "job.json").read_text())
    except FileNotFoundError as error:
        raise Refusal("refused", f"there is no job `{folder.name}` on the board") from error
    except ValueError as error:
        raise Refusal("refused", f"the job file of `{folder.name}` is damaged: {error}", "run it again") from error
    if not isinstance(job, dict):
        raise Refusal("refused", f"the job file of `{folder.name}` is not a JSON object")
    asked = job.get("protocol")
    if asked != PROTOCOL:
        newer = isinstance(asked, int) and asked > PROTOCOL
        raise Refusal(
            "agent-too-old" if newer else "tool-too-old",
            f"this edgecnn speaks protocol {asked}, the board's agent speaks {PROTOCOL}",
            "update edgecnn where it runs: the agent travels with it" if not newer else "send the tool's own agent",
        )
    if job.get("do") not in JOBS:
        raise Refusal("refused", f"the agent has no job `{job.get('do')}`", f"its jobs: {', '.join(JOBS)}")
    return job
