"""What is read from files: frozen Pydantic models that refuse unknown keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


def describe_fault(error: ValidationError) -> str:
    """The first thing that is wrong, by its place, in one line: `threads: Input should be greater than 0`."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])


FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # what names a folder or file on any system


class Spec(BaseModel):
    """Everything read from a file: frozen, unknown keys refused. `section` names its place in the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    section: ClassVar[str] = ""

    @field_validator("*", mode="before")
    @classmethod
    def _number_written_as_such(cls, value: object, info: ValidationInfo) -> object:
        """Pydantic would take `true` and "1" for a number; who wrote them meant something else."""
        kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
        for part in value if isinstance(value, (list, tuple)) else (value,):
            wrong = (isinstance(part, bool) and bool not in kinds) or (isinstance(part, str) and not kinds & _TEXTS)
            if wrong and kinds & {int, float}:
                kind = "number" if float in kinds else "integer"
                raise PydanticCustomError("number_expected", f"Input should be a valid {kind}")
        return value

    def leaves(self) -> Iterator[tuple[str, object]]:
        """Yield (dotted key as a user writes it, value) for every field; a Path stays a Path."""
        yield from _leaves(self, self.section)


_TEXTS = {str, Path}


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation is made of; of Literal those of its values."""
    arguments = get_args(annotation)
    if not arguments:
        return {annotation if isinstance(annotation, type) else type(annotation)}
    return {kind for argument in arguments for kind in _kinds(argument)}


def _leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, BaseModel):
        for key in type(value).model_fields:
            yield from _leaves(getattr(value, key), f"{name}.{key}" if name else key)
    elif isinstance(value, tuple) and any(isinstance(part, (Path, BaseModel)) for part in value):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{name}[{number}]")
    else:
        yield name, value
