"""The `edgecnn sensitivity` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgecnn.cli.options import AsJson, DeviceGiven, Images, InputText, Quiet, Ranges, print_result, show_progress


def sensitivity(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A float model.")],
    data: Annotated[Path, typer.Option(help="Calibration images: image folder, label table, or .npz with `images`.")],
    device: DeviceGiven,
    images: Images = None,
    ranges: Ranges = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the result.")] = Path("sensitivity"),
    input_: InputText = "",
    keep_float: Annotated[list[str], typer.Option(help="A node that stays float, by name. Repeatable.")] = [],  # noqa: B006
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Show which layers cost a model its accuracy in INT8, by weights or by activation: table, JSON and plot."""
    from edgecnn.foreign.sensitivity import measure_file

    with show_progress(as_json, quiet):
        document, text = measure_file(
            model, data=data, device=device, images=images, ranges=ranges, out=out, preprocessing=input_,
            keep_float=tuple(keep_float),
        )  # fmt: skip
    print_result(as_json, document, text)
