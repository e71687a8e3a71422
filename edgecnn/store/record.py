"""stage.json: what a finished stage is, when and why it was made, and the hash of every file. Read at one place."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgecnn.process.disk import write_json
from edgecnn.recipe.spec import Spec

NAME = "stage.json"


class Record(Spec):
    """A stage.json. `seal`: the hash of all the rest, so that an edited one is made again instead of being believed."""

    stage: str
    key: str
    made: datetime
    seconds: float
    why: tuple[str, ...]
    inputs: dict[str, Any]
    files: dict[str, str]
    seal: str


def write_record(folder: Path, content: dict[str, Any]) -> None:
    """Write a stage's record; `made` is now."""
    made = datetime.now(timezone.utc).isoformat(timespec="seconds")
    whole = {**content, "made": made}
    write_json(folder / NAME, {**whole, "seal": _seal(whole)})


def read_record(folder: Path) -> Record:
    """A finished stage's record.

    Raises:
        OSError: there is none. ValueError: it isn't as `write_record` left it.
    """
    try:
        content = json.loads((folder / NAME).read_bytes())
        record = Record.model_validate(content)
    except (RecursionError, ValidationError) as error:
        raise ValueError(str(error)) from error
    if record.seal != _seal({key: value for key, value in content.items() if key != "seal"}):
        raise ValueError("it was edited")
    return record


def age(folder: Path) -> str:
    """How long ago a finished stage was made, as `made 3 h ago`."""
    return f"made {age_text(read_record(folder).made.isoformat())} ago"


def age_text(made: str) -> str:
    """The age of an ISO time stamp as a person reads it at a glance: `12 s`, `5 min`, `3 h`, `2 days`."""
    seconds = (datetime.now(timezone.utc) - datetime.fromisoformat(made)).total_seconds()
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
