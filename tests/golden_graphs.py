"""Small ONNX graphs with answers worked out by hand, and the artifacts around them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgecnn.recipe.io_contract import KEY, InputContract, IoContract, OutputContract
from edgecnn.store.stage import Artifact

CLASSES = ("red", "green", "blue")
# conv_qdq: activation scale 0.1, weight 50 * 0.01 = 0.5, bias 1.
# 0.26 → 2.6 rounds to 3 → 0.3; 20 → 200 is clipped to 127 → 12.7. Half of each, plus 1.
CONV_INPUT = np.array([[[[0.26, -1.0], [12.6, 20.0]]]], np.float32)
CONV_OUTPUT = np.array([[[[1.15, 0.5], [7.3, 7.35]]]], np.float32)


def save(
    path: Path, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray], *, opset: int = 19, ir_version: int = 9,
    metadata: dict[str, str] | None = None, extra_domains: tuple[str, ...] = (),
) -> Path:  # fmt: skip
    """Write a model of one graph."""
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "golden", inputs, outputs, tensors)
    domains = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in extra_domains)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=ir_version)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, str(path))
    return path


def value(name: str, shape: tuple[int | str, ...], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """A typed input or output."""
    return helper.make_tensor_value_info(name, kind, list(shape))


def identity(path: Path) -> Path:
    """y = x, float (N, 4)."""
    return save(
        path, [helper.make_node("Identity", ["x"], ["y"], "same")], [value("x", ("N", 4))], [value("y", ("N", 4))], {}
    )


def conv_qdq(path: Path) -> Path:
    """A 1x1 convolution with INT8 input and weight and float bias; CONV_INPUT gives CONV_OUTPUT."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "zero"], ["xq"], "quantize_x"),
        helper.make_node("DequantizeLinear", ["xq", "xs", "zero"], ["xd"], "dequantize_x"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wzero"], ["wd"], "dequantize_w", axis=0),
        helper.make_node("Conv", ["xd", "wd", "b"], ["y"], "conv"),
    ]
    constants = {
        "xs": np.array(0.1, np.float32), "zero": np.array(0, np.int8), "w": np.full((1, 1, 1, 1), 50, np.int8),
        "ws": np.array([0.01], np.float32), "wzero": np.zeros(1, np.int8), "b": np.ones(1, np.float32),
    }  # fmt: skip
    return save(path, nodes, [value("x", ("N", 1, 2, 2))], [value("y", ("N", 1, 2, 2))], constants)


def contract() -> IoContract:
    """uint8 NHWC images of 4x4, three classes."""
    return IoContract(
        task="classify",
        input=InputContract(
            name="image", layout="NHWC", dtype="uint8", range=(0, 255), size=(4, 4), channels=3, color="rgb",
            fit="crop",
        ),
        normalization=None, normalization_inside=True, outputs=(OutputContract(name="logits", meaning="class logits"),),
        classes=CLASSES,
    )  # fmt: skip


def colours(path: Path, *, quantized: bool = False, half: bool = False, batch: int | str = "N", bad: str = "") -> Path:
    """A classifier of 4x4 uint8 images: its logits are the mean of each channel, scaled by 1/255.

    Args:
        quantized: with symmetric INT8 Q/DQ before and on the weight of its 1x1 convolution.
        half: float parts in FP16, as a typed graph has them.
        bad: `zero-point` plants what TensorRT refuses at node `quantize`; `operator` an unknown operator `strange`.
    """
    kind, number = (np.float16, TensorProto.FLOAT16) if half else (np.float32, TensorProto.FLOAT)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], "cast", to=number),
        helper.make_node("Transpose", ["float"], ["nchw"], "transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["nchw", "scale"], ["x"], "normalize"),
    ]
    constants: dict[str, np.ndarray] = {"scale": np.array(1 / 255, kind)}
    if quantized:
        constants |= {
            "s": np.array(1 / 127, kind), "z": np.array(1 if bad == "zero-point" else 0, np.int8),
            "w": (np.eye(3) * 127).astype(np.int8).reshape(3, 3, 1, 1), "ws": np.full(3, 1 / 127, kind),
            "wz": np.zeros(3, np.int8),
        }  # fmt: skip
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], "quantize"),
            helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "dequantize"),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "dequantize_weight", axis=0),
            helper.make_node("Conv", ["xd", "wd"], ["c"], "conv"),
        ]
    else:
        constants["w"] = np.eye(3, dtype=kind).reshape(3, 3, 1, 1)
        nodes.append(helper.make_node("Conv", ["x", "w"], ["c"], "conv"))
    last = "c"
    if bad == "operator":
        nodes.append(helper.make_node("Det", [last], ["det"], "strange"))
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Cast", ["flat"], ["logits"], "to_float", to=TensorProto.FLOAT),
    ]
    return save(
        path, nodes, [value("image", (batch, 4, 4, 3), TensorProto.UINT8)], [value("logits", (batch, 3))], constants,
        metadata={KEY: contract().model_dump_json()},
    )  # fmt: skip


def colour_images(count: int, wrong: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images of one colour each, uint8 (count, 4, 4, 3), and their labels, the first `wrong` of them wrong."""
    labels = np.arange(count) % 3
    images = np.zeros((count, 4, 4, 3), np.uint8)
    images[np.arange(count), :, :, labels] = 200
    told = labels.copy()
    told[:wrong] = (told[:wrong] + 1) % 3
    return images, told.astype(np.int64)


def data_artifact(folder: Path, count: int = 50, wrong: int = 2) -> Artifact:
    """A data stage's folder with a scored split only."""
    folder.mkdir(parents=True)
    images, labels = colour_images(count, wrong)
    np.save(folder / "scored-00000.npy", images)
    np.save(folder / "scored_labels.npy", labels)
    (folder / "index.json").write_text(json.dumps({}))
    return Artifact("data", "0" * 32, folder)


def model_artifact(folder: Path, *, quantized: bool, typed: bool = False, bad: str = "") -> Artifact:
    """A quantize (or float) stage's folder with the colour classifier."""
    folder.mkdir(parents=True)
    colours(folder / "model.onnx", quantized=quantized, bad=bad)
    if typed:
        colours(folder / "typed.onnx", quantized=quantized, half=True, bad=bad)
    return Artifact("quantize" if quantized else "float", "1" * 32, folder)
