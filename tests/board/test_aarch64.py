"""A board with another architecture: the agent, the engine and the numbers of an aarch64 userland, emulated.

Asked for with EDGECNN_AARCH64: a folder that keeps the unpacked root file system (about 20 s and 340 MB), or 1 for a
temporary one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from aarch64 import Aarch64, missing, running, unpack
from desk import Desk
from onnx import TensorProto, helper, numpy_helper

from edgecnn.backends import ort
from edgecnn.board.limits import LinkLimits
from edgecnn.quantize import quantize_model
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.io_contract import KEY, InputContract, IoContract, OutputContract
from edgecnn.recipe.load import load_device
from edgecnn.recipe.recipe import QuantizeSpec, ScoreSpec
from edgecnn.store.stage import Artifact
from edgecnn.targets.hosts import Boards
from edgecnn.targets.score import score_file
from edgecnn.targets.ssh import connect_boards

SIZE, IMAGES, CLASSES = 32, 200, tuple("abcdefghij")
# What x86 kernels without VNNI compute exactly: products of 7-bit weights don't saturate their 16-bit sums.
U8S8_7BIT = Scheme(
    activations="uint8-asymmetric", weights="int8-per-channel-7bit", bias="int32", placement="onnxruntime"
)
# Emulated, a session takes seconds to begin.
LIMITS = LinkLimits(connect_s=30.0, silence_s=30.0, heartbeat_s=30.0)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aarch64]:
    asked = os.environ.get("EDGECNN_AARCH64", "")
    if not asked:
        pytest.skip("no aarch64 userland: EDGECNN_AARCH64 is not set (a folder for it, or 1)")
    if why := missing():
        pytest.skip(f"no aarch64 userland: {why}")
    folder = tmp_path_factory.mktemp("aarch64")
    root = folder / "root" if asked == "1" else Path(asked).absolute() / "root"
    unpack(root)
    with running(root, folder / "server") as served:
        yield served


@pytest.fixture
def configured(board: Aarch64, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECNN_SSH_CONFIG", str(board.config))


def boards() -> Boards:
    return Boards(("aarch64",), LIMITS)


class Pictures:
    """Images in memory, as calibration reads them."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.shape = images.shape

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, start: int, stop: int) -> np.ndarray:
        return self.images[start:stop]

    def batches(self, size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(self.images), size):
            yield self.images[start : start + size]


def contract() -> IoContract:
    return IoContract(
        task="classify",
        input=InputContract(
            name="x", layout="NCHW", dtype="float32", range=(0, 1), size=(SIZE, SIZE), channels=3, color="rgb",
            fit="crop",
        ),
        normalization=None, normalization_inside=True, outputs=(OutputContract(name="y", meaning="logits"),),
        classes=CLASSES,
    )  # fmt: skip


def network(path: Path) -> Path:
    """Convolutions of 3, 24, 48 and 48 channels with ReLU and a residual Add, then pooling and a Gemm."""
    random = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(
            random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32), name
        )  # fmt: skip

    constants = [
        weights("w1", 24, 3, 3, 3), weights("w2", 48, 24, 3, 3), weights("w3", 48, 48, 3, 3), weights("w4", 10, 48)
    ]  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "conv1", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "conv2", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["d"], "relu2"),
        helper.make_node("Conv", ["d", "w3"], ["e"], "conv3", pads=[1] * 4),
        helper.make_node("Relu", ["e"], ["f"], "relu3"),
        helper.make_node("Add", ["d", "f"], ["g"], "add"),
        helper.make_node("GlobalAveragePool", ["g"], ["h"], "pool"),
        helper.make_node("Flatten", ["h"], ["i"], "flatten"),
        helper.make_node("Gemm", ["i", "w4"], ["y"], "gemm", transB=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {KEY: contract().model_dump_json()})
    onnx.save(model, str(path))
    return path


def pictures(count: int) -> np.ndarray:
    """Smooth images, as photographs are: uint8 (count, 32, 32, 3)."""
    random = np.random.default_rng(1)
    coarse = random.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def scored_data(folder: Path, images: np.ndarray, labels: np.ndarray) -> Artifact:
    folder.mkdir(parents=True)
    np.save(folder / "scored-00000.npy", images)
    np.save(folder / "scored_labels.npy", labels)
    return Artifact("data", "0" * 32, folder)


def logits_there(graph: Path, data: Artifact, folder: Path) -> np.ndarray:
    """The board's logits of a graph: compiled and scored as a build does."""
    target = connect_boards(load_device("cpu-arm64"), boards())
    out, scored = folder / "compiled", folder / "scored"
    out.mkdir(parents=True)
    scored.mkdir()
    (folder / "model").mkdir()
    (folder / "model" / "model.onnx").write_bytes(graph.read_bytes())
    model = Artifact("quantize", "1" * 32, folder / "model")
    target.compile(out, target.profile, target.facts, model)
    target.score(scored, ScoreSpec(), target.facts, Artifact("compile-int8", "2" * 32, out), data)
    assert Artifact("score", "3" * 32, scored).json("score.json")["boards"] == {
        "aarch64": len(np.load(data.path / "scored_labels.npy"))
    }
    return np.load(scored / "outcomes.npz")["logits"]


def logits_here(graph: Path, data: Artifact, folder: Path) -> np.ndarray:
    folder.mkdir(parents=True)
    score_file(folder, ScoreSpec(), graph, data.path, backend="onnxruntime")
    return np.load(folder / "outcomes.npz")["logits"]


def test_it_says_what_it_is(configured: None) -> None:
    target = connect_boards(load_device("cpu-arm64"), boards())
    assert target.facts.backend_version == ort.version()
    assert target.facts.vnni is None
    assert "ARMv8" in target.facts.hardware


def test_int8_with_seven_bit_weights_is_bit_equal_to_x86(configured: None, tmp_path: Path) -> None:
    float_model = network(tmp_path / "float.onnx")
    out = tmp_path / "int8"
    out.mkdir()
    spec = QuantizeSpec.model_validate({"images": 64, "ranges": "minmax", "recover": "off"})
    quantize_model(out, spec, U8S8_7BIT, float_model, Pictures(pictures(64)), contract())
    kinds = [node.op_type for node in onnx.load(str(out / "model.onnx")).graph.node]
    assert kinds.count("QuantizeLinear") >= 6  # every tensor between layers
    data = scored_data(tmp_path / "data", pictures(IMAGES), np.arange(IMAGES) % 10)
    there = logits_there(out / "model.onnx", data, tmp_path / "there")
    here = logits_here(out / "model.onnx", data, tmp_path / "here")
    assert here.shape == (IMAGES, 10)
    assert len(np.unique(here, axis=0)) > IMAGES / 2
    assert there.tobytes() == here.tobytes()


@pytest.fixture(scope="module")
def desk(board: Aarch64, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"), board.config)


@pytest.mark.train
def test_the_quickstarts_model_answers_the_same(configured: None, desk: Desk, tmp_path: Path) -> None:
    """The models that are delivered for x86."""
    built = desk.build("quickstart", "--set", "compile_for=[]", code=(0, 3))
    data = built.stage("data")
    images = np.load(data / "scored-00000.npy")[:IMAGES]
    few = scored_data(tmp_path / "data", images, np.load(data / "scored_labels.npy")[:IMAGES])
    for name in ("model.onnx", "model.int8.onnx"):
        there = logits_there(built.run / name, few, tmp_path / name / "there")
        here = logits_here(built.run / name, few, tmp_path / name / "here")
        changed = int((there.argmax(axis=1) != here.argmax(axis=1)).sum())
        print(f"{name}: {changed} of {IMAGES} answers differ, largest difference {np.abs(there - here).max():.3g}")
        assert changed <= 2


@pytest.mark.train
def test_a_whole_build_on_the_board(configured: None, desk: Desk) -> None:
    limits = [text for name, seconds in vars(LIMITS).items() for text in ("--link", f"{name}={seconds}")]
    pace = [text for key in ("min_pairs=64", "min_seconds=1", "max_seconds=4") for text in ("--set", f"bench.{key}")]
    asked = ["quickstart", "--device", "cpu-arm64", "--host", "aarch64", *limits, *pace, "--set", "compile_for=[]"]
    arm = desk.build(*asked, code=(0, 3))
    assert arm.states()["engine"] == "pass"
    assert arm.report["conditions"]["simulated"] is False
    assert "on aarch64" in arm.report["conditions"]["scoring"]
    assert arm.states()["max_accuracy_drop"] == "pass"
    figures = {one["name"]: one["value"] for one in arm.report["figures"]}
    assert figures["int8_accuracy"] > 95
    assert desk.build(*asked, code=(0, 3)).made == []
