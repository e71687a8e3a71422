"""Foreign text files: read whole or refused, with the file and the fix."""

from __future__ import annotations

import codecs
import reprlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, ValidationError

from edgecnn.process.errors import EdgeError
from edgecnn.store.digests import is_regular

MIB = 1 << 20
BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def whole(value: object) -> object:
    """3 for 3.0, as programs without integers write it; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[StrictInt, Field(ge=0, lt=2**53), BeforeValidator(whole)]


def read_text(path: Path, most: int = 2048 * MIB) -> str:
    """A text file of UTF-8, or of UTF-16 that begins with its byte order mark.

    Args:
        most: bytes; a larger file is not what it is taken for.

    Raises:
        FileNotFoundError: there is none.
        EdgeError: not a regular file, too large, of another encoding, or not to be read.
    """
    try:
        size = path.stat().st_size
        if not is_regular(path):
            raise EdgeError(f"`{path}` is not a regular file", "give a text file")
        if size > most:
            raise EdgeError(
                f"`{path}` has {size:,} bytes; at most {most:,} are read", "check that it is the right file"
            )
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise EdgeError(
            f"cannot read `{path}`: {getattr(error, 'strerror', None) or error}", "check the path and its permissions"
        ) from error
    return decode_text(content, path)


def decode_text(content: bytes, path: Path, encoding: str = "utf-8") -> str:
    """The text of a file's bytes: of its byte order mark's encoding, else of `encoding`.

    Raises:
        EdgeError: other bytes than the encoding has, by line.
    """
    encoding = next((name for mark, name in BOMS if content.startswith(mark)), encoding)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise EdgeError(
            f"`{path}`, line {line}: byte 0x{content[error.start]:02x} is not {encoding} text", "save it as UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise EdgeError(f"`{path}`, line {line}: a NUL character, which text does not have", "save it as UTF-8 text")
    return text


class Foreign(BaseModel):
    """A record of a file that others wrote: other keys may be there, values are of their type or refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


def first_fault(error: ValidationError) -> str:
    """Where in a record, and what: `bbox.2: Input should be a valid number, not None`."""
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"] if part not in ("int", "str"))  # of a union
    why = "Input should be an object" if fault["type"] == "model_type" else fault["msg"]
    given = "" if fault["type"] == "missing" else f", not {short(fault['input'])}"
    return f"{where + ': ' if where else ''}{why}{given}"


def short(value: object) -> str:
    """A foreign value in a message."""
    try:
        told = _SHORT.repr(value)
    except ValueError:  # a number of more digits than Python prints
        told = "a very long number"
    return told if len(told) <= 60 else f"{told[:57]}..."


# Never the whole of it: aliases of YAML make a page of text into a value that no memory holds when it is written out.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring = 2, 4, 4, 60
