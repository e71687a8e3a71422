"""A trained model's folder: weights.safetensors and model.json, which together need no recipe to be used again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from edgecnn.families import load_family
from edgecnn.families.weights import fit_state, read_weights
from edgecnn.recipe.io_contract import OutputContract
from edgecnn.recipe.recipe import FamilyName, ModelSpec, Normalization, TaskName
from edgecnn.recipe.spec import Spec

WEIGHTS = "weights.safetensors"
CARD = "model.json"


class ModelCard(Spec):
    """What model.json says: the network, and the images that it expects."""

    family: FamilyName
    name: str
    dropout: float
    width: float
    classes: tuple[str, ...]
    channels: Literal[1, 3]
    color: Literal["rgb", "gray"]
    fit: Literal["crop", "stretch", "letterbox"]
    image_size: int  # pixels, height and width
    normalization: Normalization


@dataclass(frozen=True)
class Trained:
    """A network in eval mode (CPU, float32) and its card."""

    net: nn.Module
    card: ModelCard


@dataclass(frozen=True)
class Deployed:
    """A network as it ships: `net` takes normalized float32 (N, C, S, S) and answers `outputs`, in that order."""

    net: nn.Module
    outputs: tuple[OutputContract, ...]
    task: TaskName


def deployed(trained: Trained) -> Deployed:
    """Bring a trained network into the form that is exported."""
    if trained.card.family != "ultralytics":
        return Deployed(trained.net, (OutputContract(name="logits", meaning="logits"),), "classify")
    from edgecnn.families import ultralytics

    return ultralytics.deployed(trained.net, trained.card.image_size)


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state dict as safetensors: contiguous CPU tensors, floats as float32. Same weights, same bytes."""
    from safetensors.torch import save_file

    plain = {}
    for name, value in state.items():
        value = value.detach().cpu()
        plain[name] = (value.float() if value.is_floating_point() else value).clone().contiguous()
    save_file(plain, str(path))


def write_card(out: Path, card: ModelCard) -> None:
    """Write model.json."""
    (out / CARD).write_text(card.model_dump_json(indent=1))


def read_trained(folder: Path) -> Trained:
    """The network of a finished train stage, with its weights, in eval mode.

    Raises:
        EdgeError: its family is not installed, or the weights don't fit (another version of the library).
    """
    card = ModelCard.model_validate_json((folder / CARD).read_text())
    spec = ModelSpec(
        family=card.family, name=card.name, image_size=card.image_size, normalize=card.normalization,
        dropout=card.dropout, width=card.width,
    )  # fmt: skip
    net = load_family(card.family).create(spec, len(card.classes), card.channels)
    fit_state(net, read_weights(folder / WEIGHTS), f"`{folder / WEIGHTS}`", new_head=False)
    return Trained(net.eval(), card)
