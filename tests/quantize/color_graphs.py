"""A classifier whose answers can be told by eye: an image of one colour is the class of its brightest channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper
from quantize_graphs import Pictures

from edgecnn.quantize.ladder.candidate import Candidate
from edgecnn.quantize.ladder.judge import Selected
from edgecnn.quantize.place.placement import Placement
from edgecnn.recipe.io_contract import InputContract, IoContract, OutputContract

SIZE = 8
CONTRACT = IoContract(
    task="classify",
    input=InputContract(
        name="image", layout="NCHW", dtype="float32", range=(0.0, 1.0), size=(SIZE, SIZE), channels=3, color="rgb",
        fit="stretch",
    ),
    normalization=None, normalization_inside=True, classes=("red", "green", "blue"),
    outputs=(OutputContract(name="logits", meaning="logits"),),
)  # fmt: skip
IDENTITY = np.eye(3, dtype=np.float32)


def color_net(
    first: np.ndarray = IDENTITY, second: np.ndarray = IDENTITY, *, batch: str | int = "batch", flat: bool = False
) -> onnx.ModelProto:
    """1×1 conv → relu → 1×1 conv → mean over the image → logits (N, 9), of which six are zero.

    Args:
        first, second: (3, 3) weights; every channel between stands three times, as INT8 asks for eight and more.
        flat: the answers of a batch in one row, as a graph with a fixed reshape gives them.
    """
    nodes = [
        helper.make_node("Conv", ["image", "first.weight"], ["a"], "first", kernel_shape=[1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "second.weight"], ["c"], "second", kernel_shape=[1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], "pool"),
        helper.make_node("Reshape", ["d", "shape"], ["logits"], "reshape"),
    ]
    weights = [
        onnx.numpy_helper.from_array(np.ascontiguousarray(array, np.float32)[:, :, None, None], name)
        for name, array in (
            ("first.weight", np.kron(first, np.ones((3, 1)))),
            ("second.weight", np.pad(np.kron(second, np.ones((1, 3))) / 3, ((0, 6), (0, 0)))),
        )
    ]
    weights.append(onnx.numpy_helper.from_array(np.array([1 if flat else 0, -1 if flat else 9], np.int64), "shape"))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, None])
    graph = helper.make_graph(nodes, "colors", [image], [logits], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def hard_net() -> onnx.ModelProto:
    """The same function, one colour 4096 times the others between the layers: one scale cannot hold them."""
    scale = np.diag([4096.0, 1.0, 1.0]).astype(np.float32)
    return color_net(scale, np.linalg.inv(scale))


def saved(model: onnx.ModelProto, path: Path) -> Path:
    """The model as a file that carries its contract, as an exported one does."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    copy.metadata_props.add(key="edgecnn.io", value=CONTRACT.model_dump_json())
    onnx.save(copy, str(path))
    return path


def as_ir(model: onnx.ModelProto) -> ir.Model:
    return ir.serde.deserialize_model(model)


def colors(count: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images of one colour, uint8 (N, 8, 8, 3), and the number of its brightest channel."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    dark = rng.integers(20, 100, (count, 3))
    dark[np.arange(count), labels] = rng.integers(140, 250, count)
    images = np.broadcast_to(dark[:, None, None, :], (count, SIZE, SIZE, 3)).astype(np.uint8)
    return np.ascontiguousarray(images), labels.astype(np.int64)


def selected(count: int = 30, seed: int = 0) -> Selected:
    images, labels = colors(count, seed)
    return Selected(Pictures(images), labels)


def without_quantization(model: onnx.ModelProto) -> Candidate:
    """A candidate with no Q/DQ at all: it answers what its graph answers."""
    return Candidate(as_ir(model), Placement((), ()), {}, {})
