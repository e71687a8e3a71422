"""Writing that survives a kill and a full disk."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgecnn.process.errors import EdgeError

FULL = (errno.ENOSPC, errno.EDQUOT)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes, on every file system in use
SCARCE = 1 << 20  # bytes


def user_path(text: str) -> Path:
    """A path as a person writes it, with `~` resolved; it need not exist.

    Raises:
        EdgeError: no file can have this name, or nobody knows whose home `~` is.
    """
    longest = max(len(part.encode(errors="surrogateescape")) for part in text.split("/"))
    if "\0" in text or longest > LONGEST_NAME or len(text) > LONGEST_PATH:
        why = f"it, or a name in it, is too long ({LONGEST_PATH:,} and {LONGEST_NAME} bytes are the most)"
        why = "it holds a NUL byte" if "\0" in text else why
        raise EdgeError(f"`{text if len(text) <= 80 else text[:80] + '…'}` is not a path: {why}", "correct the path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise EdgeError(
            f"there is no home folder for `{Path(text).parts[0]}` in `{text}`", "write the path in full, or set HOME"
        ) from error


def cache_root() -> Path:
    """The store's folder: EDGECNN_CACHE, else ~/.cache/edgecnn.

    Raises:
        EdgeError: EDGECNN_CACHE isn't set, and there is no home folder.
    """
    given = os.environ.get("EDGECNN_CACHE")
    try:
        return user_path(given or "~/.cache/edgecnn").absolute()
    except EdgeError as error:
        raise EdgeError(
            f"no folder for the store: {error.message}", "set EDGECNN_CACHE to a folder with some GB free"
        ) from error


def clear_but_resume(out: Path) -> None:
    """Empty a stage's folder (made when missing) except for `resume/`."""
    with contextlib.suppress(OSError):
        out.mkdir(parents=True, exist_ok=True)
        for path in out.iterdir():
            if path.name == "resume":
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def drop_but_resume(out: Path) -> None:
    """Remove what a failed stage leaves; only a `resume/` stays for its next try."""
    clear_but_resume(out)
    with contextlib.suppress(OSError):
        out.rmdir()


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error came of a full disk: numpy, torch and safetensors tell it in words only, or not even so."""
    if isinstance(error, EdgeError):
        return isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL
    if not isinstance(error, Exception):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return "No space left on device" in str(error) or shutil.disk_usage(folder).free < SCARCE


def full_disk(doing: str, path: object, disk_of: Path) -> EdgeError:
    """The error of a full disk, met while `doing`, at `path`."""
    return EdgeError(
        f"the disk is full while {doing}: {path}",
        f"free space on the disk of `{disk_of}`, run `edgecnn clean`, or set EDGECNN_CACHE; finished stages are kept",
    )


def as_edge_error(error: OSError, doing: str) -> EdgeError:
    """What an OSError means to a person."""
    return EdgeError(f"{doing} failed: {error.strerror or error}: {error.filename or ''}".rstrip(": "))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place once it is whole and durable; one that fails is removed.

    A reader sees the old content or the new one.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        fsync(part)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)  # on a full disk it would hold the last free bytes
        raise


def write_file(path: Path, content: bytes) -> None:
    """Write a file that a person asked for, atomically; its folder is made.

    Raises:
        EdgeError: it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(content)
    except OSError as error:
        why = error.strerror or error
        raise EdgeError(f"cannot write `{path}`: {why}", "choose a folder that can be written") from error


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically."""
    text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
    with replacing(path) as part:
        try:
            part.write_text(text, encoding="utf-8")
        except UnicodeEncodeError:  # a file name that isn't UTF-8
            part.write_text(json.dumps(content, indent=1, default=str))


def fsync(path: Path) -> None:
    """Make a file's or folder's content durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
