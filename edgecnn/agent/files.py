"""The files on a board: named by their hash, believed only after it was computed here, bounded in bytes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edgecnn.agent.protocol import DIGEST, MAX_BYTES, Cache, Json, Refusal
from edgecnn.process import progress
from edgecnn.process.disk import fsync

BLOCK = 1 << 20
AGENTS = 3  # kept beside the running one: several tools of several versions may use one board


def digest_of(path: Path, task: progress.Task | None = None, done: int = 0) -> str:
    """Hex SHA-256 of a file; `done` bytes were shown on the task before."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            content.update(block)
            done += len(block)
            if task:
                task.update(done)
    return content.hexdigest()


def accept(cache: Cache, job: Json) -> Json:
    """Take in what was sent as `<sha256>.part`: rename what is right, delete what is wrong.

    Args:
        job: `files`, a list of {sha256, size}; `max_bytes` of all files that stay.

    Returns:
        Lists of digests `accepted`, `refused` (sent, but with another content: gone now), `have` (there before);
        `partial`, {sha256: bytes} of those shorter than they should be, kept so that sending them can go on; and
        `free_bytes` of the disk.
    """
    with _alone(cache):
        return _accept(cache, job)


@contextlib.contextmanager
def _alone(cache: Cache) -> Iterator[None]:
    """Wait for the other tools that take in or drop files here: each would find gone what it had just seen."""
    with os.fdopen(os.open(cache.root / "accepting", os.O_RDWR | os.O_CREAT, 0o600), "rb") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _accept(cache: Cache, job: Json) -> Json:
    accepted, refused, have, partial = [], [], [], {}
    wanted = [(cache.file(one["sha256"]), int(one["size"])) for one in job["files"]]
    total = sum(size for path, size in wanted if not _is_there(path, size))
    done = 0
    with progress.current().task("checking", total) as task:
        for path, size in wanted:
            part = path.with_name(f"{path.name}.part")
            if _is_there(path, size):
                _used(path)
                have.append(path.name)
                part.unlink(missing_ok=True)
            elif part.exists() and part.stat().st_size < size:
                partial[path.name] = part.stat().st_size
            elif part.exists():
                if part.stat().st_size == size and digest_of(part, task, done) == path.name:
                    part.chmod(0o600)
                    fsync(part)  # a name in here promises its content, after a power cut too
                    os.replace(part, path)
                    _used(path)
                    accepted.append(path.name)
                else:
                    part.unlink()
                    refused.append(path.name)
                done += size
    fsync(cache.files)
    keep = {path.name for path, _ in wanted}
    bound(cache, int(job.get("max_bytes", MAX_BYTES)), keep | {f"{name}.part" for name in keep})
    return {
        "accepted": accepted, "refused": refused, "have": have, "partial": partial,
        "free_bytes": shutil.disk_usage(cache.root).free,
    }  # fmt: skip


def _is_there(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _used(path: Path) -> None:
    os.utime(path)


def checked(cache: Cache, digest: Any) -> Path:
    """A file that a job names, its content checked: for graphs and engines, which run as code.

    Raises:
        Refusal: it isn't there, or its content has changed (then it is removed).
    """
    path = present(cache, digest)
    if digest_of(path) != digest:
        path.unlink()
        raise Refusal("damaged", f"file {digest[:12]}… on the board was damaged and is removed", "run again")
    return path


def present(cache: Cache, digest: Any) -> Path:
    """A file that a job names; its content was checked when it came in.

    Raises:
        Refusal: it isn't there.
    """
    path = cache.file(digest)
    if not path.is_file():
        raise Refusal("absent", f"file {digest[:12]}… is not on the board", "send it again")
    _used(path)
    return path


def take_in(cache: Cache, path: Path) -> tuple[str, int]:
    """Move a file made here into the kept files; returns (SHA-256, bytes)."""
    digest, size = digest_of(path), path.stat().st_size
    fsync(path)
    os.replace(path, cache.file(digest))
    fsync(cache.files)
    return digest, size


def entry(path: Path) -> Json:
    """How a job's result names a file of its `out/` folder."""
    return {"name": path.name, "sha256": digest_of(path), "size": path.stat().st_size}


def bound(
    cache: Cache, max_bytes: int, keep: Iterable[str] = (), *, agents: int = AGENTS
) -> tuple[int, int, int]:  # fmt: skip
    """Remove what was used longest ago until at most `max_bytes` are kept; returns (dropped, freed, kept bytes).

    Files, jobs' folders and agents but the newest `agents` count; what a running job holds and the files `keep` stay.
    """
    spared = set(keep)
    entries = sorted(_entries(cache, agents))
    kept = sum(size for _, size, _ in entries)
    dropped = freed = 0
    for _, size, path in entries:
        if kept <= max_bytes:
            break
        if path.name in spared or not _remove(path):
            continue
        kept, freed, dropped = kept - size, freed + size, dropped + 1
    return dropped, freed, kept


def clean(cache: Cache, job: Json) -> Json:
    """`bound` on demand; with `max_bytes` 0 nothing stays but the running agent and its job."""
    with _alone(cache):
        return _clean(cache, int(job.get("max_bytes", 0)))


def _clean(cache: Cache, max_bytes: int) -> Json:
    dropped, freed, kept = bound(cache, max_bytes, agents=AGENTS if max_bytes else 0)
    for note in cache.engines.glob("*.json"):
        if kept == 0 or not _engine_is_there(cache, note):
            note.unlink(missing_ok=True)
    if max_bytes == 0:
        for file in (*cache.timing.glob("*"), *(cache.root / "agents").glob("*.part")):
            with contextlib.suppress(FileNotFoundError):
                size = file.stat().st_size
                file.unlink()
                freed += size
    return {"dropped": dropped, "freed_bytes": freed, "kept_bytes": kept}


def _engine_is_there(cache: Cache, note: Path) -> bool:
    import json

    try:
        return cache.file(json.loads(note.read_text())["engine"]).is_file()
    except (OSError, ValueError, KeyError, TypeError, Refusal):
        return False


def _entries(cache: Cache, spared_agents: int) -> Iterator[tuple[float, int, Path]]:
    """(last used, bytes, path) of everything that may be dropped. What goes meanwhile, another tool has dropped."""
    for path in cache.files.iterdir():
        if DIGEST.fullmatch(path.name.removesuffix(".part")):
            with contextlib.suppress(FileNotFoundError):
                yield _entry(path)
    agents = []
    for path in (cache.root / "agents").glob("*.pyz"):
        with contextlib.suppress(FileNotFoundError):
            agents.append(_entry(path))
    yield from sorted(agents, reverse=True)[spared_agents:]
    for folder in (cache.root / "jobs").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if folder.is_dir() and not folder.is_symlink():
                files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
                yield folder.stat().st_mtime, sum(path.stat().st_size for path in files), folder


def _entry(path: Path) -> tuple[float, int, Path]:
    state = path.stat()
    return state.st_mtime, state.st_size, path


def _remove(path: Path) -> bool:
    """Remove an entry unless a guard holds it; whether it is gone."""
    held = path / "job.json" if path.is_dir() else path
    if path.is_dir() or path.suffix == ".pyz":
        try:
            with held.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            pass  # a job that was never started
        except OSError:
            return False
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return True
