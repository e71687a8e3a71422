"""What several commands share: options by name, how progress is shown, and how a result is printed."""

from __future__ import annotations

import glob
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli.border import Interrupted
from edgecnn.process.errors import printable

if TYPE_CHECKING:
    from edgecnn.targets.hosts import Boards

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, for programs.")]
InputText = Annotated[
    str,
    typer.Option(
        "--input", help="Preprocessing of a third-party model, such as mean=0.5,std=0.5,layout=nchw,size=224."
    ),
]
Images = Annotated[
    int | None,
    typer.Option(min=1, help="Number of calibration images. Default: all there are, up to 256."),
]
Ranges = Annotated[
    str, typer.Option(help="Calibration of activation ranges: auto, minmax, percentile, entropy or mse.")
]
Sets = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as train.epochs=3. Repeatable.")
]
DeviceGiven = Annotated[
    str,
    typer.Option(
        "--device", help="A name from `edgecnn devices list`, or a device file.",
        autocompletion=lambda incomplete: complete_device(incomplete),
    ),
]  # fmt: skip
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress on stderr.")]
Strict = Annotated[bool, typer.Option("--strict", help="Treat an undecided verdict as a failure: exit 1, not 3.")]
Hosts = Annotated[
    list[str],
    typer.Option(
        "--host", metavar="USER@HOST", help="A board to build, score and time on, over SSH. Repeatable: a fleet."
    ),
]
Links = Annotated[
    list[str],
    typer.Option(
        "--link", metavar="NAME=SECONDS", help="A time limit of the SSH link, such as connect_s=10. Repeatable."
    ),
]
PowerMode = Annotated[
    str | None,
    typer.Option(
        "--power-mode", help="Power mode to set while the board is timed, by nvpmodel's name; restored afterwards."
    ),
]
LockClocks = Annotated[
    bool,
    typer.Option(
        "--lock-clocks", help="Lock the board's clocks (jetson_clocks) while it is timed; restored afterwards."
    ),
]


def finite(value: float | None) -> float | None:
    """Refuse `nan` and `inf`, which the command framework takes for numbers."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def complete_recipe(incomplete: str) -> list[str]:
    """Packed recipes and YAML files that begin so, for the shell."""
    return _complete("recipes", incomplete)


def complete_device(incomplete: str) -> list[str]:
    """Packed devices and YAML files that begin so, for the shell."""
    return _complete("devices", incomplete)


def _complete(kind: str, incomplete: str) -> list[str]:
    from edgecnn.recipe.load import packed

    names = [name for name in packed(kind) if name.startswith(incomplete)]
    return [*names, *sorted(glob.glob(f"{glob.escape(incomplete)}*.yaml"))]


def boards_of(hosts: list[str], links: list[str]) -> Boards:
    """The boards of --host and --link.

    Raises:
        EdgeError: a --link that is not NAME=SECONDS, or names no limit.
    """
    from edgecnn.board.limits import parse_limits
    from edgecnn.targets.hosts import Boards

    return Boards(tuple(hosts), parse_limits(links))


def timing_sets(power_mode: str | None, lock_clocks: bool) -> list[str]:
    """--power-mode and --lock-clocks as the recipe keys that they override."""
    sets = [f"bench.power_mode={json.dumps(power_mode)}"] if power_mode is not None else []
    return [*sets, "bench.lock_clocks=true"] if lock_clocks else sets


def print_result(as_json: bool, document: object, text: str) -> None:
    """Print the document for a program, or the text for a person."""
    print(json.dumps(document, indent=1) if as_json else printable(text))


@contextmanager
def show_progress(as_json: bool, quiet: bool = False) -> Iterator[None]:
    """Progress on stderr: bars on a terminal, plain lines elsewhere and with --json; none where `quiet`."""
    from edgecnn.process import progress

    bars = sys.stderr.isatty() and sys.stdout.isatty() and not as_json
    try:
        with progress.showing(progress.current() if quiet else progress.Bars() if bars else progress.Plain()):
            yield
    except KeyboardInterrupt as interrupt:
        raise Interrupted from interrupt
