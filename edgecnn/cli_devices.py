"""The `edgecnn devices` commands."""

from __future__ import annotations

import typer

from edgecnn.cli_options import AsJson, print_result

devices = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The device files that edgecnn knows.")


@devices.command("list")
def devices_list(as_json: AsJson = False) -> None:
    """List the packed device files."""
    from edgecnn.recipe_file import load_device, packed

    profiles = [load_device(name) for name in packed("devices")]
    lines = [
        f"{p.name:<18} {p.backend:<13} {'SM ' + p.compute_capability if p.compute_capability else '-':<9}"
        f" {f'{p.memory_mb / 1024:.0f} GB' if p.memory_mb else '-':>7}  {', '.join(p.precisions)}"
        for p in profiles
    ]
    print_result(as_json, [p.model_dump(mode="json") for p in profiles], "\n".join(lines))


@devices.command("show")
def devices_show(name: str, as_json: AsJson = False) -> None:
    """Print one device file with every default."""
    import yaml

    from edgecnn.recipe_file import load_device

    document = load_device(name).model_dump(mode="json")
    print_result(as_json, document, yaml.safe_dump(document, sort_keys=False).rstrip())
