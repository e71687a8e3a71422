"""Small ONNX graphs whose float32 sums are exact in any order: every CPU, whatever its vectors, finds the same bits.

Weights are small integers times 1/4, inputs small integers, averages are over 16 or 64 values, and no graph is deep:
every value takes fewer than 20 of the 24 bits. Only `silu`, whose Sigmoid is a kernel of its own on every CPU, is not
exact: what is made of it is compared with a tolerance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGES = 12
_SIZE = 8


@dataclass
class Net:
    """A graph under construction; every method returns the name of the tensor that it made."""

    opset: int = 19
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, values: Any, dtype: type = np.float32) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def integers(self, name: str, shape: Sequence[int], most: int = 3) -> str:
        return self.constant(name, self.rng.integers(-most, most + 1, tuple(shape)) / 4)

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        made = [f"{name}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), made, name=name, **attributes))
        return made[0]

    def conv(self, x: str, after: int, before: int, *, kernel: int = 1, group: int = 1, **more: Any) -> str:
        name = f"w{len(self.nodes)}"
        weight = self.integers(name, (after, before // group, kernel, kernel))
        bias = self.integers(f"{name}b", (after,))
        return self.op("Conv", x, weight, bias, pads=[kernel // 2] * 4, group=group, **more)

    def head(self, x: str, channels: int) -> str:
        flat = self.op("Flatten", self.op("GlobalAveragePool", x))
        return self.op("Gemm", flat, self.integers("head", (4, channels)), self.integers("headb", (4,)), transB=1)

    def model(
        self, *outputs: str, inputs: Sequence[onnx.ValueInfoProto] = (), metadata: dict[str, str] | None = None,
        ranks: Sequence[int] = (2,),
    ) -> onnx.ModelProto:  # fmt: skip
        given = inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, _SIZE, _SIZE])]
        results = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"] + [None] * (rank - 1))
            for name, rank in zip(outputs, ranks, strict=True)
        ]
        graph = helper.make_graph(self.nodes, "exact", list(given), results, self.weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        helper.set_model_props(made, metadata or {})
        onnx.checker.check_model(made)
        return made


def arrays(channels: int = 3, size: int = _SIZE, seed: int = 1) -> np.ndarray:
    """Integers in -4..4, float32 (IMAGES, channels, size, size)."""
    return np.random.default_rng(seed).integers(-4, 5, (IMAGES, channels, size, size)).astype(np.float32)


def plain(opset: int = 19) -> onnx.ModelProto:
    net = Net(opset)
    x = net.op("Relu", net.conv("x", 8, 3, kernel=3))
    return net.model(net.head(net.op("Relu", net.conv(x, 16, 8)), 16))


def residual() -> onnx.ModelProto:
    net = Net()
    stem = net.op("Relu", net.conv("x", 8, 3, kernel=3))
    inner = net.conv(net.op("Relu", net.conv(stem, 8, 8)), 8, 8)
    return net.model(net.head(net.op("Relu", net.op("Add", inner, stem)), 8))


def depthwise() -> onnx.ModelProto:
    net = Net()
    limits = net.constant("zero", 0.0), net.constant("six", 6.0)
    x = net.op("Clip", net.conv("x", 8, 3), *limits)
    x = net.op("Clip", net.conv(x, 8, 8, kernel=3, group=8), *limits)
    return net.model(net.head(net.conv(x, 16, 8), 16))


def branches() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 8, 3))
    pooled = net.op("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
    both = net.op("Concat", net.conv(x, 8, 8), net.op("Relu", net.conv(pooled, 4, 8)), axis=1)
    return net.model(net.head(net.op("AveragePool", both, kernel_shape=[2, 2], strides=[2, 2]), 12))


def normalized() -> onnx.ModelProto:
    net = Net()
    x = net.conv("x", 8, 3, kernel=3)
    values = [net.integers(name, (8,)) for name in ("scale", "shift", "mean")]
    variance = net.constant("variance", np.tile([0.25, 1.0, 4.0, 16.0], 2))
    x = net.op("Relu", net.op("BatchNormalization", x, *values, variance, epsilon=0.0))
    return net.model(net.head(net.conv(x, 8, 8), 8))


def upsampled() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 8, 3, kernel=3, strides=[2, 2]))
    x = net.op("LeakyRelu", net.op("ConvTranspose", x, net.integers("t", (8, 4, 2, 2)), strides=[2, 2]), alpha=0.125)
    scales = net.constant("scales", [1, 1, 2, 2])
    x = net.op(
        "Resize", x, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )
    return net.model(net.conv(x, 2, 4), ranks=(4,))


def excited() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 8, 3))
    gate = net.op("HardSigmoid", net.conv(net.op("GlobalAveragePool", x), 8, 8), alpha=0.125, beta=0.5)
    return net.model(net.conv(net.op("Mul", x, gate), 4, 8), ranks=(4,))


def matrices() -> onnx.ModelProto:
    net = Net()
    x = net.op("Reshape", "x", net.constant("shape", [0, 3, 64], np.int64))
    x = net.op("Relu", net.op("Add", net.op("MatMul", x, net.integers("m1", (64, 16))), net.integers("b1", (16,))))
    x = net.op("MatMul", net.op("Transpose", x, perm=[0, 2, 1]), net.integers("m2", (3, 4)))
    return net.model(net.op("ReduceMean", x, net.constant("axis", [1], np.int64), keepdims=0), ranks=(2,))


def boxes() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 8, 3, kernel=3, strides=[2, 2]))
    flat = net.op("Reshape", net.conv(x, 6, 8), net.constant("shape", [0, 6, 16], np.int64))
    corners = net.op("Split", flat, net.constant("parts", [4, 2], np.int64), outputs=2, axis=1)
    scores = net.op("HardSigmoid", corners.replace("_0", "_1"), alpha=0.125, beta=0.5)
    scaled = net.op("Mul", corners, net.constant("stride", 2.0))
    return net.model(net.op("Concat", scaled, scores, axis=1), ranks=(3,))


def pixels() -> onnx.ModelProto:
    """As edgecnn exports: uint8 NHWC, normalized inside, its contract in the metadata."""
    net = Net()
    x = net.op("Transpose", net.op("Cast", "image", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    x = net.op("Sub", net.op("Mul", x, net.constant("unit", 1 / 16)), net.constant("half", 8.0))
    result = net.head(net.op("Relu", net.conv(x, 8, 3, kernel=3)), 8)
    contract = {
        "version": 1, "task": "classify", "normalization": None, "normalization_inside": True, "classes": list("abcd"),
        "input": {"name": "image", "layout": "NHWC", "dtype": "uint8", "range": [0, 255], "size": [8, 8],
                  "channels": 3, "color": "rgb", "fit": "crop"},
        "outputs": [{"name": result, "meaning": "class logits"}],
    }  # fmt: skip
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 8, 8, 3])
    return net.model(result, inputs=[image], metadata={"edgecnn.io": json.dumps(contract)})


def two_inputs() -> onnx.ModelProto:
    net = Net()
    first, second = net.conv("x", 8, 3), net.conv("y", 8, 3, kernel=3)
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, _SIZE, _SIZE]) for name in "xy"]
    x = net.op("Relu", net.op("Add", first, second))
    shared = net.integers("shared", (8, 8, 1, 1))
    total = net.op("Add", net.op("Conv", x, shared), net.op("Conv", first, shared))
    return net.model(net.head(total, 8), total, inputs=given, ranks=(2, 4))


def silu() -> onnx.ModelProto:
    net = Net()
    x = net.conv("x", 8, 3, kernel=3)
    x = net.op("Mul", x, net.op("Sigmoid", x))
    x = net.op("Add", net.conv(x, 8, 8), x)
    return net.model(net.head(net.op("Relu", x), 8))


GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {
    "plain": plain, "opset13": lambda: plain(13), "residual": residual, "depthwise": depthwise, "branches": branches,
    "normalized": normalized, "upsampled": upsampled, "excited": excited, "matrices": matrices, "boxes": boxes,
    "pixels": pixels, "two-inputs": two_inputs, "silu": silu,
}  # fmt: skip
INEXACT = ("silu",)
