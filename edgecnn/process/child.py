"""Work in a child process, so that a crash or an out-of-memory there is an error here, never a dead tool.

Protocol: the child is `python -m MODULE JOB.json`, except that it imports nothing from the working directory. On
stdout it prints one JSON object a line: progress ({"task", "done", "total", "text"}), notes ({"note"}), and last
{"result"}, {"error", "hint"}, {"full_disk": path} or, of an exception that nobody foresaw, {"fault", "trace"}.
Everything it prints to stderr is kept as its log. Its stdin is a pipe from the parent: when that closes, the parent is
gone and the child ends.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from edgecnn.process import progress
from edgecnn.process.disk import is_full
from edgecnn.process.errors import EdgeError, InternalError
from edgecnn.process.start import command_of

Json = dict[str, Any]
_ENVIRONMENT: ContextVar[dict[str, str]] = ContextVar("environment")


@contextlib.contextmanager
def child_environment(**variables: str) -> Iterator[None]:
    """Variables that every child gets while the context lasts; this process's own environment is not touched."""
    token = _ENVIRONMENT.set(variables)
    try:
        yield
    finally:
        _ENVIRONMENT.reset(token)


def added_environment() -> dict[str, str]:
    """The variables of the contexts in force."""
    return _ENVIRONMENT.get({})


def run_child(
    module: str, job: Json, log: Path, *, prefix: tuple[str, ...] = (), env: dict[str, str] | None = None
) -> Json:
    """Run `module` with `job` and return its result, showing its progress.

    Args:
        module: dotted name of a module whose `__main__` part calls `serve`.
        job: JSON-ready parameters; paths as text.
        log: file that takes the child's stderr; its last lines go into the error.
        prefix: command before the module, such as `torchrun --nproc-per-node 4`; default `start.command_of`.
        env: variables added to the child's environment.

    Raises:
        EdgeError: the child reported an error, or was killed (out of memory is named).
        InternalError: an exception that nobody foresaw, with its traceback there, or an end without a result.
        OSError: ENOSPC, the disk was full there.
    """
    job_file = log.with_suffix(".job.json")
    job_file.write_text(json.dumps(job))
    command = [*((*prefix, module) if prefix else command_of(module)), str(job_file)]
    inherited = tuple(_shared_locks)
    with log.open("wb") as stderr:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, pass_fds=inherited,
            # torch makes a folder for compiled kernels among the temporary ones: here it goes with the job.
            env={
                **os.environ, **added_environment(), **(env or {}),
                "TORCHINDUCTOR_CACHE_DIR": str(log.with_suffix(".torch").absolute()),
            },
        )  # fmt: skip
        try:
            answer = _follow(child)
            code = child.wait()
        except BaseException:
            _stop(child)
            raise
        finally:
            for pipe in (child.stdin, child.stdout):
                if pipe:
                    pipe.close()
    job_file.unlink(missing_ok=True)
    if answer and "result" in answer and code == 0:
        result: Json = answer["result"]
        return result
    if answer and "full_disk" in answer:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), answer["full_disk"])
    if answer and "error" in answer:
        raise EdgeError(answer["error"], answer.get("hint", ""))
    if answer and "fault" in answer:
        raise InternalError(answer["fault"], answer["trace"])
    if code >= 0:
        raise InternalError(f"`{module}` ended with code {code} and no result", _tail(log))
    raise EdgeError(_ending(module, code), f"the end of its log:\n{_tail(log)}")


# Locks that a child must hold too: if this process is killed, nobody takes the stage while the child still writes.
_shared_locks: list[int] = []


@contextlib.contextmanager
def sharing_lock(descriptor: int) -> Iterator[None]:
    """Hand a lock's file descriptor to every child started meanwhile."""
    _shared_locks.append(descriptor)
    try:
        yield
    finally:
        _shared_locks.remove(descriptor)


def _follow(child: subprocess.Popen[bytes]) -> Json | None:
    """Read the child's lines until its stdout ends; return the last result or error."""
    answer: Json | None = None
    shown = progress.current()
    with contextlib.ExitStack() as stack:
        tasks: dict[str, progress.Task] = {}
        assert child.stdout is not None
        for line in child.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # a library printed to stdout
            if not isinstance(message, dict):
                continue
            if "task" in message:
                name = message["task"]
                if name not in tasks:
                    tasks[name] = stack.enter_context(shown.task(name, message["total"]))
                tasks[name].update(message["done"], message["text"])
            elif "note" in message:
                shown.note(message["note"])
            else:
                answer = message
    return answer


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _ending(module: str, code: int) -> str:
    if code == -signal.SIGKILL:
        return f"`{module}` was killed (signal 9): most often the machine ran out of memory"
    return f"`{module}` crashed with {signal.Signals(-code).name}"


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])


# --- the child's side ---


class Lines:
    """A child's Progress: JSON lines on its stdout."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # whatever a library prints to stdout goes to the log

    def send(self, **message: object) -> None:
        """Print one message."""
        print(json.dumps(message), file=self.out, flush=True)

    @contextlib.contextmanager
    def task(self, name: str, total: float | None) -> Iterator[progress.Task]:
        """See Progress."""
        yield _LineTask(self, name, total)

    def note(self, text: str) -> None:
        """See Progress."""
        self.send(note=text)


class _LineTask:
    def __init__(self, lines: Lines, name: str, total: float | None) -> None:
        self.lines, self.name, self.total = lines, name, total

    def update(self, done: float, text: str = "") -> None:
        self.lines.send(task=self.name, done=done, total=self.total, text=text)


def end_with_parent() -> None:
    """End this process when its stdin does: the parent is gone."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def serve(work: Callable[[Json], Json]) -> None:
    """The `__main__` of a child module: read the job, do the work, print the result or the error, exit."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C too and ends us in order
    lines = Lines()
    end_with_parent()
    job = json.loads(Path(sys.argv[1]).read_text())
    try:
        with progress.showing(lines):
            result = work(job)
    except EdgeError as error:
        lines.send(error=error.message, hint=error.hint)
    except MemoryError:
        lines.send(error=f"out of memory in `{sys.argv[0]}`", hint="lower the batch or the image size")
    except Exception as error:  # noqa: BLE001  # the border of a process: everything becomes one line and a log
        full = is_full(error, Path(sys.argv[1]).parent)
        with contextlib.suppress(OSError):  # the log is on that disk
            traceback.print_exc()
        text = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        if full:
            lines.send(full_disk=getattr(error, "filename", None) or str(Path(sys.argv[1]).parent))
        elif "out of memory" in str(error).lower():
            lines.send(error=f"out of memory: {text}", hint="lower the batch or the image size")
        else:
            trace = error.trace if isinstance(error, InternalError) else ""
            lines.send(fault=text, trace=f"{trace}\n{''.join(traceback.format_exception(error))}".strip())
    else:
        lines.send(result=result)
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(0)  # no waiting for native threads of an engine
