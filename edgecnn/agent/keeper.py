"""The process that sets a board's power mode and clocks for one job, and restores them however that job ends.

It is a process of its own: its stdin is a pipe from the guard, and when that ends, because the job is done, or because
the guard was killed, it restores. It shares the board's lock, so that nobody measures before it has. What it is about
to change stands in a note on the disk first; if it is killed itself, the next job on the board restores by that note.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from edgecnn.agent.power import (
    DESKTOP,
    JETSON,
    PowerMode,
    boot_id,
    find_mode,
    lock_clocks,
    read_mode,
    restore_clocks,
    set_mode,
    store_clocks,
)
from edgecnn.agent.protocol import Cache, Json, Refusal, answer_of, read_job
from edgecnn.process import progress
from edgecnn.process.child import Lines
from edgecnn.process.disk import fsync, write_json

STDIN = 0


def read_note(note: Path) -> tuple[PowerMode | None, str | None] | None:
    """What is to be restored: the power mode and the program that restores the clocks, each None where unchanged.

    After a restart of the board its clocks are its own again. None for a note whose writing was cut off: nothing was
    changed yet.
    """
    try:
        content = json.loads(note.read_text())
        mode = PowerMode(**content["mode"]) if content["mode"] else None
        clocks = content["clocks"] if content["boot"] == boot_id() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return mode, clocks if clocks in (JETSON, DESKTOP) else None


def restore(note: Path) -> bool:
    """Bring the board back, and remove the note; whether it was a whole one.

    Raises:
        Refusal: something couldn't be set back; the note stays.
    """
    before = read_note(note)
    if before is not None:
        mode, clocks = before
        try:
            now = read_mode()
            if mode is not None and (now is None or now.name != mode.name):
                set_mode(mode)
        finally:  # one that can't be set back is no reason to leave the other
            if clocks is not None:
                restore_clocks(clocks)
    note.unlink(missing_ok=True)
    return before is not None


def mend(cache: Cache) -> None:
    """Restore by the notes of jobs whose keeper was killed. Call it with the board's lock held."""
    mode = mode_to_come(cache)
    for note in sorted(cache.restore.glob("*.json")):
        if restore(note):
            what = f": power mode {mode.name}" if mode else ""
            progress.current().note(f"an earlier job was killed; what it had set on the board is restored now{what}")


def mode_to_come(cache: Cache) -> PowerMode | None:
    """The mode that the board will be brought back to, while a job has it in another one."""
    notes = (read_note(note) for note in sorted(cache.restore.glob("*.json")))
    return next((one[0] for one in notes if one is not None and one[0] is not None), None)


def keep(cache: Cache, name: str, *, mending: bool = False) -> int:
    """Set what the job asks, say so, wait for the end of stdin, restore, and say so.

    Args:
        mending: set nothing; restore by the note that a killed keeper left.
    """
    signal.signal(signal.SIGTERM, _restore_now)
    for one in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(one, signal.SIG_IGN)
    lines = Lines()
    note = cache.restore / f"{name}.json"
    answer: Json
    try:
        with progress.showing(lines):
            job = read_job(cache.job(name))
            mend(cache)
            try:
                if not mending:
                    found = _set(job, note)
                    write_json(cache.job(name) / "power.json", found)
                    _say(lines, ready=found)
                    _wait()
            finally:
                if note.exists():
                    restore(note)
        answer = {"result": {}}
    except Exception as error:  # noqa: BLE001  # the border of a process
        with contextlib.suppress(OSError):
            traceback.print_exc()
        answer = answer_of(error, cache.root)
    _say(lines, **answer)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    return 0 if "result" in answer else 1


def _say(lines: Lines, **message: object) -> None:
    with contextlib.suppress(OSError):  # the guard may be gone; what is to be restored is restored all the same
        lines.send(**message)


class _EndedError(Exception):
    pass


def _restore_now(_: int, __: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _EndedError


def _wait() -> None:
    with contextlib.suppress(_EndedError):
        while os.read(STDIN, 4096):
            pass


def _set(job: Json, note: Path) -> Json:
    """Set the power mode, then the clocks; what was and what is now."""
    mode = find_mode(job["power_mode"]) if job.get("power_mode") else None
    before = read_mode()
    if mode is not None and before is None:
        raise Refusal(
            "refused", "the board does not report its power mode, so it could not be restored", "drop --power-mode"
        )
    if mode is not None and before is not None and before.number is None:
        before = find_mode(before.name)
    changed = mode if before is None or mode is None or mode.name != before.name else None
    clocks = store_clocks() if job.get("lock_clocks") else None  # changes nothing yet
    write_json(note, {"mode": asdict(before) if before and changed else None, "clocks": clocks, "boot": boot_id()})
    fsync(note.parent)  # durable before anything is changed
    if changed is not None:
        set_mode(changed)
    if clocks is not None:
        lock_clocks(clocks)
    now = read_mode()
    return {
        "was": before.name if before else "", "set": now.name if now else "", "clocks_locked": clocks is not None
    }  # fmt: skip
