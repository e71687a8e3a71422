"""INT8 of a trained ResNet-20 on CIFAR-10 test images, against its float model. The net is written node by node."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from quantize_graphs import CPU_7BIT, TENSORRT, Net, Pictures, contract

from edgecnn.quantize import quantize_model
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.recipe import Normalization, QuantizeSpec

IMAGES = 1000
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def state_dict(path: Path) -> dict[str, np.ndarray]:
    """A plain torch state dict of contiguous float tensors, read without torch: a zip of a pickle and raw storages."""
    archive = zipfile.ZipFile(path)
    root = archive.namelist()[0].split("/")[0]

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            if name == "_rebuild_tensor_v2":
                return lambda storage, offset, size, *_: storage[offset : offset + int(np.prod(size))].reshape(size)
            if name == "OrderedDict":
                return dict
            if name in ("FloatStorage", "LongStorage"):
                return {"FloatStorage": np.float32, "LongStorage": np.int64}[name]
            raise pickle.UnpicklingError(f"{module}.{name}")

        def persistent_load(self, pid: tuple[str, type, str, str, int]) -> np.ndarray:
            return np.frombuffer(archive.read(f"{root}/data/{pid[2]}"), pid[1])

    loaded: dict[str, np.ndarray] = Reader(io.BytesIO(archive.read(f"{root}/data.pkl"))).load()
    return loaded


def resnet20(path: Path, weights: dict[str, np.ndarray]) -> Path:
    """The CIFAR ResNet-20 with parameter-free shortcuts, BatchNorm as nodes; input float NCHW, normalized."""
    net = Net(3, 32)

    def convolved(x: str, name: str, norm: str, stride: int = 1) -> str:
        weight = net.constant(f"{name}.weight", weights[f"{name}.weight"])
        x = net.op("Conv", x, weight, name=name, strides=[stride] * 2, pads=[1] * 4)
        parts = ("weight", "bias", "running_mean", "running_var")
        return net.op("BatchNormalization", x, *(net.constant(f"{norm}.{p}", weights[f"{norm}.{p}"]) for p in parts))

    def whole(name: str, values: list[int]) -> str:
        return net.constant(name, np.asarray(values, np.int64))

    x = net.op("Relu", convolved("image", "conv1", "bn1"))
    for stage in (1, 2, 3):
        for block in range(3):
            name, first = f"layer{stage}.{block}", block == 0 and stage > 1
            y = net.op("Relu", convolved(x, f"{name}.conv1", f"{name}.bn1", 2 if first else 1))
            y = convolved(y, f"{name}.conv2", f"{name}.bn2")
            if first:
                ends = [whole(f"{name}.{n}", v) for n, v in
                        (("from", [0, 0]), ("to", [32, 32]), ("axes", [2, 3]), ("steps", [2, 2]))]  # fmt: skip
                more = 4 * 2 ** (stage - 1)
                pads = whole(f"{name}.pads", [0, more, 0, 0, 0, more, 0, 0])
                x = net.op("Pad", net.op("Slice", x, *ends), pads)
            x = net.op("Relu", net.op("Add", x, y))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    head = [net.constant(f"linear.{part}", weights[f"linear.{part}"]) for part in ("weight", "bias")]
    return net.save(path, net.op("Gemm", x, *head, transB=1, name="linear"))


def decoded(path: Path, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pack = np.load(path)
    offsets, blob = pack["offsets"], pack["blob"].tobytes()
    images = [np.asarray(Image.open(io.BytesIO(blob[offsets[i] : offsets[i + 1]])).convert("RGB")) for i in ids]
    return np.stack(images), pack["labels"][ids]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "least_db"),
    [
        pytest.param(TENSORRT, 30.0, id="tensorrt"),
        pytest.param(
            CPU_7BIT, 27.5, id="cpu-7bit", marks=pytest.mark.full(reason="the other scheme, by the same code")
        ),
    ],
)
def test_trained_resnet20_keeps_its_accuracy(packs: Path, tmp_path: Path, scheme: Scheme, least_db: float) -> None:
    model = resnet20(tmp_path / "float.onnx", state_dict(packs / "resnet-cifar10" / "resnet20_jpeg_finetuned.pt"))
    train, _ = decoded(
        packs / "cifar10-jpeg" / "cifar10_train_jpeg.npz", np.random.default_rng(0).permutation(50000)[:256]
    )
    test, labels = decoded(packs / "cifar10-jpeg" / "cifar10_test_jpeg.npz", np.arange(IMAGES))
    given = contract(size=32).model_copy(
        update={"normalization": Normalization(mean=MEAN.tolist(), std=STD.tolist()), "normalization_inside": False}
    )
    quantize_model(tmp_path, QuantizeSpec(images=256), scheme, model, Pictures(train), given)
    assert json.loads((tmp_path / "quantize.json").read_text())["coverage"]["macs"] >= 0.95

    def logits(path: Path, level: onnxruntime.GraphOptimizationLevel) -> np.ndarray:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, given.feed(test[i : i + 50]))[0] for i in range(0, IMAGES, 50)])

    levels = onnxruntime.GraphOptimizationLevel
    simulated = scheme is TENSORRT
    exact = logits(model, levels.ORT_ENABLE_ALL)
    int8 = logits(tmp_path / "model.onnx", levels.ORT_DISABLE_ALL if simulated else levels.ORT_ENABLE_ALL)
    right = [float((values.argmax(1) == labels).mean()) for values in (exact, int8)]
    assert right[0] > 0.86
    assert right[0] - right[1] <= 0.010  # 1,000 images: ten of them
    assert 10 * np.log10(np.square(exact).sum() / np.square(exact - int8).sum()) >= least_db
