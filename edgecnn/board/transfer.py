"""Files to and from a board, by content: what is there isn't sent, what was half sent goes on, what came is checked.

Plain SFTP is all it takes. `rsync --append-verify` over ssh was built beside it and taken out again: 1 GB over
loopback, four rounds in turn on an idle machine, left at 251 MB/s (median), by these pipelined 128 KiB blocks at 282.
It also needs a second login, goes on receiving when a link was cut without a word, and passes over symbolic links.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgecnn.board.shell import ROOT, FileRefused, Files
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError

FILES = f"{ROOT}/files"
SPARE_BYTES = 16 << 20  # left on the board's disk
Json = dict[str, Any]
Accept = Callable[[list[Json]], Awaitable[Json]]


async def send(files: Files, address: str, inputs: Mapping[str, Path], accept: Accept) -> None:
    """Bring files onto a board.

    Args:
        files: of the board.
        address: the board's name for messages.
        inputs: SHA-256 of each file, in hex, and where it is.
        accept: the board's check of what it got: `{"sha256", "size"}` of each in, the agent's answer out.

    Raises:
        EdgeError: the board's disk is full or refuses; a file changed here, or arrived damaged twice.
        LinkLost: the link broke; what was sent stays, and the next call goes on behind it.
    """
    sizes = {digest: path.stat().st_size for digest, path in inputs.items()}
    absent = [digest for digest, size in sizes.items() if await files.size(f"{FILES}/{digest}") != size]
    for _ in range(2):
        if not absent:
            break
        begun = {digest: await _begun(files, digest, sizes[digest]) for digest in absent}
        await _room(files, address, sum(sizes[digest] - begun[digest] for digest in absent))
        try:
            await _put_all(files, address, {digest: inputs[digest] for digest in absent}, begun)
        except FileRefused as error:
            raise await refused(files, address, error, "files cannot be written to") from error
        await accept([{"sha256": digest, "size": size} for digest, size in sizes.items()])
        absent = [digest for digest in absent if await files.size(f"{FILES}/{digest}") != sizes[digest]]
    for digest in absent:
        if _digest_of(inputs[digest]) != digest:
            raise EdgeError(f"`{inputs[digest]}` changed while it was sent to `{address}`", "run it again")
        raise EdgeError(
            f"`{inputs[digest]}` arrived damaged on `{address}`, twice",
            "the board's disk or memory is at fault: look at `dmesg` there",
        )


async def _begun(files: Files, digest: str, size: int) -> int:
    """Bytes of a file that an earlier, broken transfer left; what can't be a beginning is removed."""
    part = f"{FILES}/{digest}.part"
    there = await files.size(part) or 0
    if there > size:
        await files.remove(part)
        return 0
    return there


async def _room(files: Files, address: str, needed: int) -> None:
    """Refuse before the first byte what can't fit."""
    space = await files.space(ROOT)
    if space is not None and space.free_bytes < needed + SPARE_BYTES:
        raise EdgeError(
            f"the disk of `{address}` is full: {space.free_bytes / 1e6:.0f} MB free, {needed / 1e6:.0f} MB to send",
            f"free some: `edgecnn devices clean --host {address}` drops what edgecnn keeps there",
        )


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


async def _put_all(files: Files, address: str, inputs: Mapping[str, Path], begun: Mapping[str, int]) -> None:
    """Send each file from where it begins."""
    total = sum(path.stat().st_size - begun[digest] for digest, path in inputs.items())
    with _counted(f"to {address}", total) as count:
        for digest, path in inputs.items():
            if begun[digest] < path.stat().st_size or begun[digest] == 0:
                await files.put(path, f"{FILES}/{digest}.part", offset=begun[digest], on_bytes=count)


async def make_room(files: Files) -> int:
    """Drop kept files, the longest unused first, where the disk is full: a job to clean it needs some room, too.

    Returns:
        Bytes freed; 0 where the disk isn't full or nothing is kept.
    """
    space = await files.space(ROOT)
    if space is None or space.read_only or space.free_bytes >= SPARE_BYTES:
        return 0
    kept = [(await files.used(f"{FILES}/{name}"), name) for name in await files.names(FILES)]
    freed = 0
    # Half sent ones last: somebody may be sending them.
    for used, name in sorted(kept, key=lambda one: (one[1].endswith(".part"), one[0].time_s)):
        if space.free_bytes + freed >= SPARE_BYTES:
            break
        await files.remove(f"{FILES}/{name}")
        freed += used.size
    return freed


async def refused(files: Files, address: str, error: FileRefused, what: str) -> EdgeError:
    """Why the board refused to write: SFTP itself says only `Failure`."""
    space = await files.space(".")
    if space is not None and (space.read_only or error.kind == "denied"):
        return EdgeError(
            f"{what} `{address}`: the home folder is read-only ({error.path}: {error.words})",
            "give the login a home it can write to; after a crash a board mounts its disk read-only: look at `dmesg`",
        )
    space = await files.space(ROOT) or space
    if space is not None and space.free_bytes < SPARE_BYTES:
        return EdgeError(
            f"{what} `{address}`: its disk is full ({space.free_bytes / 1e6:.1f} MB free)",
            f"free some: `edgecnn devices clean --host {address}` drops what edgecnn keeps there",
        )
    return EdgeError(f"{what} `{address}`: {error.path}: {error.words}", "look at the board's disk, quota and `dmesg`")


async def fetch(files: Files, address: str, folder: str, wanted: Sequence[Json], out: Path) -> None:
    """Bring files of a board's folder into `out`, each checked by its hash before it gets its name.

    Args:
        files: of the board.
        address: the board's name for messages.
        folder: theirs on the board.
        wanted: name, sha256, size of each, checked by `read_reply`: plain names, no folders.
        out: a folder here. A `.part` of an earlier, broken call is continued.

    Raises:
        EdgeError: a file is missing, or not what was said.
        LinkLost: the link broke; what came stays as `.part`.
    """
    plain = [(one["name"], one["sha256"], one["size"]) for one in wanted]
    total, free = sum(size for *_, size in plain), shutil.disk_usage(out).free
    if total > free:
        raise EdgeError(
            f"`{address}` answers with {total / 1e6:,.0f} MB, and `{out}` has room for {free / 1e6:,.0f} MB",
            "free some disk here: `edgecnn clean`",
        )
    with _counted(f"from {address}", total) as count:
        for name, digest, size in plain:
            for _ in range(2):
                part = out / f"{digest}.part"
                begun = part.stat().st_size if part.exists() else 0
                try:
                    await files.get(
                        f"{folder}/{name}", part, offset=begun if begun <= size else 0, size=size, on_bytes=count
                    )
                except FileRefused as error:
                    raise EdgeError(
                        f"`{name}` cannot be fetched from `{address}`: {error.words}", "run it again"
                    ) from error
                if part.stat().st_size == size and _digest_of(part) == digest:
                    part.replace(out / name)
                    break
                part.unlink()
            else:
                raise EdgeError(f"`{name}` of `{address}` is not what the board said it is", "run it again")


async def remove_tree(files: Files, folder: str, below: Sequence[str] = ()) -> None:
    """Remove a folder of ours with its files and the named folders below it; what can't be removed stays."""
    with contextlib.suppress(FileRefused):
        await asyncio.gather(*(remove_tree(files, f"{folder}/{inner}") for inner in below))
        names = await files.names(folder)
        await asyncio.gather(*(files.remove(f"{folder}/{name}") for name in names))
        await files.remove_folder(folder)


def _digest_of(path: Path) -> str:
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()
