"""The files that the quantizer writes: golden numbers, types, fusion, determinism, metadata."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from quantize_graphs import ARM, CPU, CPU_7BIT, TENSORRT, Net, Pictures, contract, pictures, residual_net

from edgecnn.data.index import write_shards
from edgecnn.process.errors import EdgeError
from edgecnn.process.progress import Plain, showing
from edgecnn.quantize import quantize_model, typed_float
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.recipe import QuantizeSpec
from edgecnn.store.stage import Artifact


def quantized(
    out: Path, model: Path, scheme: Scheme, images: Pictures | None = None, **spec: object
) -> tuple[onnx.ModelProto, dict[str, object]]:  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    images = images or pictures()
    given = {"images": len(images), "ranges": "minmax", **spec}
    quantize_model(out, QuantizeSpec(**given), scheme, model, images, contract())  # type: ignore[arg-type]
    return onnx.load(str(out / "model.onnx")), json.loads((out / "quantize.json").read_text())


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def one_conv(path: Path) -> Path:
    """1×1 Conv, 3 → 8 channels; channel k has the weight (k + 1) at input 0 and its bias is k."""
    net = Net(3, size=2)
    weight = np.zeros((8, 3, 1, 1), np.float32)
    weight[:, 0, 0, 0] = np.arange(1, 9)
    inputs = [net.constant("w", weight), net.constant("b", np.arange(8, dtype=np.float32))]
    return net.save(path, net.op("Conv", "image", *inputs, name="c"), rank=4)


def two_pixels() -> Pictures:
    images = np.zeros((1, 2, 2, 3), np.uint8)
    images[0, 0, 0] = 255  # becomes 1.0
    return Pictures(images)


def test_golden_conv_for_tensorrt(tmp_path: Path) -> None:
    scheme = TENSORRT.model_copy(update={"islands": "float32"})
    spec = QuantizeSpec(images=1, ranges="minmax")
    quantize_model(tmp_path, spec, scheme, one_conv(tmp_path / "m.onnx"), two_pixels(), contract(size=2))
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert [node.op_type for node in model.graph.node] == [
        "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv",
    ]  # fmt: skip
    found = weights(model)
    assert found["image_scale"] == np.float32(1.0 / 127.0)
    assert found["image_zero_point"].dtype == np.int8
    assert found["image_zero_point"] == 0
    assert np.array_equal(found["w_quantized"][:, 0, 0, 0], np.full(8, 127, np.int8))
    assert np.array_equal(found["w_quantized"][:, 1:], np.zeros((8, 2, 1, 1), np.int8))
    np.testing.assert_allclose(found["w_scale"], np.arange(1, 9, dtype=np.float32) / np.float32(127), rtol=1e-7)
    assert not found["w_zero_point"].any()
    assert found["b"].dtype == np.float32  # TensorRT refuses a quantized bias
    assert model.ir_version <= 9
    assert not (tmp_path / "typed.onnx").exists()


def test_golden_conv_for_onnxruntime(tmp_path: Path) -> None:
    spec = QuantizeSpec(images=1, ranges="minmax")
    quantize_model(tmp_path, spec, CPU_7BIT, one_conv(tmp_path / "m.onnx"), two_pixels(), contract(size=2))
    found = weights(onnx.load(str(tmp_path / "model.onnx")))
    assert found["image_scale"] == np.float32(1.0 / 255.0)
    assert found["image_zero_point"].dtype == np.uint8
    assert (np.abs(found["w_quantized"]) <= 64).all()
    assert np.array_equal(found["w_quantized"][:, 0, 0, 0], np.full(8, 64, np.int8))
    assert found["b_quantized"].dtype == np.int32
    np.testing.assert_allclose(found["b_scale"], found["w_scale"] / np.float32(255.0), rtol=1e-6)
    np.testing.assert_allclose(found["b_quantized"] * found["b_scale"], np.arange(8), atol=3e-4)


def test_a_channel_of_zeros_and_a_dead_channel_with_a_bias(tmp_path: Path) -> None:
    net = Net(3, size=2)
    weight = np.zeros((8, 3, 1, 1), np.float32)
    weight[1] = 1e-30
    bias = np.full(8, 5.0, np.float32)
    path = net.save(
        tmp_path / "m.onnx", net.op("Conv", "image", net.constant("w", weight), net.constant("b", bias)), rank=4
    )
    quantize_model(tmp_path, QuantizeSpec(images=1), CPU, path, two_pixels(), contract(size=2))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"image": np.ones((1, 3, 2, 2), np.float32)})
    np.testing.assert_allclose(got, 5.0, rtol=0.02)


def test_weights_with_infinity_are_refused(tmp_path: Path) -> None:
    net = Net(3, size=2)
    weight = np.zeros((8, 3, 1, 1), np.float32)
    weight[0, 0] = np.inf
    path = net.save(tmp_path / "m.onnx", net.op("Conv", "image", net.constant("w", weight)), rank=4)
    black = Pictures(np.full((1, 2, 2, 3), 9, np.uint8))
    with pytest.raises(EdgeError, match="weight `w` holds NaN or infinity"):
        quantize_model(tmp_path, QuantizeSpec(images=1), TENSORRT, path, black, contract(size=2))


@pytest.mark.parametrize("scheme", [CPU, CPU_7BIT, ARM])
def test_onnxruntime_fuses_every_layer_and_the_residual_add(tmp_path: Path, scheme: Scheme) -> None:
    quantized(tmp_path, residual_net(tmp_path / "m.onnx"), scheme)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdqisint8allowed", "1")  # S8S8 is for ARM; here only the fusion matters
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node]
    assert ops.count("QLinearConv") == 3
    assert ops.count("QLinearAdd") == 1
    assert ops.count("QGemm") == 1
    assert not {"Conv", "Relu", "Gemm", "Add"} & set(ops)


@pytest.mark.parametrize("scheme", [TENSORRT, CPU, ARM])
@pytest.mark.parametrize("ranges", ["auto", "minmax", "percentile", "entropy", "mse"])
def test_simulation_stays_near_the_float_model(tmp_path: Path, scheme: Scheme, ranges: str) -> None:
    _, report = quantized(tmp_path, residual_net(tmp_path / "m.onnx"), scheme, ranges=ranges)
    assert report["sqnr_db"] > 20.0  # type: ignore[operator]
    assert report["coverage"]["macs"] == 1.0  # type: ignore[index]
    assert all(layer["sqnr_db"] > 20.0 for layer in report["layers"])  # type: ignore[index,union-attr,attr-defined]


def test_macs_and_report(tmp_path: Path) -> None:
    model, report = quantized(tmp_path, residual_net(tmp_path / "m.onnx"), TENSORRT, keep_float=("second",))
    assert {layer["name"]: layer["macs"] for layer in report["layers"]} == {  # type: ignore[index,attr-defined]
        "stem": 64 * 16 * 27, "first": 64 * 16 * 144, "second": 64 * 16 * 144, "head": 64,
    }  # fmt: skip
    total = 64 * 16 * (27 + 144 + 144) + 64
    assert report["coverage"]["macs"] == pytest.approx(1 - 64 * 16 * 144 / total)  # type: ignore[index]
    ops = [node.op_type for node in model.graph.node]
    assert report["qdq"] == {  # type: ignore[comparison-overlap]
        "quantize_linear": ops.count("QuantizeLinear"), "dequantize_linear": ops.count("DequantizeLinear"),
    }  # fmt: skip


def test_bytes_are_equal_twice_for_any_order_of_the_images(tmp_path: Path) -> None:
    path = residual_net(tmp_path / "m.onnx")
    images = pictures(20)
    turned = Pictures(images.images[::-1].copy())
    for ranges in ("auto", "entropy"):
        for scheme in (TENSORRT, CPU):
            quantized(tmp_path / "a", path, scheme, images, ranges=ranges)
            quantized(tmp_path / "b", path, scheme, turned, ranges=ranges)
            for name in ("model.onnx", "typed.onnx") if scheme is TENSORRT else ("model.onnx",):
                assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_metadata_goes_round(tmp_path: Path) -> None:
    net = onnx.load(str(residual_net(tmp_path / "m.onnx")))
    net.metadata_props.add(key="edgecnn.io", value='{"kept": true}')
    onnx.save(net, str(tmp_path / "m.onnx"))
    _, report = quantized(tmp_path, tmp_path / "m.onnx", TENSORRT, ranges="mse")
    for name in ("model.onnx", "typed.onnx"):
        props = {prop.key: prop.value for prop in onnx.load(str(tmp_path / name)).metadata_props}
        assert props["edgecnn.io"] == '{"kept": true}'
        told = json.loads(props["edgecnn.quantize"])
        assert Scheme(**told["scheme"]) == TENSORRT
        assert told["calibration"] == {"images": 12, "digest": report["calibration"]["digest"]}  # type: ignore[index]
        assert told["tensors"] == report["tensors"]


def float_types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    found = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    found.update({tensor.name: tensor.data_type for tensor in inferred.graph.initializer})
    return found


def test_typed_graph_is_fp16_between_float32_ends(tmp_path: Path) -> None:
    quantized(tmp_path, residual_net(tmp_path / "m.onnx"), TENSORRT)
    model = onnx.load(str(tmp_path / "typed.onnx"))
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert model.graph.output[0].name == "head_out"
    types = float_types(model)
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "Add", "Relu", "QuantizeLinear"):
            assert types[node.input[0]] == TensorProto.FLOAT16, node.name
    assert TensorProto.FLOAT not in types.values()
    scales = {node.input[1] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    assert {types[name] for name in scales} == {TensorProto.FLOAT16}


def test_typed_graph_computes_what_the_float32_one_does(tmp_path: Path) -> None:
    quantized(tmp_path, residual_net(tmp_path / "m.onnx"), TENSORRT)
    feed = {"image": np.random.default_rng(5).random((4, 3, 8, 8)).astype(np.float32)}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    (a,), (b,) = (
        onnxruntime.InferenceSession(str(tmp_path / name), options, providers=["CPUExecutionProvider"]).run(None, feed)
        for name in ("model.onnx", "typed.onnx")
    )
    assert 10 * np.log10(np.square(a).sum() / np.square(a - b).sum()) > 30.0


def test_what_fp16_cannot_hold_stays_float32_and_is_said(tmp_path: Path) -> None:
    net = Net(3)
    stem = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="relu")
    large = net.op("Mul", stem, net.constant("factor", np.float32(1e6)), name="large")
    small = net.op("Mul", large, net.constant("back", np.float32(1e-6)), name="small")
    path = net.save(tmp_path / "m.onnx", net.head(net.conv(small, 16, 16, name="c"), 16))
    _, report = quantized(tmp_path, path, TENSORRT)
    assert [text.split(":")[0] for text in report["float_islands"]] == ["large", "small"]  # type: ignore[attr-defined]
    types = float_types(onnx.load(str(tmp_path / "typed.onnx")))
    assert types["large_out"] == TensorProto.FLOAT
    assert types["stem_out"] == TensorProto.FLOAT16
    assert types["c_out"] == TensorProto.FLOAT16


def test_typed_float_has_no_qdq(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    residual_net(plain / "model.onnx")
    model = onnx.load(str(plain / "model.onnx"))
    model.metadata_props.add(key="edgecnn.io", value=contract().model_dump_json())
    onnx.save(model, str(plain / "model.onnx"))
    images = Artifact("data", "key", tmp_path / "data")
    images.path.mkdir()
    write_shards(images.path, "calibrate", 8, pictures(8).images)
    typed_float(tmp_path, TENSORRT, Artifact("export", "key", plain), images)
    told = json.loads((tmp_path / "typed.json").read_text())
    assert told["images"] == 8
    assert told["sqnr_db"] > 40
    assert told["float_islands"] == []
    assert (tmp_path / "model.onnx").read_bytes() == (plain / "model.onnx").read_bytes()
    model = onnx.load(str(tmp_path / "typed.onnx"))
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in model.graph.node}
    assert TensorProto.FLOAT not in float_types(model).values()
    (tmp_path / "cpu").mkdir()
    typed_float(tmp_path / "cpu", CPU, Artifact("export", "key", plain), images)
    assert [path.name for path in (tmp_path / "cpu").iterdir()] == ["model.onnx"]


BUILD = """
import sys, tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
if not parser.parse_from_file(sys.argv[1]):
    sys.exit("\\n".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM86, 0)
profile = builder.create_optimization_profile()
shape = list(network.get_input(0).shape)[1:]
profile.set_shape(network.get_input(0).name, [1, *shape], [2, *shape], [4, *shape])
config.add_optimization_profile(profile)
engine = builder.build_serialized_network(network, config)
print("bytes", engine.nbytes if engine is not None else sys.exit("no engine"))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_tensorrt_for_rtx_parses_and_builds_the_typed_graph(tmp_path: Path) -> None:
    net = Net(3)
    x = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="r1")
    x = net.op("MaxPool", x, name="pool2", kernel_shape=[2, 2], strides=[2, 2])
    y = net.conv(net.op("Relu", net.conv(x, 16, 16, name="a", group=16), name="r2"), 16, 16, name="b")
    x = net.op("Relu", net.op("Add", x, y, name="add"), name="r3")
    up = net.constant("up.weight", net.rng.standard_normal((16, 8, 2, 2)).astype(np.float32))
    x = net.op("Concat", net.op("ConvTranspose", x, up, name="up", strides=[2, 2]), net.conv("image", 8, 3), axis=1)
    path = net.save(tmp_path / "m.onnx", net.head(net.conv(x, 16, 16, name="last"), 16))
    quantized(tmp_path, path, TENSORRT)
    for name in ("model.onnx", "typed.onnx"):
        done = subprocess.run([sys.executable, "-c", BUILD, str(tmp_path / name)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("bytes")


def test_more_images_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="asks for 13 calibration images, but there are 12"):
        quantize_model(
            tmp_path, QuantizeSpec(images=13), TENSORRT, residual_net(tmp_path / "m.onnx"), pictures(12), contract()
        )
    assert not (tmp_path / "model.onnx").exists()


def test_the_usual_number_of_images_is_at_most_so_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with showing(Plain()):
        quantize_model(tmp_path, QuantizeSpec(), TENSORRT, residual_net(tmp_path / "m.onnx"), pictures(12), contract())
    assert json.loads((tmp_path / "quantize.json").read_text())["calibration"]["images"] == 12
    assert "12 images calibrate, all that there are (up to 256 by default)" in capsys.readouterr().err
