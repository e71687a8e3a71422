"""What can be trained and exported: one module per family, chosen by name. Nothing here imports torch.

A family makes a network from a ModelSpec; training, distillation and export are the same for all of them.
"""

from __future__ import annotations

import difflib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from edgecnn.process.disk import user_path
from edgecnn.process.errors import EdgeError
from edgecnn.process.versions import install_command
from edgecnn.recipe.recipe import FamilyName, ModelSpec

# The distributions that decide what a family's networks learn and answer, beside torch. A stage that makes or runs
# networks of any family is `@decided_by("torch", *LIBRARIES, …)`, so that another version makes it again.
LIBRARIES = (
    "torchvision", "timm",
    "ultralytics", "opencv-python", "opencv-python-headless",  # their trainer reads and scales images with OpenCV
)  # fmt: skip


class Family(Protocol):
    """A family of networks; met by a module."""

    def create(self, model: ModelSpec, classes: int, channels: int, *, new_head: bool = False) -> Any:
        """The network (torch.nn.Module, CPU, float32) with `model.weights` loaded when given.

        It takes float32 (N, channels, S, S), already normalized, and answers logits float32 (N, classes).

        Args:
            model: which network, at which image size S (pixels), dropout and width.
            classes: length of the logits.
            channels: 1 (gray) or 3 (RGB). RGB weights in a gray network: the first convolution is summed over RGB.
            new_head: weights for another number of classes start a new head (said in a note) instead of being an error.

        Raises:
            EdgeError: unknown name, weights missing, not loadable or of other shapes, or an image size it cannot take.
        """

    def names(self) -> tuple[str, ...]:
        """Every model name of the family."""

    def library_weights(self, name: str) -> tuple[str, ...]:
        """Names of the weights that the family's library knows for a model; empty when it has none."""


def load_family(name: FamilyName) -> Family:
    """The family's module. Imports torch.

    Raises:
        EdgeError: its library is not installed.
    """
    try:
        match name:
            case "small":
                from edgecnn.families import small

                return small
            case "torchvision":
                from edgecnn.families import torchvision

                return torchvision
            case "timm":
                from edgecnn.families import timm

                return timm
            case "ultralytics":
                from edgecnn.families import ultralytics

                return ultralytics
            case "onnx":
                raise EdgeError("`family: onnx` is a file of your own: it has no network that torch could train")
    except ModuleNotFoundError as error:
        raise EdgeError(
            f"`family: {name}` needs `{error.name}`, which is not installed",
            install_command("train,yolo" if name == "ultralytics" else "train"),
        ) from error


def check_name(model: ModelSpec) -> None:
    """Raise an EdgeError with the nearest name when the family has no such model. Imports the family's library."""
    refuse_unknown(model, SMALL_NAMES if model.family == "small" else load_family(model.family).names())


def refuse_unknown(model: ModelSpec, names: tuple[str, ...]) -> None:
    """Raise an EdgeError unless `model.name`, without a timm tag, is one of `names`."""
    name = model.name.split(".")[0] if model.family == "timm" else model.name
    if name not in names:
        raise EdgeError(
            f"`{model.section}.name`: family `{model.family}` has no model `{model.name}`",
            nearest(name, names, "models"),
        )


def refuse_weights(model: ModelSpec, library: str, known: tuple[str, ...]) -> None:
    """Raise an EdgeError unless `model.weights`, which names no file, is one of those that its library knows."""
    name = str(model.weights)
    if name not in known:
        raise EdgeError(
            f"`{model.section}.weights`: no file `{name}`, and {library} has no weights `{name}` for `{model.name}`",
            nearest(name, known, "weights"),
        )


def nearest(name: str, names: tuple[str, ...], noun: str) -> str:
    """A hint: the nearest names, or the first few."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(f'`{n}`' for n in near)}?"
    shown = ", ".join(f"`{n}`" for n in names[:8])
    return f"its {noun} are {shown}{' …' if len(names) > 8 else ''}" if names else f"it has no {noun}"


def missing(model: ModelSpec) -> list[tuple[str, str, str]]:
    """(what is missing, where, the fix) for `edgecnn plan`; imports nothing heavy."""
    found = []
    libraries = [] if model.own_file else ["torch", "safetensors"]
    if model.family not in ("small", "onnx"):
        libraries.append(model.family)
    for library in libraries:
        if find_spec(library) is None:
            extras = "train,yolo" if library == "ultralytics" else "train"
            found.append((f"`{library}` is not installed", f"{model.section}.family", install_command(extras)))
    if isinstance(model.weights, Path) and not model.weights.is_file():
        found.append((f"weights `{model.weights}` do not exist", f"{model.section}.weights", "correct the path"))
    return found


ULTRALYTICS_RELEASE = "https://github.com/ultralytics/assets/releases/download/v8.4.0"


def fetched_file(name: str) -> Path:
    """Where torch keeps a weights file that it fetched; needs no torch."""
    cache = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("TORCH_HOME") or cache / "torch") / "hub" / "checkpoints" / name


def to_fetch(model: ModelSpec) -> list[tuple[str, str, str]]:
    """(what, where, fix) of published weights that a build would first have to fetch."""
    if model.family != "ultralytics" or not isinstance(model.weights, str) or fetched_file(model.weights).is_file():
        return []
    fix = (
        f"the build fetches {ULTRALYTICS_RELEASE}/{model.weights}; without a network, get that file elsewhere and add "
        f"--set {model.section}.weights=PATH"
    )
    return [(f"weights `{model.weights}`", str(fetched_file(model.weights)), fix)]


SMALL_NAMES = (
    "gap-s", "gap-m", "gap-l", "simple", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110",
)  # fmt: skip
