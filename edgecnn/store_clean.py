"""Bounding the store: the stages used longest ago go first; one being made is never touched."""

from __future__ import annotations

import fcntl
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cleaned:
    """What a clean did; sizes in MB (10^6 bytes)."""

    dropped: int
    freed_mb: float
    kept_mb: float

    def document(self) -> dict[str, float]:
        """JSON-ready."""
        return asdict(self)


def clean(root: Path, max_bytes: int) -> Cleaned:
    """Drop the least recently used stages until the store holds at most `max_bytes`, and all abandoned partial ones."""
    freed = dropped = 0
    for partial in _folders(root / "partial"):
        _lock_and_drop(root, partial.name, partial)
    stages = [path for stage in _folders(root / "stages") for path in _folders(stage)]
    sizes = {path: sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) for path in stages}
    total = sum(sizes.values())
    for path in sorted(stages, key=lambda p: p.stat().st_mtime):
        if total <= max_bytes:
            break
        if _lock_and_drop(root, f"{path.parent.name}-{path.name}", path):
            total -= sizes[path]
            freed += sizes[path]
            dropped += 1
    return Cleaned(dropped, freed / 1e6, total / 1e6)


def _folders(path: Path) -> list[Path]:
    return [p for p in path.iterdir() if p.is_dir()] if path.is_dir() else []


def _lock_and_drop(root: Path, name: str, path: Path) -> bool:
    lock = os.open(root / "locks" / name, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False  # being made or continued right now
    else:
        doomed = root / "partial" / f".doomed-{os.getpid()}-{path.name}"
        os.rename(path, doomed)  # a reader sees the whole stage or none
        shutil.rmtree(doomed, ignore_errors=True)
        return True
    finally:
        os.close(lock)
