"""What host and agent agree on: the job file, the folder on the board, and the words for what went wrong."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecnn.process.errors import EdgeError

PROTOCOL = 1
HEARTBEAT_S = 6.0
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


def answer_of(error: EdgeError) -> Json:
    """The last line of a job that failed."""
    kind = error.kind if isinstance(error, Refusal) else "failed"
    return {"error": error.message[:MOST_WORDS], "hint": error.hint[-MOST_WORDS:], "kind": kind}


@dataclass(frozen=True)
class Cache:
    """The agent's one folder on the board. Names in it are digests or job ids, never a user's text."""

    root: Path

    @property
    def files(self) -> Path:
        """What was sent and what was built, by SHA-256."""
        return self.root / "files"

    @property
    def engines(self) -> Path:
        """Which engine was built from what: small JSON files that name one of `files`."""
        return self.root / "engines"

    @property
    def timing(self) -> Path:
        """TensorRT's timing caches."""
        return self.root / "timing"

    @property
    def restore(self) -> Path:
        """Notes of power modes and clocks that are to be restored."""
        return self.root / "restore"

    @property
    def lock(self) -> Path:
        """Held, and filled with who holds it, while a job has the board to itself."""
        return self.root / "lock"

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
            raise Refusal("refused", f"`{digest}` is no SHA-256 in hex")
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
        raise Refusal("refused", f"the job file of `{folder.name}` holds no JSON object")
    asked = job.get("protocol")
    if asked != PROTOCOL:
        newer = isinstance(asked, int) and asked > PROTOCOL
        raise Refusal(
            "agent-too-old" if newer else "tool-too-old",
            f"the tool speaks protocol {asked}, the board's agent {PROTOCOL}",
            "update edgecnn where it runs: the agent travels with it" if not newer else "send the tool's own agent",
        )
    if job.get("do") not in JOBS:
        raise Refusal("refused", f"the agent knows no job `{job.get('do')}`", f"it knows {', '.join(JOBS)}")
    return job
