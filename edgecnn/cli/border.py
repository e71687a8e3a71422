"""The one error border: whatever leaves a command becomes a line for a person, and an exit code for a program."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from edgecnn.process.disk import DENIED, FULL, as_edge_error, cache_root, full_disk
from edgecnn.process.errors import EdgeError, InternalError, printable
from edgecnn.process.start import leave_out_working_directory

REFUSED, INTERNAL, INTERRUPTED, PIPE_CLOSED = 2, 70, 130, 141
_KEPT_TRACEBACKS = 20
# What a system says to a name that no file can have here: never a mistake of ours, which makes names of its own.
_NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EILSEQ)

# How launchers tell a process how many of it they started, and what they are called.
LAUNCHERS = (
    ("WORLD_SIZE", "torchrun or its like"),
    ("OMPI_COMM_WORLD_SIZE", "mpirun"),
    ("PMI_SIZE", "mpiexec"),
    ("MV2_COMM_WORLD_SIZE", "mpirun"),
    ("HOROVOD_SIZE", "horovodrun"),
    ("JSM_NAMESPACE_SIZE", "jsrun"),
    ("SLURM_STEP_NUM_TASKS", "srun"),
    ("SLURM_NTASKS", "Slurm"),
)


class Interrupted(BaseException):
    """Ctrl-C, in a form that the command framework passes on."""


def run(command: Callable[[], object]) -> NoReturn:
    """Run the command line and end the process.

    Exit codes: the command's own; 2 for an EdgeError, 70 for an exception that nobody foresaw, 130 for Ctrl-C, 141 for
    a reader of stdout that went away.
    """
    leave_out_working_directory()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files may hold what no encoding knows
    sys.exit(_code(command))


def _code(command: Callable[[], object]) -> int:
    try:
        _require_working_directory()
        _require_one_process()
        try:
            command()
        finally:
            _flush()
    except EdgeError as error:
        return _refuse(error)
    except (KeyboardInterrupt, Interrupted):
        return _interrupted()
    except BrokenPipeError:
        return PIPE_CLOSED
    except SystemExit as end:
        return _ended(end)
    except MemoryError:
        return _refuse(EdgeError("out of memory", "lower the batch or the image size, or close other programs"))
    except OSError as error:
        known = _of_the_system(error)
        return _refuse(known) if known else _internal(error)
    except Exception as error:  # noqa: BLE001  # the border of the program
        return _internal(error)
    return 0


def _flush() -> None:
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more as it ends
        raise


def _require_working_directory() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise EdgeError(
            f"the working directory no longer exists: {error.strerror}", "change into another one: cd ~"
        ) from error


def _require_one_process() -> None:
    """Refuse to be one of several processes: each would build everything, and wait for the others' stages.

    Raises:
        EdgeError: a launcher started more than one; it is named.
    """
    for variable, launcher in LAUNCHERS:
        told = os.environ.get(variable, "").strip()
        if variable == "SLURM_NTASKS" and ("SLURM_STEP_NUM_TASKS" in os.environ or "SLURM_PROCID" not in os.environ):
            continue  # the tasks of an allocation, in which this command may well be started once
        if told not in ("", "0", "1"):
            raise EdgeError(
                f"edgecnn was started as one of {told} processes by {launcher} ({variable}={told})",
                "edgecnn is one process, which starts its own children, and trains on one GPU: start it once, "
                f"`edgecnn build RECIPE`; within a job of several, `env -u {variable} edgecnn …` on one of them",
            )


def _ended(end: SystemExit) -> int:
    """The code of a command that ended by itself; the framework gives 1 to what it caught, whatever that was."""
    for error in _chain(end):
        if isinstance(error, KeyboardInterrupt):
            return _interrupted()
        if isinstance(error, BrokenPipeError):
            return PIPE_CLOSED
    return end.code if isinstance(end.code, int) else int(end.code is not None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _interrupted() -> int:
    # Where it hit an `exec` of text, as every dataclass is made by, Python under -m would end by the signal instead of
    # with our code; it forgets that with the next one.
    exec("pass")
    print("\ninterrupted: finished stages are kept; the same command continues", file=sys.stderr)
    return INTERRUPTED


def _of_the_system(error: OSError) -> EdgeError | None:
    """What the system refused to the user; None where it is a mistake of ours, which keeps its trace."""
    doing = f"`edgecnn {' '.join(sys.argv[1:2])}`"
    if error.errno in FULL:
        path = Path(os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else tempfile.gettempdir())
        return full_disk(f"running {doing}", path, path.parent)
    if error.errno in DENIED or error.errno in _NAMES:
        return as_edge_error(error, doing)
    return None


def _refuse(error: EdgeError) -> int:
    _say(f"error: {error.message}", *([f"\nhint: {error.hint}"] if error.hint else []))
    _answer({"error": error.message, "hint": error.hint})
    return REFUSED


def _internal(error: Exception) -> int:
    what = error.message if isinstance(error, InternalError) else f"{type(error).__name__}: {error}"
    what = what.strip().split("\n")[0]
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, InternalError) and error.trace:
        trace = f"{error.trace.rstrip()}\n\nin a child process of:\n\n{trace}"
    file = _write_trace(f"{' '.join(map(repr, sys.argv))}\n\n{trace}")
    where = f"traceback: {file}" if file else f"no folder could be written to, so here is its traceback:\n{trace}"
    _say(f"internal error: {what} (a fault of edgecnn, not of your input); {where}")
    _answer({"error": f"internal error: {what}", "hint": "", "traceback": str(file or "")})
    return INTERNAL


def _say(*lines: str) -> None:
    for line in lines:
        print(printable(line), file=sys.stderr)


def _answer(document: dict[str, str]) -> None:
    if "--json" in sys.argv:
        print(json.dumps(document))


def _write_trace(text: str) -> Path | None:
    """Write it to the store's folder, where that can't be written to the temporary one; only the newest are kept."""
    stamp = time.strftime("%Y%m%d-%H%M%S-")
    for folder in (_trace_folder, tempfile.gettempdir):
        try:
            descriptor, name = tempfile.mkstemp(".txt", f"edgecnn-{stamp}", folder())
            with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return Path(name)
        except (OSError, EdgeError):
            continue
    return None


def _trace_folder() -> Path:
    folder = cache_root() / "tracebacks"
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("edgecnn-*.txt"))[: 1 - _KEPT_TRACEBACKS]:
        old.unlink(missing_ok=True)
    return folder
