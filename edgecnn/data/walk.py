"""The images below a folder, for every reader alike, and what was passed over."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgecnn.data.pixels import EXTENSIONS
from edgecnn.process.errors import EdgeError
from edgecnn.process.progress import current
from edgecnn.store.digests import walk

PASSED_SHOWN = 8  # endings in one line
OTHER_KINDS = {
    "again": "linked twice",
    "dangling": "broken links",
    "special": "pipes, sockets or devices",
}


@dataclass(frozen=True)
class Walked:
    """Image files, sorted, by their path relative to the folder; how many other files there were, by ending."""

    files: tuple[str, ...]
    passed: Counter[str]


def images_below(folder: Path, *, beside: tuple[str, ...] = ()) -> Walked:
    """Image files of a folder and below: no hidden ones, links followed, every real file once, regular files only.

    Args:
        beside: endings that lie there for another purpose, such as label files, and are not counted.
    """
    files: dict[str, str] = {}  # real path → name
    passed: Counter[str] = Counter()
    linked = []
    for entry in walk(folder, hidden=False):
        ending = PurePosixPath(entry.path).suffix.lower()
        if entry.kind != "file":
            passed[OTHER_KINDS[entry.kind]] += 1
        elif ending not in EXTENSIONS:
            passed[shown_ending(ending)] += ending not in beside
        elif entry.link:
            linked.append(entry)
        else:
            files[entry.real] = entry.path
    for entry in linked:  # what is there itself goes by its own name
        if entry.real in files:
            passed[OTHER_KINDS["again"]] += 1
        files.setdefault(entry.real, entry.path)
    return Walked(tuple(sorted(files.values())), +passed)


class Places:
    """Where files really are, whatever links lead there: two names of one image are one place."""

    def __init__(self) -> None:
        self.folders: dict[str, str] = {}  # resolved once each, not once an image

    def of(self, file: Path) -> str:
        """The file's own name in its real folder."""
        folder, name = os.path.split(os.path.abspath(file))
        if folder not in self.folders:
            self.folders[folder] = os.path.realpath(folder)
        return os.path.join(self.folders[folder], name)


def say_passed(passed: Counter[str]) -> None:
    """One line on what was passed over, by ending; nothing where nothing was."""
    if passed:
        noun = "file that is" if passed.total() == 1 else "files that are"
        told = [f"{count} {what}" for what, count in passed.most_common(PASSED_SHOWN)]
        rest = passed.total() - sum(count for _, count in passed.most_common(PASSED_SHOWN))
        told += [f"{rest} others"] if rest else []
        current().note(f"data: skipped {passed.total():,} {noun} not read as images: {', '.join(told)}")


def shown_ending(ending: str) -> str:
    """How an ending is counted: `.heic`; odd ones together."""
    if not ending:
        return "without ending"
    return ending if len(ending) <= 8 and ending[1:].isalnum() and ending.isascii() else "of odd endings"


def require_utf8(names: list[str], what: str) -> None:
    """Refuse names that cannot be written down: class names go into reports and files.

    Raises:
        EdgeError: some are not UTF-8.
    """
    bad = [name for name in names if not is_utf8(name)]
    if bad:
        told = ", ".join(f"`{readable(name)}`" for name in bad[:10])
        raise EdgeError(f"{what} is not UTF-8: {told}", "rename it (`convmv -f latin1 -t utf8` does many at once)")


def is_utf8(name: str) -> bool:
    """Whether a name of the file system is valid text."""
    return readable(name) == name


def readable(name: str) -> str:
    """A name of the file system as text: bytes that are not UTF-8 become \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
