"""Torch files that name classes: nothing of a class is called, and the state is what the class would have told."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from edgecnn.families.weights import read_weights  # noqa: E402
from edgecnn.process import progress  # noqa: E402
from edgecnn.process.errors import EdgeError  # noqa: E402

pytestmark = pytest.mark.train
MARK = "was_run"


def saved(folder: Path, content: Any, name: str = "net.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


class Calls:
    """Pickles to a call of a class or function with arguments."""

    def __init__(self, called: Any, *arguments: Any) -> None:
        self.called, self.arguments = called, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.called, self.arguments


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """What is said meanwhile."""
    said: list[str] = []
    shown = progress.Plain()
    shown.note = said.append  # type: ignore[method-assign]
    with progress.showing(shown):
        yield said


def yolo() -> Any:
    if find_spec("ultralytics") is None:
        pytest.skip("the extra [yolo] is not installed")
    from edgecnn.families import ultralytics

    return ultralytics


def test_a_network_class_is_not_called(desk: Path) -> None:
    """Ultralytics evaluates `activation` of the layers that its class is called with."""
    family = yolo()
    from ultralytics.nn.tasks import DetectionModel

    layers = {**family.layers_of("yolov8n"), "activation": f"open({MARK!r}, 'w') and torch.nn.SiLU()"}
    path = saved(desk, {"model": Calls(DetectionModel, layers), "ema": None})
    with pytest.raises(EdgeError, match="no state dict"):
        family.read_checkpoint(path)
    assert not Path(MARK).exists()


def touch(name: str) -> None:
    """What a library could have declared safe to call."""
    Path(name).touch()


def test_what_a_library_declared_safe_is_not_called(desk: Path) -> None:
    path = saved(desk, {"state_dict": {"a": torch.ones(1)}, "beside": Calls(touch, MARK)})
    with torch.serialization.safe_globals([touch]):
        with pytest.raises(EdgeError, match="touch"):
            read_weights(path)
        assert touch in torch.serialization.get_safe_globals()
    assert not Path(MARK).exists()


@pytest.mark.parametrize("called", [os.system, eval, exec, pickle.loads, nn.Module.apply, torch.load, torch.hub.load])
def test_functions_are_refused_by_name(desk: Path, called: Any) -> None:
    path = saved(desk, {"state_dict": {"a": torch.ones(1)}, "beside": Calls(called, f"open({MARK!r}, 'w')")})
    with pytest.raises(EdgeError, match="holds more than weights"):
        read_weights(path)
    assert not Path(MARK).exists()


def test_a_file_in_torchs_cache_is_not_run(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgecnn.families import fetched_file, torchvision
    from edgecnn.recipe.recipe import ModelSpec

    monkeypatch.setenv("TORCH_HOME", str(desk / "torch"))
    path = fetched_file("resnet18-f37072fd.pth")
    path.parent.mkdir(parents=True)
    saved(path.parent, {"a": Calls(eval, f"open({MARK!r}, 'w')")}, path.name)
    model = ModelSpec(family="torchvision", name="resnet18", weights="IMAGENET1K_V1", image_size=32)
    with pytest.raises(EdgeError, match="a pickle that holds more than weights"):
        torchvision.create(model, 1000, 3)
    assert not Path(MARK).exists()


def same(state: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return list(state) == list(wanted) and all(
        value.dtype == wanted[name].dtype and torch.equal(value, wanted[name]) for name, value in state.items()
    )


@pytest.mark.parametrize("kind", ["model", "ema", "fused", "half", "data-parallel", "distilled", "trained"])
def test_whole_networks_are_read_bit_by_bit(tmp_path: Path, kind: str) -> None:
    from copy import deepcopy

    family = yolo()
    torch.manual_seed(0)
    net = family.DetectionModel(family.layers_of("yolov8n"), ch=3, nc=2, verbose=False)
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    wanted, content = net.state_dict(), {"model": net, "ema": None}
    match kind:
        case "ema":
            other = deepcopy(net)
            other.model[0].conv.weight.data.zero_()
            content = {"model": other, "ema": net}
        case "fused":
            net = net.fuse(verbose=False)
            wanted, content = net.state_dict(), {"model": net, "ema": None}
        case "half":
            wanted = net.half().state_dict()
        case "data-parallel":
            content = {"model": nn.DataParallel(net)}
        case "distilled":
            module = pytest.importorskip("ultralytics.nn.distill_model")
            net.args = argparse.Namespace(imgsz=64, dis=6.0)
            content = {"model": None, "ema": module.DistillationModel(deepcopy(net), net)}
        case "trained":
            from types import SimpleNamespace

            net.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
            net.criterion = net.init_criterion()
            content |= {"best_fitness": __import__("numpy").float64(0.5), "train_args": {"data": Path("a/b.yaml")}}
    state = family.read_checkpoint(saved(tmp_path, content))
    assert same(state, wanted)


def test_buffers_that_are_not_saved_are_not_read(tmp_path: Path) -> None:
    family = yolo()
    net = nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.ReLU())
    net.register_buffer("passing", torch.ones(1), persistent=False)
    assert same(family.read_checkpoint(saved(tmp_path, {"model": net})), net.state_dict())


def test_networks_that_hold_themselves_are_refused(tmp_path: Path) -> None:
    family = yolo()
    circle = nn.Sequential(nn.Identity())
    circle._modules["0"] = circle
    wide: nn.Module = nn.ReLU()
    for _ in range(40):  # 2 ** 40 ways down, without a tensor at the end
        wide = nn.Sequential(wide, wide)
    for net in (circle, wide):
        with pytest.raises(EdgeError, match="no state dict"):
            family.read_checkpoint(saved(tmp_path, {"model": net}))


def test_what_lies_beside_weights_is_not_read(tmp_path: Path) -> None:
    import datetime

    import numpy as np

    beside = {
        "args": argparse.Namespace(lr=0.1), "where": Path("a"), "best": np.float32(0.5), "curve": np.arange(3),
        "when": datetime.datetime(2020, 1, 1),
    }  # fmt: skip
    path = saved(tmp_path, {"state_dict": OrderedDict(a=torch.ones(1)), **beside})
    assert list(read_weights(path)) == ["a"]


def test_packed_records_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.zeros(1 << 20)})
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(EdgeError, match="its records would take"):
        read_weights(tmp_path / "small.pt")


@pytest.mark.parametrize("whole", [True, False])
def test_a_number_that_would_fill_the_memory_is_refused(tmp_path: Path, whole: bool) -> None:
    asking = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (3 << 30).to_bytes(5, "little") + b"\x85R."
    path = tmp_path / "w.pt"
    path.write_bytes(asking)
    if whole:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", asking)
            archive.writestr("w/version", "3\n")
    with pytest.raises(EdgeError, match="asks for `bytearray`"):
        read_weights(path)


# --- which weights of a file ---

RAW, MEAN = {"a.weight": torch.zeros(2), "a.bias": torch.zeros(1)}, {"a.weight": torch.ones(2), "a.bias": torch.ones(1)}
COUNTED = {"n_averaged": torch.tensor(9), **{f"module.{name}": value for name, value in MEAN.items()}}
FLAT = {f"model.{n}": v for n, v in RAW.items()} | {f"ema_model.module.{n}": v for n, v in MEAN.items()}


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"epoch": 9, "state_dict": RAW, "state_dict_ema": MEAN}, "state_dict_ema"),  # timm
        ({"epoch": 9, "model": RAW, "model_ema": COUNTED}, "model_ema"),  # torchvision's references
        ({"model": RAW, "ema": {"module": MEAN, "updates": 3}}, "ema"),
        ({"model_state_dict": RAW, "ema_state_dict": MEAN}, "ema_state_dict"),
        (FLAT, "ema_model"),
    ],
)
def test_averaged_weights_are_taken_and_it_is_said(
    tmp_path: Path, content: dict[str, Any], key: str, notes: list[str]
) -> None:
    state = read_weights(saved(tmp_path, content))
    assert same(state, MEAN)
    assert f"`{key}" in notes[0]


def test_averaged_weights_alone(tmp_path: Path, notes: list[str]) -> None:
    assert same(read_weights(saved(tmp_path, COUNTED)), MEAN)
    assert same(read_weights(saved(tmp_path, {"ema": MEAN, "model": None})), MEAN)
    assert notes == []


@pytest.mark.parametrize("ema", [None, 0.999, {}])
def test_a_setting_is_not_taken_for_averaged_weights(tmp_path: Path, ema: Any, notes: list[str]) -> None:
    state = read_weights(saved(tmp_path, {"model": RAW, "ema": ema}))
    assert same(state, RAW)


def test_averaged_weights_in_another_form_are_told(tmp_path: Path, notes: list[str]) -> None:
    content = {"model": RAW, "ema": {"decay": 0.99, "shadow_params": list(MEAN.values())}}
    assert same(read_weights(saved(tmp_path, content)), RAW)
    assert "not used" in notes[0]


def test_a_layer_called_ema_is_a_layer(tmp_path: Path, notes: list[str]) -> None:
    net = {"ema.weight": torch.ones(1), "stem.weight": torch.zeros(1), "stem.bias": torch.zeros(1)}
    assert same(read_weights(saved(tmp_path, {"ema.group.weight": torch.ones(1), **net})), {
        "ema.group.weight": torch.ones(1), **net
    })  # fmt: skip
    assert notes == []
