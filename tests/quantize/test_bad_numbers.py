"""Images and weights that carry little or nothing: a defined result, or one clear error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantize_graphs import ARM, CPU, TENSORRT, Net, Pictures, contract, pictures, residual_net

from edgecnn.backends.tensorrt.rules import check
from edgecnn.process.errors import EdgeError
from edgecnn.quantize import quantize_model
from edgecnn.quantize.graph.sessions import open_session, run
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.recipe import QuantizeSpec

SCHEMES = pytest.mark.parametrize("scheme", [TENSORRT, CPU, ARM], ids=["tensorrt", "cpu", "arm"])
RANGES = pytest.mark.parametrize("ranges", ["auto", "minmax", "percentile", "entropy", "mse"])


def quantized(out: Path, path: Path, scheme: Scheme, images: Pictures, ranges: str = "minmax") -> dict[str, object]:
    """The report of a result that onnx's checker, TensorRT 10.3's rules and a look at its numbers accept."""
    spec = QuantizeSpec.model_validate({"images": len(images), "ranges": ranges, "recover": "off"})
    quantize_model(out, spec, scheme, path, images, contract())
    model = onnx.load(str(out / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert np.isfinite(arrays[node.input[1]]).all()
            assert (arrays[node.input[1]] > 0).all()
    if scheme is TENSORRT:
        assert not check(out / "typed.onnx")
    report: dict[str, object] = json.loads((out / "quantize.json").read_text())
    return report


def answers(out: Path, path: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the float model and the simulated INT8 model say."""
    feed = contract().feed(images)
    (want,), (got,) = (run(open_session(file, simulate=True), feed) for file in (path, out / "model.onnx"))
    assert np.isfinite(got).all()
    return want, got


# --- images ---


@SCHEMES
@RANGES
def test_one_image(tmp_path: Path, scheme: Scheme, ranges: str) -> None:
    path, one = residual_net(tmp_path / "m.onnx"), pictures(1)
    report = quantized(tmp_path, path, scheme, one, ranges)
    want, got = answers(tmp_path, path, one.images)
    assert np.abs(want - got).max() <= 0.1 * np.abs(want).max()
    assert report["calibration"]["images"] == 1  # type: ignore[index]


@SCHEMES
@RANGES
def test_black_images_calibrate_what_black_images_need(tmp_path: Path, scheme: Scheme, ranges: str) -> None:
    """The input's range is empty (scale 1); biases alone make the other tensors, and black images stay right."""
    path = residual_net(tmp_path / "m.onnx")
    black = Pictures(np.zeros((4, 8, 8, 3), np.uint8))
    report = quantized(tmp_path, path, scheme, black, ranges)
    first = report["tensors"][0]  # type: ignore[index]
    assert (first["name"], first["low"], first["high"], first["scale"]) == ("image", 0.0, 0.0, 1.0)
    want, got = answers(tmp_path, path, black.images[:1])
    assert np.abs(want - got).max() <= 0.1 * np.abs(want).max()


def test_images_of_another_shape_or_type(tmp_path: Path) -> None:
    path = residual_net(tmp_path / "m.onnx")
    for images, says in (
        (np.zeros((2, 9, 8, 3), np.uint8), "are 9x8 with 3 channels; the model takes 8x8 with 3"),
        (np.full((2, 8, 8, 3), np.nan, np.float32), "are float32 with 4 dimensions; uint8 .N, H, W, C. is needed"),
        (np.zeros((2, 8, 8), np.uint8), "are uint8 with 3 dimensions"),
    ):
        with pytest.raises(EdgeError, match=says) as error:
            quantized(tmp_path, path, TENSORRT, Pictures(images))
        assert error.value.hint


# --- tensors ---


@SCHEMES
@RANGES
def test_a_constant_tensor(tmp_path: Path, scheme: Scheme, ranges: str) -> None:
    """All weights of a layer zero: its output is its bias everywhere, positive, zero or negative."""
    net = Net(3)
    stem = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="relu")
    weight = net.constant("flat.weight", np.zeros((16, 16, 3, 3), np.float32))
    bias = net.constant("flat.bias", np.repeat(np.float32([0.75, -0.25]), 8))
    flat = net.op("Conv", stem, weight, bias, name="flat", pads=[1] * 4)
    zero = net.op("Mul", net.conv(flat, 16, 16, name="next"), net.constant("zero", np.float32(0)), name="nothing")
    path = net.save(tmp_path / "m.onnx", net.head(net.conv(zero, 16, 16, name="c"), 16))
    quantized(tmp_path, path, scheme, pictures(4), ranges)
    want, got = answers(tmp_path, path, pictures(4).images)
    assert np.abs(want - got).max() <= 0.02 * np.abs(want).max() + 1e-3


# --- weights ---


def with_weight(path: Path, change: str) -> Path:
    model = onnx.load(str(residual_net(path)))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == change.split(":")[0])
    weight = numpy_helper.to_array(tensor).copy()
    match change.split(":")[1]:
        case "zero channel":
            weight[3] = 0.0
        case "zero":
            weight[:] = 0.0
        case "denormal":
            weight *= np.float32(1e-41) / np.abs(weight).max()
        case "denormal channel":
            weight[3] = 1e-41
        case "infinity":
            weight[2, 0, 0, 0] = np.inf
        case "nan":
            weight[2, 0, 0, 0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    onnx.save(model, str(path))
    return path


@SCHEMES
@pytest.mark.parametrize("kind", ["zero channel", "zero", "denormal", "denormal channel"])
def test_weights_of_nothing(tmp_path: Path, scheme: Scheme, kind: str) -> None:
    path = with_weight(tmp_path / "m.onnx", f"first.weight:{kind}")
    quantized(tmp_path, path, scheme, pictures(4))
    want, got = answers(tmp_path, path, pictures(4).images)
    assert np.abs(want - got).max() <= 0.1 * np.abs(want).max()


@SCHEMES
@pytest.mark.parametrize("kind", ["infinity", "nan"])
def test_weights_without_a_number(tmp_path: Path, scheme: Scheme, kind: str) -> None:
    path = with_weight(tmp_path / "m.onnx", f"first.weight:{kind}")
    with pytest.raises(EdgeError, match=r"weight `first\.weight` holds NaN or infinity") as error:
        quantized(tmp_path, path, scheme, pictures(4))
    assert error.value.hint == "the model is broken: train or export it again"
    assert not (tmp_path / "model.onnx").exists()


def test_an_infinite_bias_is_found_where_it_arrives(tmp_path: Path) -> None:
    model = onnx.load(str(residual_net(tmp_path / "m.onnx")))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "first.bias")
    bias = numpy_helper.to_array(tensor).copy()
    bias[0] = np.inf
    tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(
        EdgeError, match="tensor `first_relu_out` takes a value that is infinite on calibration image 0"
    ):
        quantized(tmp_path, tmp_path / "m.onnx", TENSORRT, pictures(4))
