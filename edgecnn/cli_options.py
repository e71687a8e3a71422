"""What several commands share: options by name, how progress is shown, and how a result is printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for programs.")]
InputText = Annotated[
    str, typer.Option("--input", help="A foreign model's preprocessing, as mean=0.5,std=0.5,layout=nchw,size=224.")
]


def print_result(as_json: bool, document: object, text: str) -> None:
    """Print the document for a program, or the text for a person."""
    print(json.dumps(document, indent=1) if as_json else text)


class Interrupted(BaseException):
    """Ctrl-C, in a form that the command framework passes on."""


@contextmanager
def shown(as_json: bool) -> Iterator[None]:
    """Progress on stderr: bars on a terminal, plain lines elsewhere and with --json."""
    from edgecnn import progress

    bars = sys.stderr.isatty() and sys.stdout.isatty() and not as_json
    try:
        with progress.showing(progress.Bars() if bars else progress.Plain()):
            yield
    except KeyboardInterrupt as interrupt:
        raise Interrupted from interrupt
