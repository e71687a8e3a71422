"""A network as it ships: what export writes, and what its outputs mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from edgecnn.families import load_family
from edgecnn.io_contract import OutputContract
from edgecnn.recipe import FamilyName, Task


@dataclass(frozen=True)
class Deployed:
    """`net` takes normalized float32 (N, C, S, S) and answers `outputs`, in that order."""

    net: nn.Module
    outputs: tuple[OutputContract, ...]
    task: Task


def deployed(family: FamilyName, net: nn.Module, image_size: int) -> Deployed:
    """Bring a trained network (eval mode) into the form that is exported."""
    match family:
        case "ultralytics":
            made: Deployed = load_family(family).deployed(net, image_size)  # type: ignore[attr-defined]  # detectors only
            return made
        case _:
            return Deployed(net, (OutputContract(name="logits", meaning="logits"),), "classify")
