"""YOLO: whole-model files through the list of allowed classes, the network as it ships, its settings kept away."""

from __future__ import annotations

import os
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import ModelSpec

if find_spec("ultralytics") is None:
    pytest.skip("the extra [yolo] is not installed", allow_module_level=True)
from edgecnn.families import ultralytics as family

SIZE = 64


def spec(**more: Any) -> ModelSpec:
    return ModelSpec.model_validate({"family": "ultralytics", "name": "yolov8n", "image_size": SIZE, **more})


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    return family.create(spec(), 3, 3)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def whole(net: Any) -> dict[str, Any]:
    """A checkpoint as Ultralytics saves one: the model itself in half precision, its settings beside it."""
    from copy import deepcopy

    from ultralytics.utils import IterableSimpleNamespace

    model = deepcopy(net).half()
    model.args = IterableSimpleNamespace(imgsz=SIZE)
    return {"epoch": -1, "model": model, "ema": None, "train_args": {"imgsz": SIZE}, "version": "8.4.0"}


def test_a_whole_model_file_loads_without_a_flag(net: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "yolov8n.pt", whole(net))
    again = family.create(spec(weights=path), 3, 3)
    for (name, a), b in zip(net.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=2e-3, atol=1e-6), name


class Foreign:
    """A class that no weights file needs."""


def test_a_foreign_global_is_refused_by_name(net: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "yolov8n.pt", {**whole(net), "extra": Foreign()})
    with pytest.raises(EdgeError, match=r"test_ultralytics\.Foreign"):
        family.create(spec(weights=path), 3, 3)


class Runs:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch was_run",)


def test_code_in_a_file_does_not_run(net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "yolov8n.pt", {**whole(net), "extra": Runs()})
    with pytest.raises(EdgeError, match="system"):
        family.create(spec(weights=path), 3, 3)
    assert not (tmp_path / "was_run").exists()


def test_functions_of_allowed_modules_are_not_allowed(net: Any, tmp_path: Path) -> None:
    from ultralytics.nn.tasks import torch_safe_load  # a function in a module whose classes are allowed

    path = saved(tmp_path / "yolov8n.pt", {**whole(net), "extra": torch_safe_load})
    with pytest.raises(EdgeError, match="torch_safe_load"):
        family.create(spec(weights=path), 3, 3)


def test_a_fused_network_answers_as_before(net: Any, tmp_path: Path) -> None:
    from copy import deepcopy

    other = deepcopy(net)
    for module in other.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_var.uniform_(0.5, 1.5)
    path = saved(tmp_path / "fused.pt", {"model": deepcopy(other).fuse(verbose=False)})
    again = family.create(spec(weights=path), 3, 3)
    images = torch.rand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(again(images)[0], other(images)[0], rtol=1e-3, atol=1e-3)


def test_a_state_dict_loads(net: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "state.pt", net.state_dict())
    again = family.create(spec(weights=path), 3, 3)
    assert torch.equal(again.state_dict()["model.0.conv.weight"], net.state_dict()["model.0.conv.weight"])


def test_other_classes_start_new_branches_only_when_training(net: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "state.pt", net.state_dict())
    with pytest.raises(EdgeError, match="answer 3 classes, the data has 7"):
        family.create(spec(weights=path), 7, 3)
    again = family.create(spec(weights=path), 7, 3, new_head=True)
    assert family.head_of(again).nc == 7
    assert torch.equal(again.state_dict()["model.0.conv.weight"], net.state_dict()["model.0.conv.weight"])


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"name": "yolov8q"}, "did you mean|no model"),
        ({"image_size": 100}, "multiples of 32"),
        ({"weights": "yolov8s.pt"}, "no file `yolov8s.pt`"),
        ({"weights": Path("nowhere.pt")}, "do not exist"),
    ],
)
def test_bad_models_are_refused(more: dict[str, Any], why: str) -> None:
    with pytest.raises(EdgeError) as caught:
        family.create(spec(**more), 3, 3)
    assert any(part in f"{caught.value.message} {caught.value.hint}" for part in why.split("|"))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(pickle.dumps({"a": 1})[:-3])
    with pytest.raises(EdgeError, match=r"not a readable torch file|pickle"):
        family.create(spec(weights=path), 3, 3)


@pytest.mark.parametrize("size", [64, 96])
def test_what_ships_answers_as_the_network_decodes(net: Any, size: int) -> None:
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        theirs = net(images)[0]
        boxes, scores = family.deployed(net, size).net(images)
    centre, sides = theirs[:, :2].transpose(1, 2), theirs[:, 2:4].transpose(1, 2)
    assert np.allclose(boxes, torch.cat([centre - sides / 2, centre + sides / 2], dim=2), atol=1e-3)
    assert np.allclose(scores, theirs[:, 4:].transpose(1, 2), atol=1e-6)


def test_their_settings_file_is_not_the_users() -> None:
    from ultralytics.utils import AUTOINSTALL, ONLINE, USER_CONFIG_DIR

    assert not ONLINE
    assert not AUTOINSTALL
    assert Path.home() not in Path(USER_CONFIG_DIR).parents
