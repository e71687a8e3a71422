"""Where Q/DQ goes, on graphs small enough to know the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantize_graphs import ARM, CPU, TENSORRT, Net, residual_net

from edgecnn.process.errors import EdgeError
from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.graph.sessions import observe
from edgecnn.quantize.place.placement import Graph, Placement, place
from edgecnn.recipe.device import Scheme


def placed(path: Path, scheme: Scheme, keep: tuple[str, ...] = (), channels: int = 3) -> Placement:
    model = canonical(path)
    shape = (1, channels, 8, 8)
    shapes, _ = observe(model, [{"image": np.zeros(shape, np.float32)}])
    return place(Graph(model, shapes), scheme, keep)


def edges(placement: Placement) -> dict[str, list[tuple[str, int]]]:
    return {a.tensor: [(edge.node, edge.index) for edge in a.edges] for a in placement.activations}


def groups(placement: Placement) -> list[set[str]]:
    return [{a.tensor for a in members} for members in placement.groups().values() if len(members) > 1]


def test_residual_add_gets_qdq_on_its_skip_input_only(tmp_path: Path) -> None:
    found = placed(residual_net(tmp_path / "m.onnx"), TENSORRT)
    assert edges(found) == {
        "image": [("stem", 0)],
        "stem_relu_out": [("add", 1), ("first", 0)],
        "first_relu_out": [("second", 0)],
        "flatten_out": [("head", 0)],
    }
    assert [(w.node, w.tensor, w.axis) for w in found.weights] == [
        ("stem", "stem.weight", 0), ("first", "first.weight", 0), ("second", "second.weight", 0),
        ("head", "head.weight", 0),
    ]  # fmt: skip


@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_convs_into_an_add_the_projection_is_stored(tmp_path: Path, swapped: bool) -> None:
    net = Net(3)
    stem = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="relu")
    main, side = net.conv(stem, 16, 16, name="main"), net.conv(stem, 16, 16, kernel=1, name="side")
    total = net.op("Add", *((side, main) if swapped else (main, side)), name="add")
    found = edges(placed(net.save(tmp_path / "m.onnx", net.head(total, 16)), TENSORRT))
    assert found["side_out"] == [("add", 0 if swapped else 1)]
    assert "main_out" not in found


def test_concat_and_its_inputs_share_one_scale(tmp_path: Path) -> None:
    net = Net(3)
    left = net.op("Relu", net.conv("image", 16, 3, name="a"), name="left")
    right = net.op("Relu", net.conv("image", 16, 3, name="b"), name="right")
    joined = net.op("Concat", left, right, name="concat", axis=1)
    output = net.head(net.conv(joined, 16, 32, name="c"), 16)
    found = placed(net.save(tmp_path / "m.onnx", output), TENSORRT)
    assert groups(found) == [{"left_out", "right_out", "concat_out"}]
    assert edges(found)["left_out"] == [("concat", 0)]
    assert edges(found)["right_out"] == [("concat", 1)]


def test_max_pool_runs_in_int8_with_one_scale(tmp_path: Path) -> None:
    net = Net(3)
    stem = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="relu")
    pooled = net.op("MaxPool", stem, name="max", kernel_shape=[2, 2], strides=[2, 2])
    found = placed(net.save(tmp_path / "m.onnx", net.head(net.conv(pooled, 16, 16, name="c"), 16)), TENSORRT)
    assert groups(found) == [{"relu_out", "max_out"}]
    assert edges(found)["relu_out"] == [("max", 0)]


def test_a_padded_and_sliced_skip_has_the_scale_of_its_source(tmp_path: Path) -> None:
    net = Net(3)
    stem = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="relu")
    ends = [net.constant(n, np.asarray(v, np.int64)) for n, v in (("s", [0]), ("e", [8]), ("x", [2]), ("t", [2]))]
    sliced = net.op("Slice", stem, *ends, name="slice")
    pads = net.constant("pads", np.asarray([0, 4, 0, 0, 0, 4, 0, 0], np.int64))
    padded = net.op("Pad", sliced, pads, name="pad")
    weight = net.constant("w", net.rng.standard_normal((24, 16, 3, 3)).astype(np.float32))
    main = net.op("Conv", stem, weight, name="main", strides=[2, 1], pads=[1, 1, 1, 1])
    total = net.op("Add", padded, main, name="add")
    found = placed(net.save(tmp_path / "m.onnx", net.head(total, 24)), TENSORRT)
    assert edges(found)["pad_out"] == [("add", 0)]
    assert edges(found)["relu_out"] == [("main", 0), ("slice", 0)]
    assert groups(found) == [{"relu_out", "slice_out", "pad_out"}]


def test_silu_is_quantized_behind_its_mul_never_at_its_sigmoid(tmp_path: Path) -> None:
    net = Net(3)
    first = net.conv("image", 16, 3, name="first")
    silu = net.op("Mul", first, net.op("Sigmoid", first, name="sigmoid"), name="mul")
    found = edges(placed(net.save(tmp_path / "m.onnx", net.head(net.conv(silu, 16, 16, name="c"), 16)), TENSORRT))
    assert found["mul_out"] == [("c", 0)]
    assert "first_out" not in found
    assert "sigmoid_out" not in found


@pytest.mark.parametrize("scheme", [TENSORRT, CPU])
def test_squeeze_and_excitation_gate_stays_float(tmp_path: Path, scheme: Scheme) -> None:
    net = Net(3)
    stem = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="relu")
    squeezed = net.op("GlobalAveragePool", stem, name="squeeze")
    down = net.op("Relu", net.conv(squeezed, 8, 16, kernel=1, name="down"), name="down_relu")
    gate = net.op("Sigmoid", net.conv(down, 16, 8, kernel=1, name="up"), name="gate")
    scaled = net.op("Mul", stem, gate, name="scaled")
    found = placed(net.save(tmp_path / "m.onnx", net.head(net.conv(scaled, 16, 16, name="c"), 16)), scheme)
    assert found.int8_layers == {"stem", "c", "head"}
    assert found.why_float == dict.fromkeys(("down", "up"), "gate of a squeeze-and-excitation block")


def test_axes_of_transposed_convolution_gemm_and_matmul(tmp_path: Path) -> None:
    net = Net(3)
    x = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="relu")
    weight = net.constant("up.weight", net.rng.standard_normal((16, 12, 2, 2)).astype(np.float32))
    x = net.op("ConvTranspose", x, weight, name="up", strides=[2, 2])
    x = net.op("Flatten", net.op("GlobalAveragePool", x, name="pool"), name="flat")
    x = net.op("MatMul", x, net.constant("m", net.rng.standard_normal((12, 10)).astype(np.float32)), name="matmul")
    x = net.op("Gemm", x, net.constant("g", net.rng.standard_normal((10, 4)).astype(np.float32)), name="gemm")
    found = placed(net.save(tmp_path / "m.onnx", x), TENSORRT)
    assert {w.node: w.axis for w in found.weights} == {"stem": 0, "up": 1, "matmul": 1, "gemm": 1}


def test_few_channels_stay_float_but_not_at_the_image(tmp_path: Path) -> None:
    net = Net(3)
    x = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="r1")
    x = net.op("Relu", net.conv(x, 4, 16, name="thin"), name="r2")
    found = placed(net.save(tmp_path / "m.onnx", net.head(net.conv(x, 16, 4, name="wide"), 16)), TENSORRT)
    assert found.int8_layers == {"stem", "head"}
    assert set(found.why_float) == {"thin", "wide"}
    assert set(found.why_float.values()) == {"fewer than 8 channels"}


def test_onnxruntime_placement_covers_every_fusible_op(tmp_path: Path) -> None:
    found = edges(placed(residual_net(tmp_path / "m.onnx"), CPU))
    assert found == {
        "image": [("stem", 0)],
        "stem_relu_out": [("add", 1), ("first", 0)],
        "first_relu_out": [("second", 0)],
        "second_out": [("add", 0)],
        "last_relu_out": [("pool", 0)],
        "pool_out": [("flatten", 0)],
        "flatten_out": [("head", 0)],
    }


def test_symmetric_int8_quantizes_before_a_relu_that_cannot_fuse(tmp_path: Path) -> None:
    symmetric = ARM.model_copy(update={"activations": "int8-symmetric"})
    assert "first_out" in edges(placed(residual_net(tmp_path / "m.onnx"), symmetric))
    assert "first_out" not in edges(placed(residual_net(tmp_path / "m.onnx"), ARM))


def test_keep_float_takes_exact_names_and_offers_the_nearest(tmp_path: Path) -> None:
    path = residual_net(tmp_path / "m.onnx")
    found = placed(path, TENSORRT, keep=("second",))
    assert found.why_float == {"second": "kept float by the recipe"}
    assert edges(found)["stem_relu_out"] == [("first", 0)]  # a float Conv fuses with its Add in float
    with pytest.raises(EdgeError, match="names `secnd`, which is not a node") as error:
        placed(path, TENSORRT, keep=("secnd",))
    assert error.value.hint == "the nearest is `second`"


def test_a_graph_whose_layers_all_stay_float_is_refused(tmp_path: Path) -> None:
    path = residual_net(tmp_path / "m.onnx")
    with pytest.raises(EdgeError, match="every layer of the graph would stay float: kept float by the recipe"):
        placed(path, TENSORRT, keep=("stem", "first", "second", "head"))
    net = Net(3)
    with pytest.raises(EdgeError, match="would stay float: it has no layer with weights"):
        placed(net.save(tmp_path / "n.onnx", net.op("Relu", "image"), rank=4), TENSORRT)


def test_a_tensor_that_only_a_max_pool_reads_is_counted_behind_it() -> None:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(0, 1, (16, 16, 3, 3)).astype(np.float32), name) for name in ("w1", "w2")
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("MaxPool", ["b"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "w2"], ["y"], "conv2", pads=[1, 1, 1, 1]),
    ]
    shape = [1, 16, 8, 8]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 4, 4])], weights,
    )  # fmt: skip
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9))
    shapes = {"x": (1, 16, 8, 8), "a": (1, 16, 8, 8), "b": (1, 16, 8, 8), "p": (1, 16, 4, 4), "y": (1, 16, 4, 4)}
    placement = place(Graph(model, shapes), Scheme(activations="int8-symmetric", placement="tensorrt"))
    pooled = {activation.tensor: activation.pooled for activation in placement.activations}
    assert pooled == {"x": False, "b": True, "p": False}
    assert {activation.group for activation in placement.activations if activation.tensor in "bp"} == {1}
    assert [activation.tensor for activation in placement.counted] == ["x", "p"]
