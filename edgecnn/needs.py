"""What a recipe needs that isn't here: asked by `plan` (exit 3) and by `build` before any stage (exit 2)."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from edgecnn.device import DeviceProfile
from edgecnn.errors import EdgeError
from edgecnn.recipe import ModelSpec, Recipe


@dataclass(frozen=True)
class Need:
    """Something missing: what, where it was looked for, and how to get it."""

    what: str
    where: str
    fix: str


def needs(recipe: Recipe, profile: DeviceProfile) -> list[Need]:
    """Everything a build of `recipe` would lack on this machine; looks only, loads nothing heavy.

    Raises:
        EdgeError: the device cannot do what the recipe asks.
    """
    check_precision(recipe, profile)
    from edgecnn import data, families

    found = [Need(*need) for need in data.missing(recipe.data)]
    models: list[ModelSpec] = [recipe.model, *([recipe.teacher] if recipe.teacher else [])]
    found += [Need(*need) for model in models for need in families.missing(model)]
    for name in ("torch", "safetensors", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            found.append(Need(f"the Python package `{name}`", "this environment", "pip install 'edgecnn[train]'"))
    return list(dict.fromkeys(found))


def check_precision(recipe: Recipe, profile: DeviceProfile) -> None:
    """Refuse INT8 on a device whose file does not list it."""
    if recipe.quantize.precision not in profile.precisions:
        raise EdgeError(
            f"INT8 is asked, but device `{profile.name}` lists only {', '.join(profile.precisions)}",
            "pick a device that lists int8: `edgecnn devices list`",
        )


def refuse(found: list[Need]) -> None:
    """Turn needs into one error, before any stage has run."""
    if found:
        lines = "\n".join(f"  {need.what}: not found in {need.where}\n    {need.fix}" for need in found)
        raise EdgeError(
            f"the recipe needs what is not here\n{lines}", "`edgecnn plan RECIPE` shows this without building"
        )


def check_writable(folder: Path) -> None:
    """Refuse an output folder that can't be written, before any stage has run."""
    import os
    import tempfile

    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    try:
        if not nearest.is_dir():
            raise NotADirectoryError(20, "it is a file", str(nearest))
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise EdgeError(
            f"cannot write to the output folder `{folder}`: {os.strerror(error.errno or 0)}",
            "choose another with --out",
        ) from error
