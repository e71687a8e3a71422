"""The agent's first process: listens for the host, takes the lock, starts the worker, and says the last word.

It does no work of its own, so that nothing slow or crashing stands between a lost host and the end of the job. When
the heartbeats stop, the worker's whole process group is ended; when the guard itself is killed, the kernel ends the
worker, and the keeper restores what was set.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from edgecnn.agent.life import HostGone, Life, Out
from edgecnn.agent.lock import Lock
from edgecnn.agent.protocol import (
    HEARTBEAT_S,
    HOLDING,
    OWN,
    Cache,
    Json,
    Refusal,
    answer_of,
    read_job,
    sets_power,
)

TERM_S = 2.0  # between SIGTERM and SIGKILL
RESTORE_S = 60.0  # nvpmodel and jetson_clocks take seconds; after this the keeper is left to itself
SAY_EVERY_S = 5.0
ALIVE = b'{"alive": 1}\n'  # the host gives up a job that says nothing at all


def guard(cache: Cache, pyz: Path, name: str) -> int:
    """Run one job to its end; the exit status is 0 with a result, 1 with an error. Never raises."""
    out, life = Out(), Life()
    try:
        answer = _Guard(cache, pyz, name, life, out).run()
    except HostGone as gone:
        answer = {"error": gone.why, "hint": "the job was ended; run it again", "kind": gone.kind}
    except Exception as error:  # noqa: BLE001  # the border of a process: the host waits for one last line
        answer = answer_of(error, cache.root)
    out.put(json.dumps(answer).encode() + b"\n")
    out.end()
    _get_out(life, out)
    return 0 if "result" in answer else 1


def _get_out(life: Life, out: Out) -> None:
    """Wait until everything is sent: on a slow link as long as the host is alive."""
    try:
        while not out.ended(0.02):
            life.wait(0.2)
    except HostGone:
        out.ended(1.0)


class _Guard:
    def __init__(self, cache: Cache, pyz: Path, name: str, life: Life, out: Out) -> None:
        self.cache, self.pyz, self.name, self.life, self.out = cache, pyz, name, life, out
        self.folder = cache.job(name)
        self.job = read_job(self.folder)
        life.heartbeat_s = float(self.job.get("heartbeat_s", HEARTBEAT_S))

    def run(self) -> Json:
        """The job's last line."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(_in_use(self.pyz))
            stack.enter_context(_in_use(self.folder / "job.json"))
            self._check_itself()
            self.cache.make()
            (self.folder / "log.txt").unlink(missing_ok=True)  # of an earlier try
            os.utime(self.folder)  # used just now
            shared: tuple[int, ...] = ()
            if self.job["do"] in HOLDING:
                lock = self._take_lock()
                stack.callback(lock.close)
                shared = lock.descriptors()
            if sets_power(self.job):
                return self._with_power(shared)
            return self._work(shared)

    def _check_itself(self) -> None:
        """The file's name is its hash: a damaged agent is one that the host sends again."""
        if hashlib.sha256(self.pyz.read_bytes()).hexdigest() != self.pyz.stem:
            raise Refusal(
                "agent-damaged", f"the agent on the board is damaged: {self.pyz}", "run again: it will be sent again"
            )
        os.utime(self.pyz)

    def _take_lock(self) -> Lock:
        lock = Lock(self.cache.lock, whole_board=self.job["do"] not in OWN)
        holder, limit = str(self.job.get("holder") or "unknown"), float(self.job.get("lock_wait_s", 3600))
        start, said = time.monotonic(), -SAY_EVERY_S
        while not lock.take(holder, self.job["do"]):
            waited = time.monotonic() - start
            if waited >= limit:
                raise Refusal(
                    "lock", f"the board is held by {lock.holder()}; waited {waited:.0f} s for it",
                    "run again when it is free, or wait longer; boards that share one kernel tell themselves apart by "
                    "EDGECNN_BOARD in the login's environment",
                )  # fmt: skip
            if waited - said >= SAY_EVERY_S:
                said = waited
                self._say(f"the board is held by {lock.holder()}: waiting")
            self.life.wait(0.1)
        return lock

    def _say(self, note: str) -> None:
        self.out.put(json.dumps({"note": note}).encode() + b"\n")

    def _with_power(self, shared: tuple[int, ...]) -> Json:
        """The job between a set and a restored power mode.

        The keeper sets and restores by itself: it restores when its stdin ends, and that happens however this process
        ends.
        """
        keeper = _Role(self, "--keeper", (self.name,), shared)
        ready: Json = {}
        restored = True
        try:
            ready = keeper.follow(until="ready")
            if "ready" not in ready:
                keeper.end()
                return _failed(ready, keeper)
            answer = self._work(shared)
        finally:
            if "error" not in ready:  # else it has restored before it said so
                restored = self._restore(keeper, shared)
        if "result" in answer:
            answer["result"]["restored"] = restored
        return answer

    def _restore(self, keeper: _Role, shared: tuple[int, ...]) -> bool:
        """Let the keeper restore; where it was killed, another one does by its note. The host waits, or is gone."""
        self.life.stop_listening()
        keeper.hang_up()
        last = keeper.follow(until="result", seconds=RESTORE_S)
        if keeper.done and not last:
            last = _Role(self, "--keeper", (self.name, "mend"), shared).follow(until="result", seconds=RESTORE_S)
        if "result" not in last:
            self._say(f"the power mode or the clocks were not restored: {last.get('error', 'no answer')}")
        self.life.listen_again()
        return "result" in last

    def _work(self, shared: tuple[int, ...]) -> Json:
        """The job itself, in the worker."""
        worker = _Role(self, "--worker", (self.name, str(os.getpid())), shared)
        try:
            answer = worker.follow(until="result")
        finally:
            worker.end()
        return answer if "result" in answer else _failed(answer, worker)


def _failed(answer: Json, role: _Role) -> Json:
    """The error of a process that ended without what was asked of it: its own words, or how it died."""
    return answer if "error" in answer else answer_of(role.death(), role.log.parent)


class _Role:
    """A process of the agent, the leader of its own group; its stdin stays open as long as the guard wants it."""

    def __init__(self, guard: _Guard, role: str, arguments: tuple[str, ...], shared: tuple[int, ...]) -> None:
        self.life, self.out, self.role = guard.life, guard.out, role
        self.log = guard.folder / "log.txt"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-u", str(guard.pyz), role, *arguments], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, start_new_session=True, pass_fds=shared,
            )  # fmt: skip
        assert self.process.stdout is not None
        self.stdout = self.process.stdout.fileno()
        self.rest = b""
        self.done = False  # it said its last word, or closed its stdout: it is about to end by itself

    def follow(self, *, until: str, seconds: float | None = None) -> Json:
        """Pass its lines on until one with `until` or an error, which is returned; {} when it ends, or time is up.

        Raises:
            HostGone: see Life.wait.
        """
        limit = None if seconds is None else time.monotonic() + seconds
        said = time.monotonic()
        self.life.watch(self.stdout)
        try:
            while limit is None or time.monotonic() < limit:
                if time.monotonic() - said >= SAY_EVERY_S:
                    said = time.monotonic()
                    self.out.put(ALIVE, droppable=True)
                if self.stdout not in self.life.wait(1.0):
                    continue
                content = os.read(self.stdout, 65536)
                if not content:
                    self.done = True
                    return {}
                *lines, self.rest = (self.rest + content).split(b"\n")
                for number, line in enumerate(lines):
                    message = _message(line)
                    if until in message or "error" in message:
                        self.rest = b"\n".join([*lines[number + 1 :], self.rest])
                        self.done = until != "ready" or "error" in message
                        return message
                    if message:
                        self.out.put(line + b"\n", droppable="task" in message)
            return {}
        finally:
            self.life.unwatch(self.stdout)

    def hang_up(self) -> None:
        """Close its stdin."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def end(self) -> None:
        """End the whole group and wait for the process: by itself where it is done, else TERM, 2 s, KILL."""
        if not (self.done and self._ended(TERM_S)):
            self._signal(signal.SIGTERM)
            self._ended(TERM_S)
        self._signal(signal.SIGKILL)  # before it is reaped: until then nobody else gets this process group
        self.process.wait()

    def death(self) -> Refusal:
        """How it ended, after `end`, with the last lines of its log."""
        code = self.process.poll()
        hint = f"the end of its log:\n{_tail(self.log)}"
        if code == -signal.SIGKILL:
            return Refusal(
                "killed", "the job on the board was killed (signal 9): most often the board ran out of memory",
                f"free memory there (close the desktop, add swap) or use a smaller batch; {hint}",
            )  # fmt: skip
        if code is not None and code < 0:
            return Refusal("crashed", f"the job on the board crashed with {signal.Signals(-code).name}", hint)
        return Refusal("crashed", f"the job on the board ended with status {code} and no answer", hint)

    def _ended(self, seconds: float) -> bool:
        """Whether it ended within `seconds`; it is not reaped."""
        limit = time.monotonic() + seconds
        while True:
            state = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if state is not None or time.monotonic() >= limit:
                return state is not None
            time.sleep(0.01)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def _message(line: bytes) -> Json:
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-12:])
    except OSError:
        return "(it cannot be read)"


@contextlib.contextmanager
def _in_use(file: Path) -> Iterator[None]:
    """Hold a shared lock on a file, so that nobody's clean-up takes it."""
    with file.open("rb") as opened:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
