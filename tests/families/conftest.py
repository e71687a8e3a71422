"""Trained-like networks: random weights, with BatchNorm statistics that are not the initial ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

torch = pytest.importorskip("torch")
from edgecnn.families import load_family  # noqa: E402
from edgecnn.families.trained import WEIGHTS, ModelCard, write_card, write_state  # noqa: E402
from edgecnn.recipe.recipe import ModelSpec  # noqa: E402
from edgecnn.store.stage import Artifact  # noqa: E402

torch.set_num_threads(1)
Make = Callable[..., tuple[ModelSpec, Artifact]]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """A train artifact of a network with seeded weights; keywords are ModelSpec's, `channels`, `classes`."""

    def make(family: str, name: str, size: int, *, channels: int = 3, classes: int = 10, **more: Any) -> Any:
        torch.manual_seed(0)
        spec = ModelSpec.model_validate({"family": family, "name": name, "image_size": size, **more})
        net = load_family(spec.family).create(spec, classes, channels)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, 0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        folder = tmp_path / f"{name}-{size}"
        folder.mkdir()
        write_state(folder / WEIGHTS, net.state_dict())
        card = ModelCard.model_validate(
            {
                **spec.model_dump(include={"family", "name", "dropout", "width", "image_size"}),
                "classes": [f"class {number}" for number in range(classes)],
                "channels": channels,
                "color": "gray" if channels == 1 else "rgb",
                "fit": "crop",
                "normalization": spec.normalization(channels),
            }
        )
        write_card(folder, card)
        return spec, Artifact("train", "0" * 32, folder)

    return make
