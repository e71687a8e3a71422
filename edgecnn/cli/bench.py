"""The `edgecnn bench` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgecnn.cli.options import (
    AsJson,
    DeviceGiven,
    Hosts,
    InputText,
    Links,
    LockClocks,
    PowerMode,
    Quiet,
    Sets,
    boards_of,
    print_result,
    show_progress,
    timing_sets,
)


def bench(
    model: Annotated[Path, typer.Argument(metavar="MODEL_OR_ENGINE", help="An ONNX file or a compiled engine.")],
    baseline: Annotated[
        Path | None, typer.Option(help="Another model or engine, timed alternately with the first.")
    ] = None,
    device: DeviceGiven = "cpu-x86",
    input_: InputText = "",
    host: Hosts = [],  # noqa: B006  # typer reads it
    link: Links = [],  # noqa: B006
    set_: Sets = [],  # noqa: B006
    power_mode: PowerMode = None,
    lock_clocks: LockClocks = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time a model or engine on a device, here or over SSH; with --baseline, as interleaved pairs."""
    from edgecnn import api

    with show_progress(as_json, quiet):
        timed = api.bench(
            model, baseline, device=device, hosts=boards_of(host, link), input=input_,
            set=[*set_, *timing_sets(power_mode, lock_clocks)],
        )  # fmt: skip
    print_result(as_json, timed.document, timed.text)
