"""What is read from files: frozen Pydantic models that refuse unknown keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # what names a folder or file on any system


class Spec(BaseModel):
    """Everything read from a file: frozen, unknown keys refused. `section` names its place in the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    section: ClassVar[str] = ""

    def leaves(self) -> Iterator[tuple[str, object]]:
        """Yield (dotted key as a user writes it, value) for every field; a Path stays a Path."""
        yield from _leaves(self, self.section)


def _leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, BaseModel):
        for key in type(value).model_fields:
            yield from _leaves(getattr(value, key), f"{name}.{key}" if name else key)
    elif isinstance(value, tuple) and any(isinstance(part, (Path, BaseModel)) for part in value):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{name}[{number}]")
    else:
        yield name, value
