"""What FP16 cannot hold stays FP32 in the typed graph, with INT8 around it intact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from quantize_graphs import TENSORRT, Net, contract, pictures

from edgecnn.backends.tensorrt.rules import check
from edgecnn.quantize import quantize_model
from edgecnn.quantize.graph.sessions import open_session, run
from edgecnn.recipe.recipe import QuantizeSpec


def quantized(folder: Path, path: Path) -> tuple[onnx.ModelProto, dict[str, object]]:
    spec = QuantizeSpec(images=8, ranges="minmax", recover="off")
    quantize_model(folder, spec, TENSORRT, path, pictures(8), contract())
    assert not check(folder / "typed.onnx")
    return onnx.load(str(folder / "typed.onnx")), json.loads((folder / "quantize.json").read_text())


def scaled(path: Path, factor: float) -> Path:
    """stem → c → d → head, where c multiplies its values by `factor` and d brings them back."""
    net = Net(3)
    x = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="r1")
    x = net.op("Relu", net.conv(x, 16, 16, name="c"), name="r2")
    x = net.op("Relu", net.conv(x, 16, 16, name="d"), name="r3")
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in net.weights}
    for name, by in (("c.weight", factor), ("c.bias", factor), ("d.weight", 1.0 / factor)):
        tensor = next(tensor for tensor in net.weights if tensor.name == name)
        tensor.CopyFrom(onnx.numpy_helper.from_array((arrays[name] * np.float32(by)), name))
    return net.save(path, net.head(x, 16))


def types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


@pytest.mark.parametrize("factor", [1e-9, 1e-6, 1e6, 1e9])
def test_a_layer_far_outside_of_fp16_keeps_its_accuracy(tmp_path: Path, factor: float) -> None:
    path = scaled(tmp_path / "m.onnx", factor)
    model, report = quantized(tmp_path, path)
    assert report["sqnr_db"] > 25.0  # type: ignore[operator]
    assert {text.split(":")[0] for text in report["float_islands"]} == {"c", "r2", "d"}  # type: ignore[attr-defined]
    kinds = types(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        # Straight from its Q/DQ, in one type: a Cast between would cost the INT8 kernel.
        assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        wide = node.name in ("c", "d")
        assert {kinds[name] for name in node.input} == {TensorProto.FLOAT if wide else TensorProto.FLOAT16}
    feed = contract().feed(pictures(8).images)
    (want,), (got,) = (run(open_session(tmp_path / n, simulate=True), feed) for n in ("m.onnx", "typed.onnx"))
    assert np.abs(want - got).max() <= 0.1 * np.abs(want).max()


def test_a_tiny_branch_of_an_add_may_be_fp16(tmp_path: Path) -> None:
    """A layer scale of 1e-6, as ConvNeXt starts with: what it makes drowns in the Add anyway."""
    net = Net(3)
    stem = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="relu")
    branch = net.op("Mul", net.conv(stem, 16, 16, name="c"), net.constant("gamma", np.float32(1e-6)), name="scaled")
    total = net.op("Add", branch, stem, name="add")
    _, report = quantized(tmp_path, net.save(tmp_path / "m.onnx", net.head(total, 16)))
    assert report["float_islands"] == []


def test_an_epsilon_that_fp16_rounds_to_zero_stays_float32(tmp_path: Path) -> None:
    net = Net(3)
    stem = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="relu")
    length = net.op(
        "Sqrt", net.op("Add", net.op("Mul", stem, stem), net.constant("eps", np.float32(1e-12)), name="safe")
    )
    unit = net.op("Div", stem, length, name="unit")
    path = net.save(tmp_path / "m.onnx", net.head(net.conv(unit, 16, 16, name="c"), 16))
    _, report = quantized(tmp_path, path)
    told = report["float_islands"]
    assert "safe: `eps` is at most 1e-12, too small for FP16" in told  # type: ignore[operator]
    # The square root is taken of it, and the square underflows where the epsilon does.
    assert {text.split(":")[0] for text in told} == {"safe", "sqrt4", "mul2"}  # type: ignore[attr-defined]


def test_values_near_the_end_of_fp16_are_not_risked(tmp_path: Path) -> None:
    """Calibration saw 40000: another image may get beyond 65504."""
    net = Net(3)
    stem = net.op("Sigmoid", net.conv("image", 16, 3, name="stem"), name="gate")
    large = net.op("Mul", stem, net.constant("factor", np.float32(45000)), name="large")
    small = net.op("Mul", large, net.constant("back", np.float32(1 / 45000)), name="small")
    _, report = quantized(tmp_path, net.save(tmp_path / "m.onnx", net.head(net.conv(small, 16, 16, name="c"), 16)))
    told = report["float_islands"]
    assert [text.split(":")[0] for text in told] == ["large", "small"]  # type: ignore[attr-defined]
    assert all("too near FP16's 65504" in text for text in told)  # type: ignore[attr-defined]
