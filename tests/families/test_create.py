"""Networks by name: shapes, names, errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from edgecnn.families import SMALL_NAMES, check_name, load_family, missing, small  # noqa: E402
from edgecnn.process.errors import EdgeError  # noqa: E402
from edgecnn.recipe.recipe import ModelSpec  # noqa: E402

pytestmark = pytest.mark.train


def spec(name: str, family: str = "small", size: int = 32, **more: object) -> ModelSpec:
    return ModelSpec.model_validate({"family": family, "name": name, "image_size": size, **more})


@pytest.mark.parametrize("name", SMALL_NAMES)
@pytest.mark.parametrize(("size", "channels"), [(4, 1), (33, 3)])
def test_small_networks_take_any_size(name: str, size: int, channels: int) -> None:
    net = small.create(spec(name, size=size), 7, channels).eval()
    with torch.no_grad():
        assert net(torch.zeros(2, channels, size, size)).shape == (2, 7)


def test_cifar_resnets_have_the_published_sizes() -> None:
    published = {"resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018}
    for name, count in published.items():
        assert sum(weight.numel() for weight in small.create(spec(name), 10, 3).parameters()) == count


def test_shortcut_pads_channels_on_both_sides() -> None:
    block = small.Residual(2, 6, 2).eval()
    for convolution in (block.conv1, block.conv2):
        torch.nn.init.zeros_(convolution.weight)
    x = torch.arange(1, 33, dtype=torch.float32).reshape(1, 2, 4, 4)
    with torch.no_grad():
        out = block(x)
    assert out.shape == (1, 6, 2, 2)
    assert torch.equal(out[:, 2:4], x[:, :, ::2, ::2])
    assert not bool(out[:, [0, 1, 4, 5]].any())


def test_width_multiplies_channels() -> None:
    assert small.create(spec("resnet20", width=2.0), 10, 3).linear.in_features == 128
    assert small.create(spec("gap-s", width=0.5), 10, 1).linear.in_features == 32


@pytest.mark.parametrize(
    ("family", "name", "nearest"),
    [("small", "gap-x", "gap-"), ("small", "resnet21", "resnet20"), ("torchvision", "resnet81", "resnet18"),
     ("timm", "mobilnetv3_small_100", "mobilenetv3_small_100")],
)  # fmt: skip
def test_unknown_model_offers_the_nearest(family: str, name: str, nearest: str) -> None:
    for ask in (check_name, lambda model: load_family(model.family).create(model, 10, 3)):
        with pytest.raises(EdgeError, match=f"family `{family}` has no model `{name}`") as told:
            ask(spec(name, family))
        assert nearest in told.value.hint


def test_known_models_pass() -> None:
    check_name(spec("resnet18", "torchvision"))
    check_name(spec("resnet18.a1_in1k", "timm"))


@pytest.mark.parametrize(
    ("family", "name", "size"),
    [("torchvision", "mobilenet_v3_small", 64), ("torchvision", "squeezenet1_1", 64), ("torchvision", "vit_b_32", 64),
     ("timm", "resnet10t", 64), ("timm", "vit_tiny_patch16_224", 64)],
)  # fmt: skip
def test_library_models_take_gray_images(family: str, name: str, size: int) -> None:
    net = load_family(spec(name, family).family).create(spec(name, family, size), 4, 1).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 1, size, size)).shape == (1, 4)


def test_dropout_is_the_recipes() -> None:
    net = load_family("torchvision").create(spec("mobilenet_v3_small", "torchvision", 64, dropout=0.35), 4, 3)
    assert {layer.p for layer in net.modules() if isinstance(layer, torch.nn.Dropout)} == {0.35}
    assert load_family("timm").create(spec("resnet10t", "timm", 64, dropout=0.35), 4, 3).drop_rate == 0.35
    with pytest.raises(EdgeError, match="torchvision's `resnet18` has no dropout layer"):
        load_family("torchvision").create(spec("resnet18", "torchvision", 64, dropout=0.1), 4, 3)


def test_image_size_that_a_network_cannot_take() -> None:
    with pytest.raises(EdgeError, match="torchvision's `alexnet` can't take images of 16 pixels") as told:
        load_family("torchvision").create(spec("alexnet", "torchvision", 16), 4, 3)
    assert "model.image_size" in told.value.hint


def test_library_weights_are_listed() -> None:
    assert load_family("torchvision").library_weights("resnet50") == ("DEFAULT", "IMAGENET1K_V1", "IMAGENET1K_V2")
    assert "a1_in1k" in load_family("timm").library_weights("resnet18")
    assert load_family("small").library_weights("gap-s") == ()


@pytest.mark.parametrize(
    ("family", "name", "weights", "told"),
    [("torchvision", "resnet18", "IMAGENET1K_V9", "torchvision has no weights `IMAGENET1K_V9` for `resnet18`"),
     ("timm", "resnet18", "a9_in1k", "timm has no weights `a9_in1k` for `resnet18`"),
     ("small", "gap-s", "best", "no file `best`, and family `small` has no weights of its own")],
)  # fmt: skip
def test_unknown_library_weights(family: str, name: str, weights: str, told: str) -> None:
    with pytest.raises(EdgeError, match=told):
        load_family(spec(name, family).family).create(spec(name, family, weights=weights), 1000, 3)


NOWHERE = "http://127.0.0.1:9"  # the discard port: refused at once


def test_torchvision_weights_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("https_proxy", NOWHERE)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(EdgeError, match="weights `DEFAULT` for `resnet18` could not be fetched") as told:
        load_family("torchvision").create(spec("resnet18", "torchvision", weights="DEFAULT"), 1000, 3)
    assert "download https://download.pytorch.org/models/resnet18" in told.value.hint
    assert "write `model.weights: ./resnet18" in told.value.hint


OFFLINE = """
from edgecnn.process.errors import EdgeError
from edgecnn.families import timm
from edgecnn.recipe.recipe import ModelSpec
try:
    timm.create(ModelSpec(family="timm", name="resnet18", weights="pretrained", image_size=64), 1000, 3)
except EdgeError as error:
    print(error)
"""


def test_timm_weights_offline(tmp_path: Path) -> None:
    # A process of its own: huggingface_hub reads its settings once, when it is imported.
    environment = {**os.environ, "https_proxy": NOWHERE, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", OFFLINE]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
    assert "timm's weights `resnet18` could not be fetched" in told
    assert "download https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors" in told


def test_missing_names_the_file() -> None:
    found = missing(spec("gap-s", weights=Path("/nowhere/best.pt")))
    assert [what for what, _, _ in found] == ["weights `/nowhere/best.pt` do not exist"]
    assert missing(spec("gap-s")) == []


def test_asking_what_is_missing_needs_no_torch() -> None:
    code = "import sys, edgecnn.families, edgecnn.families.export, edgecnn.training; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer.strip() == "False"


@pytest.mark.parametrize(("family", "name", "size"), [("torchvision", "alexnet", 96), ("torchvision", "vgg11", 300)])
def test_pooling_that_cannot_be_exported_is_refused_before_training(family: str, name: str, size: int) -> None:
    with pytest.raises(EdgeError, match=r"pools (2x2|9x9) to [67]x[67], which no ONNX operator does"):
        load_family(spec(name, family).family).create(spec(name, family, size), 3, 3)
