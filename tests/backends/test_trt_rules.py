"""One planted violation for each row of the TensorRT 10.3 rules; the refused node is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from golden_graphs import colours
from onnx import TensorProto, helper, numpy_helper

from edgecnn.backends.tensorrt import rules as trt_rules
from edgecnn.process.errors import EdgeError

Plant = Callable[[onnx.ModelProto], None]


def constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    """Set an initializer."""
    kept = [one for one in model.graph.initializer if one.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, numpy_helper.from_array(value, name)])


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """A node by name."""
    return next(one for one in model.graph.node if one.name == name)


def after_conv(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Put a chain of nodes from tensor `c` to tensor `planted` in front of the pooling."""
    place = next(i for i, one in enumerate(model.graph.node) if one.name == "pool")
    for number, one in enumerate(nodes):
        model.graph.node.insert(place + number, one)
    node(model, "pool").input[0] = "planted"


def opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 21


def old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 8


def ir_version(model: onnx.ModelProto) -> None:
    model.ir_version = 10


def domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    after_conv(model, helper.make_node("Gelu", ["c"], ["planted"], "planted", domain="com.microsoft"))


def suppression(model: onnx.ModelProto) -> None:
    constant(model, "boxes", np.zeros((1, 4, 4), np.float32))
    constant(model, "scores", np.zeros((1, 1, 4), np.float32))
    model.graph.node.append(helper.make_node("NonMaxSuppression", ["boxes", "scores"], ["kept"], "planted"))


def subgraph(model: onnx.ModelProto) -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["b"])], "branch", [], [helper.make_tensor_value_info("b", 1, None)]
    )
    constant(model, "yes", np.array(True))
    after_conv(model, helper.make_node("If", ["yes"], ["planted"], "planted", then_branch=branch, else_branch=branch))


def operator(model: onnx.ModelProto) -> None:
    after_conv(model, helper.make_node("BitShift", ["c", "c"], ["planted"], "planted", direction="LEFT"))


def double(model: onnx.ModelProto) -> None:
    after_conv(
        model,
        helper.make_node("Cast", ["c"], ["wide"], "planted", to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["wide"], ["planted"], "back", to=TensorProto.FLOAT),
    )


def uint8(model: onnx.ModelProto) -> None:
    """The images are transposed before they are cast."""
    cast, transpose = node(model, "cast"), node(model, "transpose")
    transpose.input[0], transpose.output[0] = "image", "early"
    cast.input[0], cast.output[0] = "early", "nchw"
    transpose.name = "planted"
    order = [transpose, cast, *[one for one in model.graph.node if one.name not in ("planted", "cast")]]
    copies = [onnx.NodeProto.FromString(one.SerializeToString()) for one in order]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def shape(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "height"
    node(model, "cast").name = "planted"


def pool_indices(model: onnx.ModelProto) -> None:
    after_conv(model, helper.make_node("MaxPool", ["c"], ["planted", "where"], "planted", kernel_shape=[2, 2]))


def spatial(model: onnx.ModelProto) -> None:
    after_conv(model, helper.make_node("MaxPool", ["c"], ["planted"], "planted", kernel_shape=[1, 1, 1, 1]))


def resize(model: onnx.ModelProto) -> None:
    constant(model, "sizes", np.array([1, 1, 2, 2], np.float32))
    after_conv(
        model,
        helper.make_node("Resize", ["c", "", "sizes"], ["planted"], "planted", mode="linear", antialias=1),
    )


def training(model: onnx.ModelProto) -> None:
    for name in ("gamma", "beta", "mean", "var"):
        constant(model, name, np.ones(3, np.float32))
    inputs = ["c", "gamma", "beta", "mean", "var"]
    after_conv(model, helper.make_node("BatchNormalization", inputs, ["planted", "m", "v"], "planted", training_mode=1))


def unsigned(model: onnx.ModelProto) -> None:
    constant(model, "z", np.array(0, np.uint8))
    node(model, "quantize").name = "planted"


def zero_point(model: onnx.ModelProto) -> None:
    constant(model, "z", np.array(3, np.int8))
    node(model, "quantize").name = "planted"


def bias(model: onnx.ModelProto) -> None:
    constant(model, "b", np.zeros(3, np.int32))
    constant(model, "bs", np.ones(3, np.float32))
    place = next(i for i, one in enumerate(model.graph.node) if one.name == "conv")
    model.graph.node.insert(place, helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], "planted", axis=0))
    node(model, "conv").input.append("bd")


def computed_scale(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Abs", ["s"], ["s_now"], "abs"))
    node(model, "quantize").input[1] = "s_now"
    node(model, "quantize").name = "planted"


def zero_scale(model: onnx.ModelProto) -> None:
    constant(model, "ws", np.array([0.1, 0.0, 0.1], np.float32))
    node(model, "dequantize_weight").name = "planted"


def scale_type(model: onnx.ModelProto) -> None:
    constant(model, "s", np.array(0.01, np.float16))
    node(model, "quantize").name = "planted"


def per_channel_activation(model: onnx.ModelProto) -> None:
    constant(model, "s", np.full(3, 0.01, np.float32))
    constant(model, "z", np.zeros(3, np.int8))
    node(model, "quantize").name = "planted"


def weight_axis(model: onnx.ModelProto) -> None:
    dequantize = node(model, "dequantize_weight")
    del dequantize.attribute[:]
    dequantize.attribute.append(helper.make_attribute("axis", 1))
    dequantize.name = "planted"


def blocked(model: onnx.ModelProto) -> None:
    node(model, "dequantize_weight").attribute.append(helper.make_attribute("block_size", 16))
    node(model, "dequantize_weight").name = "planted"


# rule → what plants its violation, the node that must be named, and words that must be said
PLANTED: dict[str, tuple[Plant, str, str]] = {
    "opset": (opset, "cast", "opset 21"),  # Cast is the first whose definition changed after 19
    "ir-version": (ir_version, "cast", "IR version 10"),
    "domain": (domain, "planted", "com.microsoft"),
    "suppression": (suppression, "planted", "NonMaxSuppression"),
    "subgraph": (subgraph, "planted", "If holds a subgraph"),
    "operator": (operator, "planted", "BitShift"),
    "type": (double, "planted", "DOUBLE"),
    "uint8": (uint8, "planted", "Transpose reads the UINT8 tensor `image`"),
    "shape": (shape, "planted", "free dimension"),
    "pool-indices": (pool_indices, "planted", "Indices"),
    "spatial": (spatial, "planted", "4 spatial dimensions"),
    "resize": (resize, "planted", "antialias"),
    "training": (training, "planted", "training mode"),
    "int8-only": (unsigned, "planted", "UINT8"),
    "zero-point": (zero_point, "planted", "not zero"),
    "bias": (bias, "planted", "a quantized bias"),
    "scale-constant": (computed_scale, "planted", "computed, not constant"),
    "scale-positive": (zero_scale, "planted", "has the value 0"),
    "scale-type": (scale_type, "planted", "FLOAT16 but `x` is FLOAT"),
    "activation-granularity": (per_channel_activation, "planted", "3 scales"),
    "weight-axis": (weight_axis, "planted", "along axis 1"),
    "block": (blocked, "planted", "block_size 16"),
}


def planted(tmp_path: Path, plant: Plant) -> Path:
    """The golden graph with a violation in it."""
    path = colours(tmp_path / "golden.onnx", quantized=True)
    model = onnx.load(str(path))
    plant(model)
    onnx.save(model, str(tmp_path / "planted.onnx"))
    return tmp_path / "planted.onnx"


def test_every_row_has_its_planted_violation() -> None:
    assert [rule.id for rule in trt_rules.RULES] == list(PLANTED)


@pytest.mark.parametrize("rule", PLANTED)
def test_a_planted_violation_is_refused_with_its_node(tmp_path: Path, rule: str) -> None:
    plant, name, words = PLANTED[rule]
    found = {one.rule.id: one for one in reversed(trt_rules.check(planted(tmp_path, plant)))}
    assert rule in found
    assert found[rule].node == name
    assert words in found[rule].words


@pytest.mark.parametrize("rule", PLANTED)
def test_the_refusal_is_an_error_that_names_node_rule_and_source(tmp_path: Path, rule: str) -> None:
    plant, name, _ = PLANTED[rule]
    model = planted(tmp_path, plant)
    first = trt_rules.check(model)[0].rule
    with pytest.raises(EdgeError, match=f"TensorRT 10.3 rules refuse node `{name}` of `planted.onnx`") as caught:
        trt_rules.refuse(model)
    assert f"`{first.id}`" in caught.value.hint
    assert first.source in caught.value.hint


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
def test_what_our_quantizer_writes_is_accepted(tmp_path: Path, quantized: bool, half: bool) -> None:
    model = colours(tmp_path / "m.onnx", quantized=quantized, half=half)
    assert trt_rules.check(model) == []
    assert trt_rules.refuse(model) == f"{len(trt_rules.RULES)} rules"


def test_too_old_an_opset_is_refused_too(tmp_path: Path) -> None:
    assert "opset" in {one.rule.id for one in trt_rules.check(planted(tmp_path, old_opset))}


def plugin(model: onnx.ModelProto) -> None:
    """The suppression plugin as it should be."""
    constant(model, "boxes", np.zeros((1, 4, 4), np.float32))
    constant(model, "scores", np.zeros((1, 4, 2), np.float32))
    model.opset_import.append(helper.make_opsetid("TRT", 1))
    found = helper.make_node(
        "EfficientNMS_TRT", ["boxes", "scores"], ["n", "b", "s", "k"], "planted", domain="TRT", plugin_version="1",
        score_threshold=0.25, iou_threshold=0.5, max_output_boxes=100, background_class=-1, score_activation=0,
        box_coding=0,
    )  # fmt: skip
    model.graph.node.append(found)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda node: node.input.append("scores"), "3 inputs and 4 outputs"),
        (lambda node: node.output.pop(), "2 inputs and 3 outputs"),
        (lambda node: node.attribute.pop(1), "no FLOAT attribute `score_threshold`"),
        (lambda node: node.attribute[0].CopyFrom(helper.make_attribute("plugin_version", "2")), "of version b'2'"),
    ],
)
def test_a_suppression_plugin_must_be_what_tensorrt_has(
    tmp_path: Path, spoil: Callable[[onnx.NodeProto], object], words: str
) -> None:
    assert trt_rules.check(planted(tmp_path, plugin)) == []

    def spoiled(model: onnx.ModelProto) -> None:
        plugin(model)
        attributes = {one.name: one for one in node(model, "planted").attribute}
        ordered = [attributes.pop("plugin_version"), attributes.pop("score_threshold"), *attributes.values()]
        copies = [onnx.AttributeProto.FromString(one.SerializeToString()) for one in ordered]
        del node(model, "planted").attribute[:]
        node(model, "planted").attribute.extend(copies)
        spoil(node(model, "planted"))

    (found,) = trt_rules.check(planted(tmp_path, spoiled))
    assert (found.rule.id, found.node) == ("suppression", "planted")
    assert words in found.words


def test_a_float_weight_quantized_in_the_graph_may_be_per_channel(tmp_path: Path) -> None:
    def float_weight(model: onnx.ModelProto) -> None:
        constant(model, "w", np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1))
        place = next(i for i, one in enumerate(model.graph.node) if one.name == "dequantize_weight")
        quantize = helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], "quantize_weight", axis=0)
        model.graph.node.insert(place, quantize)
        node(model, "dequantize_weight").input[0] = "wq"

    assert trt_rules.check(planted(tmp_path, float_weight)) == []


def test_a_file_that_is_not_onnx(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("hello")
    with pytest.raises(EdgeError, match="not a readable ONNX file"):
        trt_rules.check(tmp_path / "m.onnx")
