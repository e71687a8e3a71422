"""Weight files: what is taken, what is refused and how it is said."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import save_file  # noqa: E402

from edgecnn.data import fit_image  # noqa: E402
from edgecnn.families import load_family, small  # noqa: E402
from edgecnn.families.weights import fit_state, read_weights  # noqa: E402
from edgecnn.process.errors import EdgeError  # noqa: E402
from edgecnn.recipe.recipe import ModelSpec  # noqa: E402

pytestmark = pytest.mark.train


def spec(weights: Path | None = None, name: str = "gap-s", family: str = "small", size: int = 16) -> ModelSpec:
    return ModelSpec.model_validate({"family": family, "name": name, "image_size": size, "weights": weights})


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".safetensors"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_files_that_are_taken(tmp_path: Path, suffix: str, wrapped: bool) -> None:
    net = small.create(spec(), 10, 3)
    state, path = net.state_dict(), tmp_path / f"net{suffix}"
    if wrapped:
        state = {f"module.{name}": value for name, value in state.items()}
    if suffix == ".safetensors":
        save_file(state, str(path))
    else:
        torch.save({"state_dict": state, "best_prec1": 91.7} if wrapped else state, path)
    again = small.create(spec(path), 10, 3).state_dict()
    assert all(torch.equal(again[name], value) for name, value in net.state_dict().items())


class Attack:
    """Pickles to a call of os.system."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "net.pt"
    torch.save({"weight": Attack(mark)}, path)
    with pytest.raises(EdgeError, match=r"holds more than weights: it asks for `posix.system`") as told:
        read_weights(path)
    assert "runs no code from a weights file" in told.value.hint
    assert "--trust-weights" in told.value.hint
    assert not mark.exists()


def test_a_whole_module_is_refused_by_class(tmp_path: Path) -> None:
    torch.save(small.create(spec(), 10, 3), tmp_path / "net.pt")
    with pytest.raises(EdgeError, match=r"it asks for `edgecnn.families.small.Gap`"):
        read_weights(tmp_path / "net.pt")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_whole_module_is_taken_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    net, path = small.create(spec(), 10, 3), tmp_path / "net.pt"
    torch.save({"epoch": 3, "model": net} if wrapped else net, path)
    monkeypatch.setenv("EDGECNN_TRUST_WEIGHTS", "1")
    again = small.create(spec(path), 10, 3).state_dict()
    assert all(torch.equal(again[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [("net.pt", b"not a pickle", "net.pt` is"), ("net.safetensors", b"short", "is not a readable safetensors file"),
     ("net.bin", b"", "have the ending `.bin`")],
)  # fmt: skip
def test_unreadable_files(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EdgeError, match=told):
        read_weights(tmp_path / name)


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "net.pt"))
    with pytest.raises(EdgeError, match="is a TorchScript archive"):
        read_weights(tmp_path / "net.pt")


def test_other_contents(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="do not exist"):
        read_weights(tmp_path / "none.pt")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    with pytest.raises(EdgeError, match="holds no state dict: `epoch` is int, not a tensor"):
        read_weights(tmp_path / "epoch.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(EdgeError, match="holds no state dict"):
        read_weights(tmp_path / "list.pt")


def test_shapes_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "wide.pt"
    torch.save(small.create(spec(name="gap-m"), 10, 3).state_dict(), path)
    with pytest.raises(EdgeError, match=r"don't fit .*: `features\.0\.0\.weight` is \(32, 3, 3, 3\), wanted \(16"):
        small.create(spec(path), 10, 3, new_head=True)


def test_another_number_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    net = small.create(spec(), 10, 3)
    torch.save(net.state_dict(), path)
    with pytest.raises(EdgeError, match="answer 10 classes, the data has 4") as told:
        small.create(spec(path), 4, 3)
    assert "train.epochs" in told.value.hint
    fresh = small.create(spec(path), 4, 3, new_head=True)
    assert fresh.linear.out_features == 4
    assert torch.equal(fresh.features[0][0].weight, net.features[0][0].weight)


@pytest.mark.parametrize(("family", "name"), [("torchvision", "mobilenet_v3_small"), ("timm", "resnet10t")])
def test_rgb_weights_answer_gray_images_alike(tmp_path: Path, family: str, name: str) -> None:
    create = load_family(spec(family=family).family).create
    rgb = create(spec(None, name, family, 64), 5, 3).eval()
    torch.save(rgb.state_dict(), tmp_path / "rgb.pt")
    gray = create(spec(tmp_path / "rgb.pt", name, family, 64), 5, 1).eval()
    image = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(gray(image), rgb(image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_half_precision_and_missing_counters_are_taken() -> None:
    net = small.create(spec(), 10, 3)
    half = {name: value.half() if value.is_floating_point() else value for name, value in net.state_dict().items()}
    old = {name: value for name, value in half.items() if not name.endswith("num_batches_tracked")}
    fit_state(net, old, "old file", new_head=False)
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda weight: torch.full_like(weight, float("nan")), "NaN"),
        (lambda weight: weight.to(torch.complex64), "holds torch.complex64"),
        (lambda weight: (weight * 100).to(torch.int8), "holds torch.int8, wanted torch.float32"),
        (lambda weight: weight.to_sparse(), "not a plain array"),
        (lambda weight: weight.to("meta"), "not a plain array"),
        (lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), "not a plain array"),
        (lambda weight: torch.nested.nested_tensor([weight[0], weight[1]]), "is a nested tensor"),
    ],
)
def test_tensors_that_are_no_weights_are_refused(
    tmp_path: Path, changed: Callable[[torch.Tensor], torch.Tensor], told: str
) -> None:
    net = small.create(spec(), 10, 3)
    name = "features.0.0.weight"
    torch.save({**net.state_dict(), name: changed(net.state_dict()[name])}, tmp_path / "net.pt")
    with pytest.raises(EdgeError, match=f"`{name}` .*{told}"):
        small.create(spec(tmp_path / "net.pt"), 10, 3)


@pytest.mark.parametrize(("file", "top1"), [("resnet20_jpeg_finetuned.pt", 87.68), ("resnet32-d509ac18.th", 82.56)])
def test_published_weights_score_as_published(packs: Path, file: str, top1: float) -> None:
    from PIL import Image

    count = 1000
    with np.load(packs / "cifar10-jpeg" / "cifar10_test_jpeg.npz") as pack:
        labels = pack["labels"][:count].astype(np.int64)
        blob, offsets = pack["blob"], pack["offsets"]
        encoded = [blob[offsets[n] : offsets[n + 1]].tobytes() for n in range(count)]
    import io

    images = np.stack([np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in encoded])
    assert fit_image(images[0], 32, "crop").shape == (32, 32, 3)
    model = spec(packs / "resnet-cifar10" / file, file.split("_")[0].split("-")[0], size=32)
    net = small.create(model, 10, 3).eval()
    numbers = model.normalization(3)
    mean, std = (torch.tensor(part).reshape(1, 3, 1, 1) for part in (numbers.mean, numbers.std))
    right = 0
    with torch.no_grad():
        for start in range(0, count, 250):
            batch = torch.from_numpy(images[start : start + 250]).permute(0, 3, 1, 2).float() / 255
            right += int((net((batch - mean) / std).argmax(1).numpy() == labels[start : start + 250]).sum())
    assert 100 * right / count == pytest.approx(top1, abs=3.0)
