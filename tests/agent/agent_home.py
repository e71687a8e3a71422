"""A home folder with the packed agent in it, run as sshd would run it: the constant command, heartbeats on stdin."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecnn.agent.pack import pack_agent
from edgecnn.agent.protocol import PROTOCOL, Cache

Json = dict[str, Any]


@dataclass
class Running:
    """A job on its way. It gets a heartbeat every 0.1 s until `cut` or `close`."""

    process: subprocess.Popen[bytes]
    folder: Path
    lines: list[Json] = field(default_factory=list)
    beating: bool = True

    def __post_init__(self) -> None:
        self.threads = [threading.Thread(target=one, daemon=True) for one in (self._beat, self._read)]
        for thread in self.threads:
            thread.start()

    def _beat(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            while self.beating:
                self.process.stdin.write(b".")
                self.process.stdin.flush()
                time.sleep(0.1)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))  # nothing but JSON may come

    def cut(self) -> None:
        """No more heartbeats; stdin stays open, as behind a cut link."""
        self.beating = False

    def close(self) -> None:
        """The end of stdin, as when the client is gone."""
        self.beating = False
        self.threads[0].join(5)
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def kill(self) -> None:
        """SIGKILL the guard."""
        self.process.send_signal(signal.SIGKILL)

    def until(self, key: str, seconds: float = 20.0) -> Json:
        """The first line with this key."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            for line in list(self.lines):
                if key in line:
                    return line
            time.sleep(0.01)
        raise AssertionError(f"no `{key}` in {self.lines}")

    def wait(self, seconds: float = 60.0) -> Json:
        """The last line, after the guard has ended."""
        self.process.wait(seconds)
        self.threads[1].join(5)
        self.beating = False
        self.threads[0].join(5)
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        return self.lines[-1] if self.lines else {}

    def worker(self) -> int:
        """The worker's process id."""
        limit = time.monotonic() + 10
        while time.monotonic() < limit:
            for pid in children(self.process.pid):
                with contextlib.suppress(OSError):
                    if b"--worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        return pid
            time.sleep(0.01)
        raise AssertionError("no worker")


class AgentHome:
    """A home folder on a board."""

    def __init__(
        self, home: Path, *, replace: Mapping[str, Path] | None = None, env: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:  # fmt: skip
        agent = pack_agent(replace=replace)
        self.home, self.cache = home, Cache(home / ".cache/edgecnn")
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "EDGECNN_BOARD": str(home),
            **(env or {}),
        }
        self.python, self.count = python, 0
        self.pyz = self.cache.root / "agents" / f"{agent.sha256}.pyz"
        self.pyz.parent.mkdir(parents=True, exist_ok=True)
        self.pyz.write_bytes(agent.data)
        self.cache.make()

    def put(self, content: bytes | Path) -> str:
        """A file that was sent and accepted; returns its digest."""
        data = content.read_bytes() if isinstance(content, Path) else content
        digest = hashlib.sha256(data).hexdigest()
        self.cache.file(digest).write_bytes(data)
        return digest

    def write_job(self, do: str, *, job_id: str | None = None, **job: Any) -> str:
        """Write a job file; returns the job's id."""
        self.count += 1
        job_id = job_id or f"job-{self.count}"
        folder = self.cache.job(job_id)
        folder.mkdir(parents=True, exist_ok=True)
        whole = {"protocol": PROTOCOL, "do": do, "holder": "ana@desk", "heartbeat_s": 5.0, **job}
        (folder / "job.json").write_text(json.dumps(whole))
        return job_id

    def launch(self, job_id: str) -> Running:
        """Start a job whose file is there."""
        process = subprocess.Popen(
            [self.python, "-u", str(self.pyz.relative_to(self.home)), job_id], cwd=self.home, env=self.env,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        return Running(process, self.cache.job(job_id))

    def start(self, do: str, *, job_id: str | None = None, **job: Any) -> Running:
        """Start a job."""
        return self.launch(self.write_job(do, job_id=job_id, **job))

    def run(self, do: str, **job: Any) -> Json:
        """Do a job to its end; its last line."""
        return self.start(do, **job).wait()

    def result(self, do: str, **job: Any) -> Json:
        """The result of a job that must succeed."""
        answer = self.run(do, **job)
        assert "result" in answer, answer
        result: Json = answer["result"]
        return result


def children(pid: int) -> list[int]:
    """Process ids of a process's children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process ends within `seconds`."""
    limit = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < limit:
        time.sleep(0.02)
    return not is_running(pid)


def left_over(home: Path) -> list[str]:
    """Command lines of processes whose arguments or working folder are in this home."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if is_running(int(folder.name)) and (str(home) in line or os.readlink(folder / "cwd") == str(home)):
                found.append(line)
    return found
