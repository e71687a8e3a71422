"""What can be trained and exported: one module per family, chosen by name. Nothing here imports torch.

A family makes a network from a ModelSpec; training, distillation and export are the same for all of them.
"""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from edgecnn.errors import EdgeError
from edgecnn.recipe import FamilyName, ModelSpec


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
    except ModuleNotFoundError as error:
        raise EdgeError(
            f"`family: {name}` needs `{error.name}`, which is not installed", "pip install 'edgecnn[train]'"
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
    libraries = ["torch", "safetensors"]
    if model.family != "small":
        libraries.append(model.family)
    for library in libraries:
        if find_spec(library) is None:
            found.append((f"`{library}` is not installed", f"{model.section}.family", "pip install 'edgecnn[train]'"))
    if isinstance(model.weights, Path) and not model.weights.is_file():
        found.append((f"weights `{model.weights}` do not exist", f"{model.section}.weights", "correct the path"))
    return found


SMALL_NAMES = (
    "gap-s", "gap-m", "gap-l", "simple", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110",
)  # fmt: skip
