from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from golden_graphs import CONV_INPUT, CONV_OUTPUT, conv_qdq, save, value
from onnx import TensorProto, helper

from edgecnn.backends import ort
from edgecnn.process.errors import EdgeError


def saturating(path: Path) -> Path:
    """A fused U8S8 matrix product whose pairs 255 * 127 + 255 * 127 overflow 16 bits where the CPU has no VNNI."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["xq"], "quantize_x"),
        helper.make_node("DequantizeLinear", ["xq", "one", "zero"], ["xd"], "dequantize_x"),
        helper.make_node("DequantizeLinear", ["w", "one", "wzero"], ["wd"], "dequantize_w"),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], "product"),
    ]
    constants = {
        "one": np.array(1.0, np.float32), "zero": np.array(0, np.uint8), "wzero": np.array(0, np.int8),
        "w": np.full((64, 32), 127, np.int8),
    }  # fmt: skip
    return save(path, nodes, [value("x", (1, 64))], [value("y", (1, 32))], constants)


def test_the_simulation_is_exact_where_kernels_may_saturate(tmp_path: Path) -> None:
    runner = ort.load(saturating(tmp_path / "m.onnx"), simulate=True, providers=ort.CPU)
    np.testing.assert_array_equal(
        runner({"x": np.full((1, 64), 255, np.float32)})["y"], np.full((1, 32), 255 * 127 * 64.0)
    )


def test_the_simulation_is_labelled(tmp_path: Path) -> None:
    simulated = ort.load(conv_qdq(tmp_path / "m.onnx"), simulate=True, providers=ort.CPU)
    assert simulated.how.startswith("float simulation of the graph (onnxruntime")
    np.testing.assert_allclose(simulated({"x": CONV_INPUT})["y"], CONV_OUTPUT, atol=1e-6)
    real = ort.load(conv_qdq(tmp_path / "m.onnx"), threads=2, providers=ort.CPU)
    assert real.how == f"{ort.version()} CPU kernels, 2 threads"


def test_named_tensors_come_beside_the_outputs(tmp_path: Path) -> None:
    runner = ort.load(conv_qdq(tmp_path / "m.onnx"), tensors=("xd",), providers=ort.CPU)
    found = runner({"x": CONV_INPUT})
    assert set(found) == {"y", "xd"}
    np.testing.assert_allclose(found["xd"].ravel(), [0.3, -1.0, 12.6, 12.7], atol=1e-6)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="no tensor `nowhere`"):
        ort.load(conv_qdq(tmp_path / "m.onnx"), tensors=("nowhere",))


def test_a_graph_that_onnxruntime_cannot_run(tmp_path: Path) -> None:
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], "odd", domain="elsewhere")
    model = save(tmp_path / "m.onnx", [node], [value("x", (1,))], [value("y", (1,))], {}, extra_domains=("elsewhere",))
    with pytest.raises(EdgeError, match="NoSuchOperator"):
        ort.load(model)


def test_uint8_input_is_told_by_its_numpy_name(tmp_path: Path) -> None:
    node = helper.make_node("Cast", ["x"], ["y"], "cast", to=TensorProto.FLOAT)
    model = save(tmp_path / "m.onnx", [node], [value("x", ("N", 2), TensorProto.UINT8)], [value("y", ("N", 2))], {})
    info = ort.load(model).inputs[0]
    assert (info.dtype, info.shape) == ("uint8", (None, 2))
