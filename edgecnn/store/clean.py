"""Bounding the store: the stages used longest ago go first; one that a build makes or rests on is never touched."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgecnn.process.disk import as_edge_error
from edgecnn.process.errors import EdgeError
from edgecnn.store.locks import Locks


@dataclass(frozen=True)
class Dropped:
    """A stage that goes, or what a killed or failed build left of one (`partial`); MB is 10^6 bytes."""

    stage: str
    key: str
    mb: float
    used: str
    partial: bool = False


@dataclass(frozen=True)
class Cleaned:
    """What a clean did, or would do (`dry_run`); sizes in MB. `in_use`: stages that stay because a build uses them."""

    dropped: int
    freed_mb: float
    kept_mb: float
    in_use: int
    dry_run: bool
    stages: tuple[Dropped, ...]

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def text(self) -> str:
        """For a person: a line for each stage, and the sum."""
        lines = [f"{one.stage:<16} {one.mb:10.1f} MB  used {one.used}" for one in self.stages if not one.partial]
        partial = sum(one.mb for one in self.stages if one.partial)
        if partial:
            lines.append(f"{'unfinished':<16} {partial:10.1f} MB  of killed and failed builds")
        would = "would drop {}, free {:.1f} MB; would keep {:.1f} MB" if self.dry_run else (
            "dropped {}, freed {:.1f} MB; kept {:.1f} MB"
        )  # fmt: skip
        busy = f", {self.in_use} of them in use by a running build" if self.in_use else ""
        lines.append(would.format(f"{self.dropped} stages", self.freed_mb, self.kept_mb) + busy)
        return "\n".join(lines)


def gigabytes(size: float) -> int:
    """A limit in GB as bytes.

    Raises:
        EdgeError: it isn't a size.
    """
    if not 0 <= size < 1e9:
        raise EdgeError(f"--max-gb {size:g} is not a size", "give GB, 0 or more")
    return int(size * 1e9)


def clean(root: Path, max_bytes: int, *, dry_run: bool = False) -> Cleaned:
    """Drop the least recently used stages until the store holds at most `max_bytes`, and all abandoned partial ones.

    Args:
        dry_run: drop nothing; tell what would go.

    Raises:
        EdgeError: the store can't be written to.
    """
    try:
        return _clean(root, Locks(root / "locks"), max_bytes, dry_run)
    except OSError as error:
        raise as_edge_error(error, f"cleaning the store `{root}`") from error


def _clean(root: Path, locks: Locks, max_bytes: int, dry_run: bool) -> Cleaned:
    gone, in_use = [], 0
    for path in _folders(root / "partial"):
        size = _bytes(path)
        if _drop(root, locks, path.name, path, dry_run):
            stage, _, key = path.name.rpartition("-")
            gone.append(Dropped(stage, key, size / 1e6, "", partial=True))
    stages = {path: _bytes(path) for stage in _folders(root / "stages") for path in _folders(stage)}
    total = sum(stages.values())
    for used, path in sorted((_used(path), path) for path in stages):
        if total <= max_bytes:
            break
        if _drop(root, locks, f"{path.parent.name}-{path.name}", path, dry_run):
            total -= stages[path]
            when = datetime.fromtimestamp(used, timezone.utc).isoformat(timespec="seconds")
            gone.append(Dropped(path.parent.name, path.name, stages[path] / 1e6, when))
        else:
            in_use += 1
    dropped = sum(not one.partial for one in gone)
    return Cleaned(dropped, sum((one.mb for one in gone), 0.0), total / 1e6, in_use, dry_run, tuple(gone))


def discard(root: Path, path: Path) -> None:
    """Remove a stage's folder, whatever stands in its place: a reader sees the whole of it or nothing."""
    doomed = root / "partial" / f".doomed-{os.getpid()}-{path.name}"
    os.rename(path, doomed)
    if doomed.is_dir() and not doomed.is_symlink():
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        doomed.unlink(missing_ok=True)


def _drop(root: Path, locks: Locks, name: str, path: Path, dry_run: bool) -> bool:
    """Drop a folder that nobody makes or uses; whether it is, or would be, gone."""
    if name.startswith(".doomed-"):  # of a clean that was killed
        if not dry_run:
            shutil.rmtree(path, ignore_errors=True)
        return True
    with locks.alone(name) as free:
        if free and not dry_run:
            with contextlib.suppress(FileNotFoundError):  # another clean was faster
                discard(root, path)
        return free


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _used(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _bytes(path: Path) -> int:
    return sum(_sizes(path))


def _sizes(path: Path) -> Iterator[int]:
    """Of the files below; what goes meanwhile counts nothing."""
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                yield os.lstat(os.path.join(folder, name)).st_size
