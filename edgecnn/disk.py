"""Writing that survives a kill and a full disk."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path

from edgecnn.errors import EdgeError


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


def as_edge_error(error: OSError, stage: str, root: Path) -> EdgeError:
    """What an OSError in a stage means to a person; a full disk is named."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EdgeError(
            f"the disk is full while making `{stage}`: {error.filename or root}",
            f"free space on the disk of `{root}`, run `edgecnn clean`, or set EDGECNN_CACHE; finished stages are kept",
        )
    return EdgeError(f"`{stage}` failed: {error.strerror or error}: {error.filename or ''}".rstrip(": "), "")


def write_json(path: Path, content: object) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str))
    fsync(temporary)
    os.replace(temporary, path)


def fsync(path: Path) -> None:
    """Make a file's or folder's content durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
