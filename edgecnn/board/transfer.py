"""Files to and from a board, by content: what is there isn't sent, what was half sent goes on, what came is checked."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgecnn.agent.files import digest_of
from edgecnn.board.link import BLOCK, FileRefused, Link
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError

SPARE_BYTES = 16 << 20  # left on the board's disk
Json = dict[str, Any]


def send(link: Link, inputs: Mapping[str, Path], accept: Callable[[list[Json]], object]) -> None:
    """Bring files onto a board.

    Args:
        inputs: SHA-256 of each file, in hex, and where it is.
        accept: the board's check of what it got, `{"sha256", "size"}` of each.

    Raises:
        EdgeError: the board's disk is full or refuses; a file changed here, or arrived damaged twice.
        LinkLost: the link broke; what was sent stays, and the next call goes on behind it.
    """
    sizes = {digest: path.stat().st_size for digest, path in inputs.items()}
    for _ in range(2):
        begun = {digest: found for digest, size in sizes.items() if (found := _begun(link, digest, size)) is not None}
        if not begun:
            return
        needed = sum(sizes[digest] - begun[digest] for digest in begun)
        if free_bytes(link) < needed + SPARE_BYTES:
            raise full_disk(link, f"the disk of `{link.host}` is full", f", {needed / 1e6:.0f} MB to send")
        try:
            _put_all(link, inputs, begun, needed)
        except FileRefused as error:
            raise refused(link, error, "files cannot be written to") from error
        accept([{"sha256": digest, "size": size} for digest, size in sizes.items()])
    for digest, size in sizes.items():
        if _begun(link, digest, size) is None:
            continue
        if digest_of(inputs[digest]) != digest:
            raise EdgeError(f"`{inputs[digest]}` changed while it was sent to `{link.host}`", "run it again")
        raise EdgeError(
            f"`{inputs[digest]}` arrived damaged on `{link.host}`, twice",
            "the board's disk or memory is at fault: look at `dmesg` there",
        )


def _begun(link: Link, digest: str, size: int) -> int | None:
    """Bytes of a file that an earlier, broken transfer left, in whole blocks; None when all of it is there."""
    there, part = (int(one) for one in link.ask("size", f"files/{digest}", f"files/{digest}.part"))
    if there == size:
        return None
    return part // BLOCK * BLOCK if 0 <= part < size else 0


def _put_all(link: Link, inputs: Mapping[str, Path], begun: Mapping[str, int], total: int) -> None:
    """Send each file from where it begins."""
    with _counted(f"to {link.host}", total) as count:
        for digest, start in begun.items():
            with inputs[digest].open("rb") as source:
                size = source.seek(0, 2)
                source.seek(start)
                link.put(source, f"files/{digest}.part", size, count)


@contextlib.contextmanager
def _counted(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a transfer of `total` bytes; it is told each part's size as it passes."""
    passed = 0
    with progress.current().task(name, round(total / 1e6, 1)) as task:

        def count(size: int) -> None:
            nonlocal passed
            passed += size
            task.update(round(passed / 1e6, 1), "MB")

        yield count


def free_bytes(link: Link) -> int:
    """Of the disk behind our folder on the board."""
    try:
        return int(link.ask("free")[-1]) * 1024
    except (FileRefused, ValueError, IndexError):
        return 1 << 62  # it doesn't tell


def refused(link: Link, error: FileRefused, what: str) -> EdgeError:
    """Why the board refused a file."""
    words = str(error)
    if "Read-only file system" in words or "Permission denied" in words:
        return EdgeError(
            f"{what} `{link.host}`: the home folder is read-only ({words})",
            "give the login a home it can write to; after a crash a board mounts its disk read-only: look at `dmesg`",
        )
    if free_bytes(link) < SPARE_BYTES:
        return full_disk(link, f"{what} `{link.host}`: its disk is full")
    return EdgeError(f"{what} `{link.host}`: {words}", "look at the board's disk, quota and `dmesg`")


def full_disk(link: Link, what: str, more: str = "") -> EdgeError:
    """The error of a disk without room."""
    return EdgeError(
        f"{what}: {free_bytes(link) / 1e6:.0f} MB free{more}",
        f"free some: `edgecnn devices clean --host {link.host}` drops what edgecnn keeps there",
    )


def fetch(link: Link, folder: str, wanted: Sequence[Json], out: Path) -> None:
    """Bring files of a board's folder into `out`, each checked by its hash before it gets its name.

    Args:
        wanted: name, sha256, size of each, checked by `read_reply`: plain names, no folders.
        out: a folder here. A `.part` of an earlier, broken call is continued.

    Raises:
        EdgeError: a file is missing, or not what was said.
        LinkLost: the link broke; what came stays as `.part`.
    """
    total, free = sum(one["size"] for one in wanted), shutil.disk_usage(out).free
    if total > free:
        raise EdgeError(
            f"`{link.host}` answers with {total / 1e6:,.0f} MB, and `{out}` has room for {free / 1e6:,.0f} MB",
            "free some disk here: `edgecnn clean`",
        )
    with _counted(f"from {link.host}", total) as count:
        for one in wanted:
            part = out / f"{one['sha256']}.part"
            if not any(_fetched(link, f"{folder}/{one['name']}", one, part, count) for _ in range(2)):
                raise EdgeError(f"`{one['name']}` of `{link.host}` is not what the board said it is", "run it again")
            part.replace(out / one["name"])


def _fetched(link: Link, name: str, wanted: Json, part: Path, count: Callable[[int], None]) -> bool:
    """Bring what is missing of one file; whether it is what it should be: else it is removed."""
    try:
        with part.open("ab") as sink:
            if sink.tell() > wanted["size"]:
                sink.truncate(0)
            link.get(name, sink, wanted["size"], count)
    except FileRefused as error:
        raise EdgeError(f"`{wanted['name']}` cannot be fetched from `{link.host}`: {error}", "run it again") from error
    if part.stat().st_size == wanted["size"] and digest_of(part) == wanted["sha256"]:
        return True
    part.unlink()
    return False
