"""A small residual network over the digits as the ONNX file that export would write, and its candidates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgecnn import data as data_room
from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.graph.sessions import observe, open_session
from edgecnn.quantize.ladder.candidate import Candidate, Network, Tools, first
from edgecnn.quantize.place.placement import Graph, place
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.io_contract import KEY, InputContract, IoContract, OutputContract
from edgecnn.recipe.recipe import DataSpec, ModelSpec, Normalization, QatSpec, TrainSpec

TENSORRT = Scheme(activations="int8-symmetric", islands="float16", placement="tensorrt")
FOUR_BITS = TENSORRT.model_copy(update={"weight_bits": 3, "activation_bits": 5})
X86 = Scheme(activations="uint8-asymmetric", bias="int32", placement="onnxruntime")
X86_7BIT = X86.model_copy(update={"weights": "int8-per-channel-7bit"})
ARM = Scheme(activations="int8-asymmetric", bias="int32", placement="onnxruntime")
SCHEMES = {"tensorrt": TENSORRT, "few-bits": FOUR_BITS, "x86": X86, "x86-7bit": X86_7BIT, "arm": ARM}
DIGITS = DataSpec(format="digits", color="gray", calibrate=64)
WIDTH = 8


def contract() -> IoContract:
    """uint8 NHWC digits of 8 pixels."""
    return IoContract(
        task="classify",
        input=InputContract(
            name="images", layout="NHWC", dtype="uint8", range=(0.0, 255.0), size=(8, 8), channels=1, color="gray",
            fit="stretch",
        ),
        normalization=Normalization(mean=(0.5,), std=(0.5,)), normalization_inside=True,
        outputs=(OutputContract(name="logits", meaning="logits"),), classes=tuple("0123456789"),
    )  # fmt: skip


def write_net(path: Path, data: Path, extra: str = "", *, shared: bool = False) -> Path:
    """Cast, Transpose, normalize, stem, [conv, relu, conv] + skip, pool, and a head fitted by least squares.

    Args:
        extra: an operator put before the head.
        shared: both convolutions of the block read one weight.
    """
    rng = np.random.default_rng(3)
    nodes, weights = [], []

    def constant(name: str, array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(array, name))
        return name

    def op(kind: str, name: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [f"{name}.out"], name, **attributes))
        return f"{name}.out"

    def conv(x: str, name: str, before: int, stride: int = 1, weight_of: str = "") -> str:
        weight = rng.standard_normal((WIDTH, before, 3, 3)).astype(np.float32) / np.float32(3 * np.sqrt(before))
        weight *= np.exp2(rng.integers(-3, 4, WIDTH)).astype(np.float32).reshape(-1, 1, 1, 1)  # as folding leaves them
        bias = rng.standard_normal(WIDTH).astype(np.float32) * np.abs(weight).max(axis=(1, 2, 3))
        kernel = weight_of or constant(f"{name}.weight", weight)
        inputs = [x, kernel, constant(f"{name}.bias", bias)]
        return op("Conv", name, *inputs, pads=[1] * 4, strides=[stride] * 2, kernel_shape=[3, 3])

    x = op("Transpose", "nchw", op("Cast", "cast", "images", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    x = op("Add", "shift", op("Mul", "scale", x, constant("scale.by", np.full((1, 1, 1, 1), 2 / 255, np.float32))),
           constant("shift.by", np.full((1, 1, 1, 1), -1, np.float32)))  # fmt: skip
    x = op("Relu", "stem.relu", conv(x, "stem", 1))
    y = conv(op("Relu", "first.relu", conv(x, "first", WIDTH)), "second", WIDTH, weight_of="first.weight" * shared)
    x = op("Relu", "last.relu", op("Add", "add", y, x))
    x = op("MaxPool", "pool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = op("Flatten", "flat", x)
    if extra:
        x = op(extra, "extra", x)
    features = _run(_model(nodes, weights, x), data_room.images(data, "select").batch(0, 10_000))
    answers = np.eye(10, dtype=np.float64)[data_room.labels(data, "select")]
    ridge = 1e-3 * float(np.square(features).sum(axis=0).mean()) * np.eye(features.shape[1])
    head = np.linalg.solve(features.T @ features + ridge, features.T @ (8 * answers - 4))
    inputs = [x, constant("head.weight", head.T.astype(np.float32)), constant("head.bias", np.zeros(10, np.float32))]
    nodes.append(helper.make_node("Gemm", inputs, ["logits"], "head", transB=1))
    model = _model(nodes, weights, "logits")
    model.metadata_props.add(key=KEY, value=contract().model_dump_json())
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def _model(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], output: str) -> onnx.ModelProto:
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 1])
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", None])
    graph = helper.make_graph(nodes, "net", [images], [result], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def _run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    return np.asarray(open_session(model).run(None, {"images": images})[0], np.float64)


def tools_of(
    model: Path, data: Path, folder: Path, scheme: Scheme, keep_float: tuple[str, ...] = (), **qat: object
) -> tuple[Tools, Candidate]:
    """Tools with a network behind them, and the first candidate; `qat` are fields of its QatSpec."""
    graph = canonical(model)
    feeder = Feeder(graph, contract(), data_room.images(data, "calibrate"), 64)
    shapes, _ = observe(graph, list(feeder.feeds([0, 1])))
    network = Network(
        ModelSpec(family="small", name="gap-s", image_size=8, normalize="half"), TrainSpec(), DIGITS, data, folder,
        QatSpec.model_validate({"epochs": 2, "batch": 64, "augment": "none", "threads": 1, **qat}),
    )  # fmt: skip
    tools = Tools(scheme, Graph(graph, shapes), feeder, "minmax", folder, network=network)
    return tools, first(graph, place(tools.graph, scheme, keep_float), tools)[0]


def simulated(candidate: Candidate, scheme: Scheme, images: np.ndarray) -> np.ndarray:
    """Logits of the written Q/DQ graph in float simulation."""
    session = open_session(candidate.quantized(scheme), simulate=True)
    return np.asarray(session.run(["logits"], {"images": images})[0])
