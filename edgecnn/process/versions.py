"""Versions that enter a stage's key: edgecnn's own and those of the libraries that decide its result."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from edgecnn import __version__

F = TypeVar("F", bound=Callable[..., None])
Versions = Callable[[str], str]
ENGINES = ("backends", "targets", "board", "agent", "measure")  # rooms that decide what an engine is and answers


def decided_by(*libraries: str, rooms: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Mark a stage function with what decides its result and enters its key.

    Args:
        libraries: distributions, by their versions.
        rooms: in a checkout the sources of these folders of the package; none given: all sources.
    """

    def mark(make: F) -> F:
        make.libraries, make.rooms = libraries, rooms  # type: ignore[attr-defined]  # functions carry attributes
        return make

    return mark


def installed_version(library: str) -> str:
    """The installed version of a distribution, or `absent`."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "absent"


def install_command(extras: str) -> str:
    """The command that adds extras, as `train,yolo`, to what runs here: this checkout, or the installed package."""
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{checkout}[{extras}]')}"
    return f"pip install 'edgecnn[{extras}]'"


@cache
def code_version(*rooms: str) -> str:
    """edgecnn's version; in a source checkout, with a digest of the sources, so that an edit makes stages again.

    Args:
        rooms: folders of the package whose sources count; none given: all.
    """
    package = Path(__file__).parents[1]
    if not (package.parent / "pyproject.toml").exists():
        return __version__
    content = hashlib.sha256()
    for folder in [package / room for room in sorted(rooms)] or [package]:
        for path in sorted(folder.rglob("*.py")):
            content.update(path.read_bytes())
    return f"{__version__}+{content.hexdigest()[:12]}"
