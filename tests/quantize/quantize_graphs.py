"""Small ONNX graphs for the quantizer's tests, built node by node, and images to calibrate them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgecnn.recipe.device import Scheme
from edgecnn.recipe.io_contract import InputContract, IoContract, OutputContract

TENSORRT = Scheme(activations="int8-symmetric", islands="float16", placement="tensorrt")
CPU = Scheme(activations="uint8-asymmetric", bias="int32", placement="onnxruntime")
CPU_7BIT = CPU.model_copy(update={"weights": "int8-per-channel-7bit"})
OPENVINO = Scheme(activations="uint8-asymmetric", placement="openvino")
ARM = Scheme(activations="int8-asymmetric", bias="int32", placement="onnxruntime")


class Pictures:
    """Calibration images in memory."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, start: int, stop: int) -> np.ndarray:
        return self.images[start:stop]


class Net:
    """A graph under construction; every method returns the name of the tensor that it made."""

    def __init__(self, channels: int = 8, size: int = 8, opset: int = 19, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.opset = opset
        self.shape = ["batch", channels, size, size]

    def constant(self, name: str, array: np.ndarray) -> str:
        self.weights.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: object) -> str:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def conv(
        self, x: str, out: int, channels: int, *, kernel: int = 3, name: str | None = None, bias: bool = True,
        group: int = 1,
    ) -> str:  # fmt: skip
        name = name or f"conv{len(self.nodes)}"
        shape = (out, channels // group, kernel, kernel)
        std = 1.0 / np.sqrt(np.prod(shape[1:]))
        inputs = [x, self.constant(f"{name}.weight", (self.rng.standard_normal(shape) * std).astype(np.float32))]
        if bias:
            inputs.append(self.constant(f"{name}.bias", (self.rng.standard_normal(out) * 0.1).astype(np.float32)))
        return self.op("Conv", *inputs, name=name, pads=[kernel // 2] * 4, kernel_shape=[kernel] * 2, group=group)

    def head(self, x: str, channels: int, classes: int = 4) -> str:
        pooled = self.op("GlobalAveragePool", x, name="pool")
        flat = self.op("Flatten", pooled, name="flatten")
        weight = self.constant("head.weight", self.rng.standard_normal((classes, channels)).astype(np.float32))
        bias = self.constant("head.bias", np.zeros(classes, np.float32))
        return self.op("Gemm", flat, weight, bias, name="head", transB=1)

    def model(self, output: str, rank: int = 2, inputs: Sequence[onnx.ValueInfoProto] = ()) -> onnx.ModelProto:
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, self.shape)
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch"] + [None] * (rank - 1))
        graph = helper.make_graph(self.nodes, "net", [image, *inputs], [result], self.weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)
        onnx.checker.check_model(made)
        return made

    def save(self, path: Path, output: str, rank: int = 2) -> Path:
        onnx.save(self.model(output, rank), str(path))
        return path


def contract(channels: int = 3, size: int = 8, name: str = "image") -> IoContract:
    """float32 NCHW in 0..1, nothing to normalize."""
    return IoContract(
        task="classify",
        input=InputContract(
            name=name, layout="NCHW", dtype="float32", range=(0.0, 1.0), size=(size, size), channels=channels,
            color="rgb", fit="stretch",
        ),
        normalization=None, normalization_inside=True, classes=(),
        outputs=(OutputContract(name="out", meaning="logits"),),
    )  # fmt: skip


def pictures(count: int = 12, size: int = 8, channels: int = 3, seed: int = 1) -> Pictures:
    return Pictures(np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), np.uint8))


def residual_net(path: Path) -> Path:
    """conv → relu → [conv → relu → conv] + skip → relu → head, with 16 channels."""
    net = Net(3)
    stem = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="stem_relu")
    inner = net.op("Relu", net.conv(stem, 16, 16, name="first"), name="first_relu")
    total = net.op("Add", net.conv(inner, 16, 16, name="second"), stem, name="add")
    return net.save(path, net.head(net.op("Relu", total, name="last_relu"), 16))
