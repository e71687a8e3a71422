"""Versions that enter a stage's key: edgecnn's own and those of the libraries that decide its result."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from edgecnn import __version__

F = TypeVar("F", bound=Callable[..., None])
Versions = Callable[[str], str]


def decided_by(*libraries: str) -> Callable[[F], F]:
    """Mark a stage function with the libraries whose versions decide its result; they enter its key."""

    def mark(make: F) -> F:
        make.libraries = libraries  # type: ignore[attr-defined]  # functions carry attributes
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


def code_version() -> str:
    """edgecnn's version; in a source checkout, with a digest of the sources, so that an edit makes stages again."""
    global _code_version
    if _code_version is None:
        package = Path(__file__).parents[1]
        _code_version = __version__
        if (package.parent / "pyproject.toml").exists():
            content = hashlib.sha256()
            for path in sorted(package.rglob("*.py")):
                content.update(path.read_bytes())
            _code_version += f"+{content.hexdigest()[:12]}"
    return _code_version


_code_version: str | None = None
