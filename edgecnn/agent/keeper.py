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
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from edgecnn.agent import gpu_clocks
from edgecnn.agent.power import PowerMode, find_mode, read_mode
from edgecnn.agent.programs import boot_id
from edgecnn.agent.protocol import Cache, Json, Refusal, answer_of, read_job
from edgecnn.agent.root import set_mode
from edgecnn.process import progress
from edgecnn.process.child import Lines
from edgecnn.process.disk import fsync, write_json
from edgecnn.process.errors import EdgeError

STDIN = 0


@dataclass(frozen=True)
class Before:
    """What is to be restored: None where nothing was changed. `clocks`: the program that restores them."""

    mode: PowerMode | None
    clocks: str | None
    boot: str

    def write(self, note: Path) -> None:
        """Write the note, durable before anything is changed."""
        mode = {"name": self.mode.name, "number": self.mode.number} if self.mode else None
        write_json(note, {"mode": mode, "clocks": self.clocks, "boot": self.boot})
        fsync(note.parent)

    @staticmethod
    def read(note: Path) -> Before:
        """From a note."""
        content = json.loads(note.read_text())
        mode = PowerMode(**content["mode"]) if content["mode"] else None
        clocks = content["clocks"] if content["clocks"] in (gpu_clocks.JETSON, gpu_clocks.DESKTOP) else None
        return Before(mode, clocks, str(content["boot"]))

    def restore(self, note: Path) -> None:
        """Bring the board back, and remove the note. After a restart of the board its clocks are its own again.

        Raises:
            Refusal: something couldn't be set back; the note stays.
        """
        try:
            now = read_mode()
            if self.mode is not None and (now is None or now.name != self.mode.name):
                set_mode(self.mode)
        finally:  # one that can't be set back is no reason to leave the other
            if self.clocks is not None and self.boot == boot_id():
                gpu_clocks.restore(self.clocks)
        note.unlink(missing_ok=True)


def mend(cache: Cache) -> None:
    """Restore by the notes of jobs whose keeper was killed. Call it with the board's lock held."""
    for note in sorted(cache.restore.glob("*.json")):
        try:
            before = Before.read(note)
        except (OSError, ValueError, KeyError, TypeError):
            note.unlink(missing_ok=True)  # its writing was cut off, so nothing was changed yet
            continue
        before.restore(note)
        mode = f": power mode {before.mode.name}" if before.mode else ""
        progress.current().note(f"an earlier job was killed; what it had set on the board is restored now{mode}")


def mode_to_come(cache: Cache) -> PowerMode | None:
    """The mode that the board will be brought back to, while a job has it in another one."""
    for note in sorted(cache.restore.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if (mode := Before.read(note).mode) is not None:
                return mode
    return None


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
                    Before.read(note).restore(note)
        answer = {"result": {}}
    except Exception as error:  # noqa: BLE001  # the border of a process
        with contextlib.suppress(OSError):
            traceback.print_exc()
        failed = error if isinstance(error, EdgeError) else Refusal("failed", f"{type(error).__name__}: {error}")
        answer = answer_of(failed)
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
            "refused", "the board does not tell its power mode, so it could not be set back", "leave out --power-mode"
        )
    if mode is not None and before is not None and before.number is None:
        before = find_mode(before.name)
    changed = mode if before is None or mode is None or mode.name != before.name else None
    clocks = gpu_clocks.store() if job.get("lock_clocks") else None  # changes nothing yet
    Before(before if changed else None, clocks, boot_id()).write(note)
    if changed is not None:
        set_mode(changed)
    if clocks is not None:
        gpu_clocks.lock(clocks)
    now = read_mode()
    return {
        "was": before.name if before else "", "set": now.name if now else "", "clocks_locked": clocks is not None
    }  # fmt: skip
