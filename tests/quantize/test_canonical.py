"""The canonical graph: same function, fewer nodes; and the files that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from quantize_graphs import Net, residual_net

from edgecnn.onnx_file import check_onnx
from edgecnn.process.errors import EdgeError
from edgecnn.quantize.graph.canonical import canonical, opset
from edgecnn.quantize.graph.sessions import open_session, run


def equal(path: Path, *, channels: int = 3, size: int = 8, rtol: float = 1e-4) -> list[str]:
    """Assert that the canonical graph computes what the file does; its op types."""
    images = np.random.default_rng(0).random((2, channels, size, size)).astype(np.float32)
    model = canonical(path)
    want = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"image": images})
    for a, b in zip(want, run(open_session(model, simulate=True), {"image": images}), strict=True):
        np.testing.assert_allclose(b, a, rtol=rtol, atol=1e-5)
    return [node.op_type for node in model.graph]


def norm(net: Net, x: str, channels: int, name: str) -> str:
    values = [net.rng.random(channels) + 0.5, net.rng.standard_normal(channels), net.rng.standard_normal(channels),
              net.rng.random(channels) + 0.5]  # fmt: skip
    parts = ("scale", "shift", "mean", "variance")
    inputs = [net.constant(f"{name}.{n}", v.astype(np.float32)) for n, v in zip(parts, values, strict=True)]
    return net.op("BatchNormalization", x, *inputs, name=name)


@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_folds_into_conv_and_the_weight_keeps_its_name(tmp_path: Path, bias: bool) -> None:
    net = Net(3)
    x = norm(net, net.conv("image", 16, 3, name="c", bias=bias), 16, "bn")
    path = net.save(tmp_path / "m.onnx", net.op("Relu", x), rank=4)
    assert equal(path) == ["Conv", "Relu"]
    assert "c.weight" in canonical(path).graph.initializers


def test_a_slice_without_axes_gets_them_written(tmp_path: Path) -> None:
    net = Net(3)
    ends = [net.constant(name, np.asarray(values)) for name, values in (("starts", [0, 1]), ("ends", [9, 5]))]
    path = net.save(tmp_path / "m.onnx", net.op("Slice", net.conv("image", 8, 3, name="c"), *ends), rank=4)
    assert equal(path) == ["Conv", "Slice"]
    node = list(canonical(path).graph)[1]
    assert node.inputs[3] is not None
    assert node.inputs[3].const_value is not None
    assert node.inputs[3].const_value.numpy().tolist() == [0, 1]


@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norm_folds_into_transposed_conv(tmp_path: Path, groups: int) -> None:
    net = Net(4)
    weight = net.constant("w", net.rng.standard_normal((4, 6 // groups, 3, 3)).astype(np.float32))
    x = norm(net, net.op("ConvTranspose", "image", weight, name="t", group=groups), 6, "bn")
    assert equal(net.save(tmp_path / "m.onnx", x, rank=4), channels=4) == ["ConvTranspose"]


@pytest.mark.parametrize("transposed", [0, 1])
def test_batch_norm_folds_into_gemm(tmp_path: Path, transposed: int) -> None:
    net = Net(3)
    weight = net.rng.standard_normal((5, 192) if transposed else (192, 5)).astype(np.float32)
    x = net.op("Gemm", net.op("Flatten", "image"), net.constant("w", weight), name="g", transB=transposed)
    assert equal(net.save(tmp_path / "m.onnx", norm(net, x, 5, "bn"))) == ["Flatten", "Gemm"]


def test_a_weight_shared_by_two_convs_is_folded_for_one_only(tmp_path: Path) -> None:
    net = Net(3)
    first = net.conv("image", 3, 3, name="c", bias=False)
    second = net.op("Conv", first, "c.weight", name="d", pads=[1] * 4)
    assert equal(net.save(tmp_path / "m.onnx", norm(net, second, 3, "bn"), rank=4)) == ["Conv", "Conv"]


def test_batch_norm_before_a_branch_stays(tmp_path: Path) -> None:
    net = Net(3)
    x = net.conv("image", 4, 3, name="c")
    total = net.op("Add", norm(net, x, 4, "bn"), x)
    assert equal(net.save(tmp_path / "m.onnx", total, rank=4)) == ["Conv", "BatchNormalization", "Add"]


def test_padding_constants_identity_and_dropout_go(tmp_path: Path) -> None:
    net = Net(3)
    pads = np.asarray([0, 0, 1, 2, 0, 0, 0, 1], np.int64)
    padded = net.op("Pad", "image", net.op("Constant", value=onnx.numpy_helper.from_array(pads)), name="pad")
    x = net.op("Dropout", net.op("Identity", net.conv(padded, 4, 3, name="c")), name="drop")
    assert equal(net.save(tmp_path / "m.onnx", net.op("Relu", x), rank=4)) == ["Conv", "Relu"]


def test_shape_arithmetic_with_a_dynamic_batch_is_folded(tmp_path: Path) -> None:
    net = Net(3)
    shape = net.op("Shape", "image")
    height = net.op("Gather", shape, net.constant("two", np.asarray([2], np.int64)), axis=0)
    half = net.op("Div", height, net.constant("four", np.asarray([4], np.int64)))
    zeros = net.constant("zeros", np.zeros(2, np.int64))
    pads = net.op("Concat", zeros, half, half, zeros, half, half, axis=0)
    path = net.save(tmp_path / "m.onnx", net.conv(net.op("Pad", "image", pads), 4, 3, name="c"), rank=4)
    assert equal(path) == ["Conv"]
    assert list(canonical(path).graph.node(0).attributes["pads"].value) == [3, 3, 3, 3]


def test_pixels_are_cast_before_they_are_moved(tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 8, 8, 3])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 8, 8])
    nodes = [helper.make_node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2], name="move"),
             helper.make_node("Cast", ["t"], ["y"], to=TensorProto.FLOAT, name="cast")]  # fmt: skip
    path = tmp_path / "m.onnx"
    graph = helper.make_graph(nodes, "g", [image], [result])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), str(path))
    model = canonical(path)
    assert [node.op_type for node in model.graph] == ["Cast", "Transpose"]
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    (got,) = run(open_session(model), {"image": images})
    assert np.array_equal(got, images.transpose(0, 3, 1, 2).astype(np.float32))


@pytest.mark.parametrize("version", [11, 13, 17])
def test_older_opsets_are_raised(tmp_path: Path, version: int) -> None:
    net = Net(3, opset=version)
    path = net.save(tmp_path / "m.onnx", net.head(net.op("Relu", net.conv("image", 8, 3, name="c")), 8))
    assert opset(canonical(path)) == 19
    equal(path)


def test_unnamed_nodes_get_names_of_their_own(tmp_path: Path) -> None:
    net = Net(3)
    model = net.model(net.op("Relu", net.op("Relu", net.conv("image", 4, 3))), rank=4)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, str(tmp_path / "m.onnx"))
    names = [node.name for node in canonical(tmp_path / "m.onnx").graph]
    assert all(names)
    assert len(set(names)) == len(names)


# --- refusals ---


def refused(path: Path) -> str:
    with pytest.raises(EdgeError) as error:
        check_onnx(path)
    assert error.value.hint
    return error.value.message


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a model at all")
    assert "is not a readable ONNX file" in refused(tmp_path / "text.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert "holds no graph" in refused(tmp_path / "empty.onnx")


@pytest.mark.parametrize("version", [10, 24])
def test_opsets_outside_the_range(tmp_path: Path, version: int) -> None:
    model = onnx.load(str(residual_net(tmp_path / "m.onnx")))
    model.opset_import[0].version = version
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert f"has opset {version} of ai.onnx; edgecnn takes 11 to 23" in refused(tmp_path / "m.onnx")


def test_a_graph_that_fails_the_checker(tmp_path: Path) -> None:
    model = onnx.load(str(residual_net(tmp_path / "m.onnx")))
    model.graph.node[0].attribute.append(helper.make_attribute("nonsense", 1))
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert "fails the onnx checker: Unrecognized attribute: nonsense" in refused(tmp_path / "m.onnx")


def test_a_missing_initializer(tmp_path: Path) -> None:
    model = onnx.load(str(residual_net(tmp_path / "m.onnx")))
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "first.weight"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, str(tmp_path / "m.onnx"))
    told = refused(tmp_path / "m.onnx")
    assert "node `first` (Conv) of" in told
    assert "reads `first.weight`, which is not an input, an initializer or an output of a node" in told


def test_outputs_that_nothing_makes_or_that_have_no_shape(tmp_path: Path) -> None:
    model = onnx.load(str(residual_net(tmp_path / "m.onnx")))
    name = model.graph.output[0].name
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert f"output `{name}` of `{tmp_path / 'm.onnx'}` has no shape" in refused(tmp_path / "m.onnx")
    model.graph.output[0].name = "nobody"
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert "output `nobody` of" in refused(tmp_path / "m.onnx")


def test_a_cycle(tmp_path: Path) -> None:
    model = onnx.load(str(residual_net(tmp_path / "m.onnx")))
    model.graph.node[0].input[0] = model.graph.node[2].output[0]
    onnx.save(model, str(tmp_path / "m.onnx"))
    told = refused(tmp_path / "m.onnx")
    assert told.endswith("has a cycle: `stem_relu` (Relu) → `first` (Conv) → `stem` (Conv) → `stem_relu` (Relu)")


def test_missing_external_data(tmp_path: Path) -> None:
    model = onnx.load(str(residual_net(tmp_path / "m.onnx")))
    onnx.save(model, str(tmp_path / "e.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0)
    check_onnx(tmp_path / "e.onnx")
    (tmp_path / "weights.bin").unlink()
    message = refused(tmp_path / "e.onnx")
    assert "in the file `weights.bin`, which is missing" in message


def test_an_input_without_a_rank(tmp_path: Path) -> None:
    model = onnx.load(str(residual_net(tmp_path / "m.onnx")))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert "input `image` of" in refused(tmp_path / "m.onnx")


def test_an_already_quantized_graph(tmp_path: Path) -> None:
    net = Net(3)
    scale, zero = net.constant("s", np.float32(0.1)), net.constant("z", np.int8(0))
    integers = net.op("QuantizeLinear", "image", scale, zero, name="q")
    path = net.save(tmp_path / "m.onnx", net.op("DequantizeLinear", integers, scale, zero), rank=4)
    assert "is already quantized: node `q` is a QuantizeLinear" in refused(path)
