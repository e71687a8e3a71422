"""Exported ONNX: answers as torch does, says what it takes, and carries no trace of where it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import onnx  # noqa: E402
import onnxruntime  # noqa: E402

from edgecnn.families.export import export  # noqa: E402
from edgecnn.families.onnx_graph import Preprocessed, translate, work  # noqa: E402
from edgecnn.families.trained import WEIGHTS, ModelCard, read_trained, write_state  # noqa: E402
from edgecnn.process.errors import EdgeError  # noqa: E402
from edgecnn.recipe.io_contract import read_contract  # noqa: E402
from edgecnn.recipe.recipe import ExportSpec, Normalization  # noqa: E402

pytestmark = pytest.mark.train


def exported(made: Any, out: Path, **spec: Any) -> onnx.ModelProto:
    model_spec, artifact = made
    out.mkdir(exist_ok=True)
    job = {"spec": spec, "family": model_spec.family, "model": str(artifact.path), "out": str(out)}
    work(job)
    return onnx.load(str(out / "model.onnx"))


def answers(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


def expected(folder: Path, images: np.ndarray) -> np.ndarray:
    trained = read_trained(folder)
    mean, std = (
        torch.tensor(part).reshape(1, -1, 1, 1)
        for part in (trained.card.normalization.mean, trained.card.normalization.std)
    )
    with torch.no_grad():
        values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        return trained.net((values - mean) / std).numpy()


@pytest.mark.parametrize(
    ("family", "name", "size", "channels"),
    [("small", "resnet20", 32, 3), ("small", "simple", 17, 1), ("torchvision", "resnet18", 64, 3),
     ("timm", "mobilenetv3_small_100", 64, 3)],
)  # fmt: skip
def test_uint8_input_answers_as_torch(
    made: Any, tmp_path: Path, family: str, name: str, size: int, channels: int
) -> None:
    both = made(family, name, size, channels=channels)
    model = exported(both, tmp_path / "out")
    images = np.random.default_rng(1).integers(0, 256, (5, size, size, channels), dtype=np.uint8)
    wanted = expected(both[1].path, images)
    np.testing.assert_allclose(
        answers(tmp_path / "out" / "model.onnx", images), wanted, atol=2e-4 * max(1, abs(wanted).max())
    )
    operators = [node.op_type for node in model.graph.node]
    assert "BatchNormalization" not in operators
    assert operators[:4] == ["Cast", "Transpose", "Mul", "Add"]
    assert operators.count("GlobalAveragePool") == 1
    assert not {"Gather", "Range", "Shape"} & set(operators)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 19)]
    assert model.ir_version == 9
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_float_input_and_fixed_batch(made: Any, tmp_path: Path) -> None:
    both = made("small", "gap-s", 8, channels=1, normalize="half")
    model = exported(both, tmp_path / "out", input="float01-nchw", batch=4)
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [4, 1, 8, 8]
    assert [node.op_type for node in model.graph.node][:2] == ["Mul", "Add"]
    images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    floats = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.testing.assert_allclose(
        answers(tmp_path / "out" / "model.onnx", floats), expected(both[1].path, images), atol=1e-4
    )
    contract = read_contract(tmp_path / "out" / "model.onnx")
    assert contract
    assert contract.input.layout == "NCHW"
    assert contract.input.range == (0.0, 1.0)


def test_contract_feeds_the_model(made: Any, tmp_path: Path) -> None:
    exported(made("small", "gap-s", 8), tmp_path / "out")
    contract = read_contract(tmp_path / "out" / "model.onnx")
    assert contract
    assert contract.classes == tuple(f"class {number}" for number in range(10))
    assert contract.normalization_inside
    assert contract.input.size == (8, 8)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    ((name, values),) = contract.feed(images).items()
    assert name == "images"
    assert answers(tmp_path / "out" / "model.onnx", values).shape == (2, 10)


def test_names_follow_the_torch_modules(made: Any, tmp_path: Path) -> None:
    both = made("small", "resnet20", 32)
    model = exported(both, tmp_path / "out")
    net = read_trained(both[1].path).net
    convolutions = {name for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d)}
    weights = {weight.name for weight in model.graph.initializer}
    assert {f"{name}.{part}" for name in convolutions for part in ("weight", "bias")} <= weights
    nodes = {node.name: node for node in model.graph.node}
    assert len(nodes) == len(model.graph.node)
    assert nodes["layer2.0.conv1"].op_type == "Conv"
    assert nodes["layer2.0.add"].op_type == "Add"
    assert list(nodes["linear"].input[1:]) == ["linear.weight", "linear.bias"]
    assert not [name for name in weights if name.startswith("val_")]


@pytest.mark.slow
def test_same_model_from_two_folders_is_the_same_bytes(made: Any, tmp_path: Path, monkeypatch: Any) -> None:
    spec, artifact = made("small", "gap-s", 8, channels=1)
    files = []
    for place in ("here", "there/below"):
        (tmp_path / place / "out").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / place)
        export(tmp_path / place / "out", ExportSpec(), spec, artifact)
        files.append((tmp_path / place / "out" / "model.onnx").read_bytes())
        assert {path.name for path in (tmp_path / place / "out").iterdir()} == {"model.onnx", "resume"}
    assert files[0] == files[1]
    for trace in (str(tmp_path), "onnx_graph.py", "site-packages", "stack_trace"):
        assert trace.encode() not in files[0]


def test_a_network_that_answers_nan_is_not_delivered(made: Any, tmp_path: Path) -> None:
    both = made("small", "gap-s", 8)
    net = read_trained(both[1].path).net
    with torch.no_grad():  # weights that are numbers, and a sum of both infinities
        net.linear.weight[:, ::2], net.linear.weight[:, 1::2] = 3e38, -3e38
    write_state(both[1].path / WEIGHTS, net.state_dict())
    with pytest.raises(EdgeError, match="ONNX file and torch give different results"):
        exported(both, tmp_path / "out")


class Pooled(torch.nn.Module):
    """Pools its image to rows x columns and answers them."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.pool = torch.nn.AdaptiveAvgPool2d((rows, columns))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(x).flatten(1)


def test_pooling_to_a_grid_is_one_node_or_refused() -> None:
    card = ModelCard(
        family="small", name="pooled", dropout=0.0, width=1.0, classes=("a", "b"), channels=1, color="gray", fit="crop",
        image_size=6, normalization=Normalization(mean=(0.0,), std=(1.0,)),
    )  # fmt: skip
    spec = ExportSpec()
    model = translate(Preprocessed(Pooled(2, 3), card, spec).eval(), card, spec)
    pools = [node for node in model.graph if node.op_type == "AveragePool"]
    assert [list(node.attributes["kernel_shape"].as_ints()) for node in pools] == [[3, 2]]
    with pytest.raises(EdgeError, match="pools 6x6 to 7x7, which no ONNX operator does"):
        translate(Preprocessed(Pooled(7, 7), card, spec).eval(), card, spec)
