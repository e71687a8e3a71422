"""The `edgecnn devices` commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgecnn.cli.options import AsJson, Hosts, Links, boards_of, complete_device, finite, print_result, show_progress
from edgecnn.process.errors import EdgeError

devices = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The device files that edgecnn knows, and boards over SSH."
)

DeviceFile = Annotated[
    str, typer.Argument(metavar="NAME", help="A packed device, or a device file.", autocompletion=complete_device)
]


@devices.command("list")
def devices_list(as_json: AsJson = False) -> None:
    """List the packed device files."""
    from edgecnn.recipe.load import load_device, packed

    profiles = [load_device(name) for name in packed("devices")]
    rows = [("DEVICE", "BACKEND", "GPU", "MEMORY", "PRECISIONS")]
    for one in profiles:
        gpu = f"SM {one.compute_capability}" if one.compute_capability else "-"
        memory = f"{one.memory_mb / 1024:.0f} GB" if one.memory_mb else "-"
        rows.append((one.name, one.backend, gpu, memory, ", ".join(one.precisions)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    print_result(as_json, [p.model_dump(mode="json") for p in profiles], "\n".join(lines))


@devices.command("show")
def devices_show(name: DeviceFile, as_json: AsJson = False) -> None:
    """Print one device file with every default."""
    from edgecnn.recipe.load import load_device
    from edgecnn.recipe.yaml_file import dump_yaml

    document = load_device(name).model_dump(mode="json")
    print_result(as_json, document, dump_yaml(document).rstrip())


@devices.command("probe")
def devices_probe(
    host: Annotated[str, typer.Argument(metavar="USER@HOST", help="A board, or an alias of ~/.ssh/config.")],
    write: Annotated[Path | None, typer.Option(help="Write a device file from what the board reports.")] = None,
    link: Links = [],  # noqa: B006  # typer reads it
    as_json: AsJson = False,
) -> None:
    """Ask a board what it is: JetPack, engines, GPU, memory, power mode, clocks, and which device files fit."""
    from edgecnn.targets.probe import probe

    with show_progress(as_json):
        document, text = probe(host, boards_of([host], link), write)
    print_result(as_json, document, text)


@devices.command("clean")
def devices_clean(
    host: Hosts = [],  # noqa: B006
    max_gb: Annotated[
        float, typer.Option(min=0.0, callback=finite, help="GB to keep, most recently used first.")
    ] = 0.0,
    link: Links = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Remove what edgecnn keeps on boards (~/.cache/edgecnn there): images, engines, old agents."""
    from edgecnn.targets.probe import clean

    if not host:
        raise EdgeError("`devices clean` needs --host USER@BOARD", "`edgecnn clean` limits the store on this machine")
    with show_progress(as_json):
        document, text = clean(boards_of(host, link), max_gb)
    print_result(as_json, document, text)
