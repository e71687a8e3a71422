"""Cross-layer equalization and the search of weights: the same function, less noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from quantize_graphs import CPU, TENSORRT, Net, residual_net
from recovering import SIZE, begun, chain, saved, unseen_db

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.graph.sessions import open_session, run_each
from edgecnn.quantize.ladder.candidate import Tools, first
from edgecnn.quantize.ladder.quality import better, split
from edgecnn.quantize.rungs.channels import find
from edgecnn.quantize.rungs.equalize import equalize
from edgecnn.quantize.rungs.links import TOLERANCE, equalized, rescaled
from edgecnn.quantize.rungs.matrix import folded, scaled, unfolded
from edgecnn.quantize.rungs.moments import input_moments, joined
from edgecnn.quantize.rungs.rounding import compensated, nearest, row_errors
from edgecnn.quantize.rungs.weight_clip import with_searched_weights
from edgecnn.quantize.write.rewrite import serialized

LINKS = [("one", "two"), ("two", "three")]


def apart(first_model: ir.Model, second_model: ir.Model, tools: Tools) -> float:
    """Largest difference of float outputs, relative to the largest output."""
    feeds = list(tools.feeder.feeds())
    pairs = zip(run_each(open_session(first_model), feeds), run_each(open_session(second_model), feeds), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for x, y in pairs for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "PRelu", ""])
def test_unequal_channels_come_back(tmp_path: Path, activation: str) -> None:
    plain_tools, plain = begun(saved(chain(activation), tmp_path / "plain.onnx"), tmp_path)
    usual = unseen_db(plain.quantized(TENSORRT), plain.model)
    tools, hard = begun(saved(chain(activation), tmp_path / "hard.onnx", LINKS), tmp_path)
    assert apart(plain_tools.graph.model, tools.graph.model, tools) < TOLERANCE
    lost = unseen_db(hard.quantized(TENSORRT), hard.model)
    found = equalize(hard, tools)
    assert found.rungs == ("equalize",)
    assert apart(tools.graph.model, found.model, tools) < TOLERANCE
    assert lost < usual - 6.0
    assert unseen_db(found.quantized(TENSORRT), hard.model) > usual - 1.0
    serialized(found.quantized(TENSORRT))


def test_the_factors_alone_bring_it_back(tmp_path: Path) -> None:
    _, plain = begun(saved(chain(), tmp_path / "plain.onnx"), tmp_path)
    tools, hard = begun(saved(chain(), tmp_path / "hard.onnx", LINKS), tmp_path)
    model = equalized(tools.graph, hard.placement, tools.feeder, list(range(24)))
    assert model is not None
    again, _ = first(model, hard.placement, tools)
    usual = unseen_db(plain.quantized(TENSORRT), plain.model)
    assert unseen_db(again.quantized(TENSORRT), hard.model) > usual - 1.5


def test_never_through_silu(tmp_path: Path) -> None:
    tools, _ = begun(saved(chain("Silu"), tmp_path / "net.onnx"), tmp_path)
    found = find(tools.graph)
    for node in tools.graph.nodes():
        if node.name in ("one", "two", "three"):
            assert not found.free[found.group[node.outputs[0].name]].any()


def test_through_clip_only_below_its_bound(tmp_path: Path) -> None:
    net = chain("Clip")
    model = net.model(net.last)  # type: ignore[attr-defined]
    weights = {w.name: w for w in model.graph.initializer}
    bias = onnx.numpy_helper.to_array(weights["one.bias"]).copy()
    bias[:4] += 20.0  # these channels sit at the bound
    weights["one.bias"].CopyFrom(onnx.numpy_helper.from_array(bias, "one.bias"))
    onnx.save(model, str(tmp_path / "net.onnx"))
    tools, candidate = begun(tmp_path / "net.onnx", tmp_path)
    after = equalized(tools.graph, candidate.placement, tools.feeder, list(range(24)))
    assert after is not None
    assert apart(tools.graph.model, after, tools) < TOLERANCE
    before_bias, after_bias = (
        np.asarray(constant({n.name: n for n in m.graph}["one"].inputs[2])) for m in (tools.graph.model, after)
    )
    np.testing.assert_array_equal(before_bias[:4], after_bias[:4])
    assert (np.abs(after_bias[4:]) != np.abs(before_bias[4:])).any()


def test_a_residual_group_moves_as_one(tmp_path: Path) -> None:
    tools, _ = begun(residual_file(tmp_path), tmp_path)
    found = find(tools.graph)
    for tensor in ("second_out", "add_out", "last_relu_out", "pool_out", "flatten_out"):
        np.testing.assert_array_equal(found.group[tensor], found.group["stem_relu_out"])
    assert found.free[found.group["add_out"]].all()
    assert not (set(found.group["add_out"]) & set(found.group["first_relu_out"]))
    factors = np.exp(np.random.default_rng(0).uniform(-2, 2, len(found.free)))
    factors[~found.free] = 1.0
    assert apart(tools.graph.model, rescaled(tools.graph, found, factors), tools) < TOLERANCE


def residual_file(folder: Path) -> Path:
    """A residual net for 12 x 12 images."""
    residual_net(folder / "small.onnx")
    model = onnx.load(str(folder / "small.onnx"))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = SIZE
    onnx.save(model, str(folder / "net.onnx"))
    return folder / "net.onnx"


def test_concat_split_slice_pad_and_flatten_keep_track_of_channels(tmp_path: Path) -> None:
    net = Net(3, SIZE)

    def whole(name: str, values: list[int]) -> str:
        return net.constant(name, np.asarray(values, np.int64))

    a = net.op("Relu", net.conv("image", 8, 3, name="a"))
    b = net.conv("image", 8, 3, name="b")
    joined = net.op("Concat", a, b, axis=1, name="cat")
    sliced = net.op("Slice", joined, whole("from", [4]), whole("to", [12]), whole("axes", [1]), name="slice")
    padded = net.op("Pad", sliced, whole("pads", [0, 4, 0, 0, 0, 4, 0, 0]), name="pad")
    total = net.op("Add", padded, net.conv("image", 16, 3, name="c"), name="add")
    shifted = net.op("Add", total, net.constant("shift", np.ones((1, 16, 1, 1), np.float32)), name="shifted")
    pooled = net.op("MaxPool", shifted, kernel_shape=[6, 6], strides=[6, 6], name="max")
    flat = net.op("Flatten", pooled, name="flat")
    weight = net.constant("w", net.rng.standard_normal((64, 5)).astype(np.float32))
    net.save(tmp_path / "net.onnx", net.op("Gemm", flat, weight, name="gemm"))
    tools, _ = begun(tmp_path / "net.onnx", tmp_path)
    found = find(tools.graph)
    assert found.free[found.group["add_out"]].all()
    np.testing.assert_array_equal(found.group["add_out"][4:8], found.group["a_out"][4:])
    np.testing.assert_array_equal(found.group["add_out"][8:12], found.group["b_out"][:4])
    np.testing.assert_array_equal(found.group["flat_out"], np.repeat(found.group["max_out"], 4))
    factors = np.exp(np.random.default_rng(0).uniform(-2, 2, len(found.free)))
    factors[~found.free] = 1.0
    assert apart(tools.graph.model, rescaled(tools.graph, found, factors), tools) < TOLERANCE


def test_a_shared_weight_and_an_unknown_operator_stay(tmp_path: Path) -> None:
    net = Net(3, SIZE)
    x = net.op("Relu", net.conv("image", 8, 3, name="one"))
    shared = net.constant("shared", net.rng.standard_normal((8, 8, 3, 3)).astype(np.float32) * 0.1)
    for name in ("two", "three"):
        x = net.op("Relu", net.op("Conv", x, shared, name=name, pads=[1] * 4))
    x = net.op("Relu", net.conv(x, 8, 8, name="four"))
    x = net.op("Softplus", net.conv(x, 8, 8, name="five"))
    net.save(tmp_path / "net.onnx", net.head(x, 8))
    tools, _ = begun(tmp_path / "net.onnx", tmp_path)
    found = find(tools.graph)
    free = {
        name: bool(found.free[found.group[f"{name}_out"]].any()) for name in ("one", "two", "three", "four", "five")
    }
    assert free == {"one": False, "two": False, "three": False, "four": True, "five": False}


@pytest.mark.parametrize(
    ("operator", "shape", "attributes"),
    [
        ("Conv", (6, 4, 3, 3), {}), ("Conv", (6, 2, 3, 3), {"group": 2}), ("Conv", (6, 1, 3, 3), {"group": 6}),
        ("ConvTranspose", (4, 3, 2, 2), {"group": 2}), ("Gemm", (6, 4), {"transB": 1}), ("Gemm", (4, 6), {}),
        ("MatMul", (4, 6), {}),
    ],
)  # fmt: skip
def test_a_weight_takes_up_factors(operator: str, shape: tuple[int, ...], attributes: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape).astype(np.float32)
    inputs = 6 if attributes.get("group") == 6 else 4
    image = rng.standard_normal((1, inputs, 5, 5) if len(shape) == 4 else (3, inputs)).astype(np.float32)
    node = ir.node(operator, [ir.Value(name="x"), ir.Value(name="w")], attributes)

    def output(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        made = helper.make_graph(
            [helper.make_node(operator, ["x", "w"], ["y"], **attributes)], "one",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [onnx.numpy_helper.from_array(w, "w")],
        )  # fmt: skip
        session = open_session(helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9))
        return np.asarray(session.run(None, {"x": x})[0])

    before = output(image, weight)
    s, t = (np.exp(rng.uniform(-1, 1, n)) for n in (inputs, before.shape[1]))
    tall = (1, -1) + (1,) * (image.ndim - 2)
    after = output((image * s.reshape(tall)).astype(np.float32), scaled(node, weight, s, t))
    np.testing.assert_allclose(after, before * t.reshape(tall), rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(folded(node, unfolded(node, weight), weight.shape), weight)


@pytest.mark.parametrize("attributes", [{}, {"strides": [2, 2]}, {"dilations": [2, 2], "pads": [2] * 4}, {"group": 3},
                                        {"auto_pad": "SAME_UPPER", "strides": [2, 2]}])  # fmt: skip
def test_moments_tell_the_error_at_the_output(tmp_path: Path, attributes: dict[str, object]) -> None:
    """The power and the mean of a changed weight's output error, against running it."""
    net = Net(3, SIZE)
    group = int(attributes.get("group", 1))  # type: ignore[call-overload]
    weight = net.rng.standard_normal((6, 3 // group, 3, 3)).astype(np.float32)
    given = {"pads": [1] * 4} | attributes
    if "auto_pad" in given:
        del given["pads"]
    made = net.op("Conv", "image", net.constant("w", weight), name="conv", **given)
    net.save(tmp_path / "net.onnx", made, rank=4)
    tools, _ = begun(tmp_path / "net.onnx", tmp_path, images=8)
    node = next(n for n in tools.graph.nodes() if n.op_type == "Conv")
    parts = input_moments(tools.feeder, tools.graph, [node], list(range(8)))["conv"]
    assert len(parts) == 2
    moments = joined(parts)
    change = net.rng.standard_normal(weight.shape).astype(np.float32)
    flat = unfolded(node, change).reshape(group, 6 // group, -1)
    model = onnx.load(str(tmp_path / "net.onnx"))
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(change, "w"))
    outputs = np.concatenate([o[0] for o in run_each(open_session(model), tools.feeder.feeds())])
    np.testing.assert_allclose(row_errors(flat, moments.second).ravel(), np.square(outputs).mean((0, 2, 3)), rtol=1e-4)
    means = np.einsum("gok,gk->go", flat, moments.mean).ravel()
    np.testing.assert_allclose(means, outputs.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_compensated_rounding_beats_nearest_and_stays_in_range() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((2, 9, 1)) + 0.1 * rng.standard_normal((2, 9, 400))  # nine inputs that are much alike
    hessian = base @ base.transpose(0, 2, 1) / 400 + 1e-4 * np.eye(9)
    weight = rng.standard_normal((2, 5, 9))
    scales = np.abs(weight).max(axis=2) / 7
    near, found = nearest(weight, scales, 7), compensated(weight, scales, 7, hessian)
    assert np.array_equal(found, np.rint(found))
    assert np.abs(found).max() <= 7
    errors = [row_errors(steps * scales[..., None] - weight, hessian) for steps in (near, found)]
    assert (errors[1] <= errors[0]).all()
    assert errors[1].sum() < 0.5 * errors[0].sum()


@pytest.mark.parametrize(
    "scheme", [TENSORRT, TENSORRT.model_copy(update={"weight_bits": 4}), CPU], ids=["8", "4", "cpu"]
)
def test_searched_weights_err_less(tmp_path: Path, scheme: object) -> None:
    tools, candidate = begun(saved(chain(), tmp_path / "net.onnx"), tmp_path, scheme)  # type: ignore[arg-type]
    fine = replace(tools, scheme=scheme)  # type: ignore[arg-type]
    found = with_searched_weights(candidate, fine, split(fine)[0])
    assert candidate.overrides.weights == {}
    limit = 7 if scheme.weight_bits == 4 else 127  # type: ignore[attr-defined]
    assert all(np.abs(w.values.astype(int)).max() <= limit for w in found.overrides.weights.values())
    assert set(found.overrides.weights) == {"one.weight", "two.weight", "three.weight", "head.weight"}
    before, after = (unseen_db(c.quantized(scheme), tools.graph.model) for c in (candidate, found))  # type: ignore[arg-type]
    assert after > before + (3.0 if scheme.weight_bits == 4 else -0.1)  # type: ignore[attr-defined]


def test_the_same_again_and_its_input_untouched(tmp_path: Path) -> None:
    tools, candidate = begun(saved(chain(), tmp_path / "net.onnx", LINKS), tmp_path)
    before = serialized(candidate.quantized(TENSORRT))
    one, other = (serialized(equalize(candidate, tools).quantized(TENSORRT)) for _ in range(2))
    assert one == other
    assert serialized(candidate.quantized(TENSORRT)) == before


def test_one_image_gives_a_defined_result(tmp_path: Path) -> None:
    tools, candidate = begun(saved(chain(), tmp_path / "net.onnx", LINKS), tmp_path, images=1)
    found = equalize(candidate, tools)
    which, _ = better(tools, candidate, [found], [0])
    assert found is candidate or found.rungs in ((), ("equalize",))
    assert which in (-1, 0)
    serialized(found.quantized(TENSORRT))
