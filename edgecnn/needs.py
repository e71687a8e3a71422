"""What a recipe needs that isn't here: asked by `plan` (exit 3) and by `build` before any stage (exit 2)."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgecnn.process.errors import EdgeError
from edgecnn.process.versions import install_command
from edgecnn.recipe.device import DeviceProfile
from edgecnn.recipe.load import load_device
from edgecnn.recipe.recipe import ModelSpec, QuantizeSpec, Recipe, TrainSpec
from edgecnn.targets.hosts import HERE, Boards

if TYPE_CHECKING:
    from edgecnn.store.stage import Artifact, Decision


@dataclass(frozen=True)
class Need:
    """Something missing: what, where it was looked for, and how to get it. `stops`: a build can't go on without it."""

    what: str
    where: str
    fix: str
    stops: bool = True


def needs(recipe: Recipe, profile: DeviceProfile, boards: Boards = HERE) -> list[Need]:
    """Everything a build of `recipe` would lack on this machine; looks only, loads nothing heavy.

    Args:
        boards: that stand for the device; whoever of them can't be reached is an error of its own.

    Raises:
        EdgeError: a device cannot do what the recipe asks, or family `small` has no such model.
    """
    more = [load_device(name) for name in recipe.compile_for]
    for device in (profile, *more):
        device.require_int8()
    from edgecnn import families
    from edgecnn.backends.tensorrt import rtx_gpus, trt
    from edgecnn.tasks.missing import missing

    here = (profile,) if not boards else ()  # a board's own version decides for it
    for device in (*here, *more):
        rtx_gpus.refuse(device.backend, device.capabilities, trt.installed("tensorrt-rtx"))

    found = [Need(*need) for need in missing(recipe.data)]
    models: list[ModelSpec] = [recipe.model, *([recipe.teacher] if recipe.teacher else [])]
    for model in models:
        if model.family == "small":
            families.check_name(model)
        found += [Need(*need) for need in families.missing(model)]
    for name in () if all(model.own_file for model in models) else ("torch", "safetensors", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            found.append(Need(f"the Python package `{name}`", "this environment", install_command("train")))
    return [*dict.fromkeys([*found, *_wanted(recipe, profile, models, boards)])]


def _wanted(recipe: Recipe, profile: DeviceProfile, models: list[ModelSpec], boards: Boards) -> list[Need]:
    """What a build goes on without, at a price: weights that must be fetched, a GPU to train on, the device itself."""
    from edgecnn import families
    from edgecnn.backends.gpu import list_gpus
    from edgecnn.targets.jobs import refuse_modes
    from edgecnn.targets.target import connect

    found = [Need(*need, stops=False) for model in models for need in families.to_fetch(model)]
    trained = [
        s for s, t in (("train", recipe.train), ("teacher.train", _of_teacher(recipe))) if t and t.epochs and t.amp
    ]
    if trained and not list_gpus():
        keys = " and ".join(f"`{section}.amp`" for section in trained)
        fix = "build on a machine with one; on this CPU the same training runs, but it may take days"
        found.append(Need(f"an NVIDIA GPU, for which {keys} asks", "nvidia-smi", fix, stops=False))
    reachable = bool(boards) or connect(profile).facts.reachable
    if reachable and not boards:
        refuse_modes(recipe.bench)
    if profile.backend in ("tensorrt", "tensorrt-rtx") and not reachable:
        fix = "build with --host USER@BOARD, or on the device; without it the graph is checked and simulated, nothing"
        fix += " is timed, and the verdict"
        found.append(Need(f"the device `{profile.name}`", "this machine", f"{fix} stays incomplete", stops=False))
    return found


def _of_teacher(recipe: Recipe) -> TrainSpec | None:
    return recipe.teacher.train if recipe.teacher else None


def check_library_names(recipe: Recipe, rehearsed: Callable[[], Sequence[Decision]]) -> None:
    """Refuse a model that its library does not have before the images are prepared for it, not after.

    Only where `train` or `teacher` will run, as `rehearsed` tells: a child process imports the library, for seconds.
    """
    stages = (("train", recipe.model), ("teacher", recipe.teacher))
    foreign = [(stage, model) for stage, model in stages if model and model.family not in ("small", "onnx")]
    will_run = {decision.stage for decision in rehearsed() if not decision.kept} if foreign else set()
    asked = [model for stage, model in foreign if stage in will_run]
    if not asked:
        return
    from edgecnn.process.child import run_child

    fields = set(ModelSpec.model_fields)
    job = {"models": [[model.section, model.model_dump(mode="json", include=fields)] for model in asked]}
    with tempfile.TemporaryDirectory(prefix="edgecnn-") as scratch:
        run_child("edgecnn.families.names", job, Path(scratch, "names.log"))


def check_calibration(spec: QuantizeSpec, data: Artifact) -> None:
    """Refuse too few calibration images once the data is known: before training, not after it."""
    if not data.path.is_dir():  # a rehearsal
        return
    from edgecnn.data import images

    spec.with_images(len(images(data.path, "calibrate")))


def refuse(needed: list[Need]) -> None:
    """Turn needs that stop a build into one error, before any stage has run."""
    found = [need for need in needed if need.stops]
    if found:
        lines = "\n".join(f"  {need.what}: not found in {need.where}\n    {need.fix}" for need in found)
        raise EdgeError(
            f"the recipe needs what is not here\n{lines}", "`edgecnn plan RECIPE` shows this without building"
        )


def check_writable(folder: Path) -> None:
    """Refuse an output folder that can't be written, before any stage has run."""
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
