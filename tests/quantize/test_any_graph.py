"""Any user's ONNX: every kind of graph is quantized for both runtimes, computes what it did, and passes their rules."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantize_graphs import CPU, TENSORRT, Net, contract, pictures, residual_net

from edgecnn.backends.tensorrt.rules import check
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError
from edgecnn.quantize import quantize_model
from edgecnn.quantize.calibration.arrays import NamedArrays, read_arrays
from edgecnn.quantize.graph.canonical import canonical, opset
from edgecnn.quantize.graph.sessions import open_session, run
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.recipe import QuantizeSpec
from edgecnn.targets import jobs

SPEC = QuantizeSpec(images=8, ranges="minmax", recover="off")
SCHEMES = pytest.mark.parametrize("scheme", [TENSORRT, CPU], ids=["tensorrt", "cpu"])


class Notes(progress.Plain):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def quantized(folder: Path, path: Path, scheme: Scheme, *, size: int = 8) -> dict[str, object]:
    """Quantize; onnx's checker, the error and TensorRT 10.3's rules must be content. The report."""
    out = folder / "int8"
    out.mkdir(parents=True)
    images = pictures(8, size)
    quantize_model(out, SPEC, scheme, path, images, contract(size=size))
    report: dict[str, object] = json.loads((out / "quantize.json").read_text())
    onnx.checker.check_model(onnx.load(str(out / "model.onnx")), full_check=True)
    assert report["sqnr_db"] > 15.0  # type: ignore[operator]
    feed = contract(size=size).feed(images.images[:1])
    want = run(open_session(canonical(path)), feed)
    if scheme is TENSORRT:
        assert not check(out / "typed.onnx")
        for a, b in zip(want, run(open_session(out / "typed.onnx", simulate=True), feed), strict=True):
            assert np.abs(a - b).max() <= 0.1 * np.abs(a).max()
    return report


def layers(report: dict[str, object]) -> dict[str, bool]:
    return {layer["name"]: layer["int8"] for layer in report["layers"]}  # type: ignore[attr-defined]


# --- one graph of each kind; `int8`: its layers beside stem and head, and whether they are INT8 ---


def plain(net: Net, x: str) -> str:
    return net.conv(x, 16, 16, name="c")


def no_bias(net: Net, x: str) -> str:
    return net.conv(x, 16, 16, name="c", bias=False)


def grouped(net: Net, x: str) -> str:
    return net.conv(x, 16, 16, name="c", group=4)


def depthwise(net: Net, x: str) -> str:
    return net.conv(x, 16, 16, name="c", group=16)


def dilated(net: Net, x: str) -> str:
    weight = net.constant("c.weight", net.rng.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12)
    return net.op("Conv", x, weight, name="c", dilations=[2, 2], pads=[2] * 4)


def same_padding(net: Net, x: str) -> str:
    weight = net.constant("c.weight", net.rng.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12)
    return net.op("Conv", x, weight, name="c", auto_pad="SAME_UPPER", strides=[2, 2])


def transposed(net: Net, x: str) -> str:
    weight = net.constant("c.weight", net.rng.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12)
    return net.op("ConvTranspose", x, weight, name="c", strides=[2, 2], pads=[1] * 4, output_padding=[1, 1])


def transposed_groups(net: Net, x: str) -> str:
    weight = net.constant("c.weight", net.rng.standard_normal((16, 4, 2, 2)).astype(np.float32) / 4)
    return net.op("ConvTranspose", x, weight, name="c", strides=[2, 2], group=4)


def relu6(net: Net, x: str) -> str:
    ends = [net.constant("low", np.float32(0)), net.constant("high", np.float32(6))]
    return net.op("Clip", net.conv(x, 16, 16, name="c"), *ends)


def clip_without_end(net: Net, x: str) -> str:
    ends = [net.constant("low", np.float32(0)), net.constant("high", np.float32(3.4e38))]
    return net.op("Clip", net.conv(x, 16, 16, name="c"), *ends)


def hard_swish(net: Net, x: str) -> str:
    return net.op("HardSwish", net.conv(x, 16, 16, name="c"))


def excited(net: Net, x: str) -> str:
    inner = net.op("Relu", net.conv(net.op("GlobalAveragePool", x), 8, 16, kernel=1, name="down"))
    gate = net.op("HardSigmoid", net.conv(inner, 16, 8, kernel=1, name="up"))
    return net.conv(net.op("Mul", x, gate), 16, 16, name="c")


def shuffled(net: Net, x: str) -> str:
    wide = net.op("DepthToSpace", net.conv(x, 64, 16, name="c"), blocksize=2, mode="CRD")
    return net.conv(wide, 16, 16, name="d")


def shared(net: Net, x: str) -> str:
    first = net.op("Relu", net.conv(x, 16, 16, name="c"))
    return net.op("Conv", first, "c.weight", "c.bias", name="d", pads=[1] * 4)


def channel_shuffle(net: Net, x: str) -> str:
    apart = net.op("Reshape", x, net.constant("s1", np.asarray([0, 2, 8, 8, 8], np.int64)))
    turned = net.op("Transpose", apart, perm=[0, 2, 1, 3, 4])
    return net.conv(
        net.op("Reshape", turned, net.constant("s2", np.asarray([0, 16, 8, 8], np.int64))), 16, 16, name="c"
    )


def upsampled(net: Net, x: str) -> str:
    sizes = net.constant("scales", np.asarray([1, 1, 2, 2], np.float32))
    return net.conv(net.op("Resize", x, "", sizes, mode="linear"), 16, 16, name="c")


def reflected(net: Net, x: str) -> str:
    pads = net.constant("pads", np.asarray([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    return net.conv(net.op("Pad", x, pads, mode="reflect"), 16, 16, name="c")


def layer_norm(net: Net, x: str) -> str:
    moved = net.op("Transpose", x, perm=[0, 2, 3, 1])
    ends = [net.constant("g", np.ones(16, np.float32)), net.constant("b", np.zeros(16, np.float32))]
    back = net.op("Transpose", net.op("LayerNormalization", moved, *ends, axis=-1), perm=[0, 3, 1, 2])
    return net.conv(back, 16, 16, name="c")


def split_and_sliced(net: Net, x: str) -> str:
    net.nodes.append(helper.make_node("Split", [x], ["half0", "half1"], name="split", axis=1, num_outputs=2))
    return net.op("Concat", net.conv("half0", 8, 8, name="c"), "half1", axis=1)


KINDS: dict[str, tuple[Callable[[Net, str], str], dict[str, bool]]] = {
    kind.__name__: (kind, expected)
    for kind, expected in (
        (plain, {"c": True}), (no_bias, {"c": True}), (grouped, {"c": True}), (depthwise, {"c": True}),
        (dilated, {"c": True}), (same_padding, {"c": True}), (transposed, {"c": True}), (relu6, {"c": True}),
        (clip_without_end, {"c": True}), (hard_swish, {"c": True}), (transposed_groups, {"c": True}),
        (excited, {"down": False, "up": False, "c": True}), (shuffled, {"c": True, "d": True}),
        (shared, {"c": True, "d": True}), (channel_shuffle, {"c": True}), (upsampled, {"c": True}),
        (reflected, {"c": True}), (layer_norm, {"c": True}), (split_and_sliced, {"c": True}),
    )
}  # fmt: skip


def built(folder: Path, kind: str) -> Path:
    net = Net(3)
    x = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="stem_relu")
    return net.save(folder / f"{kind}.onnx", net.head(KINDS[kind][0](net, x), 16))


@SCHEMES
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_layers(tmp_path: Path, kind: str, scheme: Scheme) -> None:
    report = quantized(tmp_path, built(tmp_path, kind), scheme)
    expected = {"stem": True, "head": True, **KINDS[kind][1]}
    if scheme is CPU and kind.startswith("transposed"):
        expected["c"] = False  # onnxruntime's CPU has no INT8 ConvTranspose
    assert layers(report) == expected


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_tensorrt_for_rtx_parses_every_kind(tmp_path: Path) -> None:
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        quantize_model(tmp_path / kind, SPEC, TENSORRT, built(tmp_path, kind), pictures(8), contract())
        jobs.parse(tmp_path, "tensorrt-rtx", tmp_path / kind / "typed.onnx")


# --- opsets ---


@pytest.mark.parametrize("version", range(11, 24))
def test_every_opset_becomes_19(tmp_path: Path, version: int) -> None:
    net = Net(3, opset=version)
    stem = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="relu")
    total = net.op("Add", net.conv(stem, 16, 16, name="c"), stem, name="add")
    path = net.save(tmp_path / "m.onnx", net.head(net.op("MaxPool", total, kernel_shape=[2, 2]), 16))
    assert opset(canonical(path)) == 19
    quantized(tmp_path, path, TENSORRT)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_opset_20_is_written_out(tmp_path: Path, approximate: str) -> None:
    net = Net(3, opset=20)
    x = net.op("Gelu", net.conv("image", 16, 3, name="stem"), name="gelu", approximate=approximate)
    path = net.save(tmp_path / "m.onnx", net.head(x, 16))
    feed = contract().feed(pictures(2).images)
    (want,) = run(open_session(path), feed)
    (got,) = run(open_session(canonical(path)), feed)
    np.testing.assert_allclose(got, want, atol=1e-5)
    quantized(tmp_path, path, TENSORRT)


# --- how a file holds its graph ---


def test_external_data(tmp_path: Path) -> None:
    model = onnx.load(str(residual_net(tmp_path / "m.onnx")))
    (tmp_path / "apart").mkdir()
    path = tmp_path / "apart" / "e.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    assert layers(quantized(tmp_path, path, TENSORRT)) == dict.fromkeys(("stem", "first", "second", "head"), True)
    again = onnx.load(str(tmp_path / "int8" / "model.onnx"), load_external_data=False)
    assert all(tensor.data_location != TensorProto.EXTERNAL for tensor in again.graph.initializer)


@pytest.mark.parametrize("where", ["Constant nodes", "inputs too"])
def test_weights_that_are_not_plain_initializers(tmp_path: Path, where: str) -> None:
    model = onnx.load(str(residual_net(tmp_path / "m.onnx")))
    tensors = list(model.graph.initializer)
    if where == "inputs too":  # IR version 3: an initializer is the default of an input
        for tensor in tensors:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    else:
        nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors]
        del model.graph.initializer[:]
        kept = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*nodes, *kept])
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert all(layers(quantized(tmp_path, tmp_path / "m.onnx", TENSORRT)).values())


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch(tmp_path: Path, batch: int) -> None:
    net = Net(3)
    net.shape[0] = batch
    x = net.op("Relu", net.conv("image", 16, 3, name="stem"))
    (tmp_path / "int8").mkdir()
    path = net.save(tmp_path / "m.onnx", net.head(x, 16))
    quantize_model(tmp_path / "int8", SPEC, TENSORRT, path, pictures(8), contract())
    report = json.loads((tmp_path / "int8" / "quantize.json").read_text())
    assert report["calibration"]["batch"] == batch
    assert report["sqnr_db"] > 15.0
    assert not check(tmp_path / "int8" / "typed.onnx")


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    net = Net(3, opset=17)
    x = net.conv("image", 16, 3, name="stem")
    net.nodes.append(helper.make_node("Swish", [x], ["swished"], name="swish", domain="mine"))
    imports = [helper.make_opsetid("", 17)]
    body = [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["b"])]
    swish = helper.make_function("mine", "Swish", ["a"], ["b"], body, imports)
    output = net.head("swished", 16)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, net.shape)
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph(net.nodes, "net", [image], [result], net.weights)
    imports = [*imports, helper.make_opsetid("mine", 1)]
    model = helper.make_model(graph, functions=[swish], opset_imports=imports, ir_version=8)
    onnx.save(model, str(tmp_path / "m.onnx"))
    quantized(tmp_path, tmp_path / "m.onnx", TENSORRT)
    assert {node.op_type for node in canonical(tmp_path / "m.onnx").graph} >= {"Sigmoid", "Mul"}


def test_half_precision_weights(tmp_path: Path) -> None:
    """FP16 inside, float32 at the ends, as `keep_io_types` converters write it."""
    net = Net(3)
    half = net.op("Cast", "image", name="in", to=TensorProto.FLOAT16)
    x = net.op("Relu", net.conv(half, 16, 3, name="stem"), name="relu")
    x = net.op("Cast", net.head(net.conv(x, 16, 16, name="c"), 16), name="out", to=TensorProto.FLOAT)
    net.weights = [numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name) for t in net.weights]
    path = net.save(tmp_path / "h.onnx", x)
    assert [node.op_type for node in canonical(path).graph][:2] == ["Conv", "Relu"]
    for scheme, folder in ((TENSORRT, "t"), (CPU, "c")):
        assert all(layers(quantized(tmp_path / folder, path, scheme)).values())


def test_half_precision_ends_keep_their_types(tmp_path: Path) -> None:
    net = Net(3)
    output = net.head(net.op("Relu", net.conv("image", 16, 3, name="stem"), name="relu"), 16)
    model = net.model(output)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for end in (*model.graph.input, *model.graph.output):
        end.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, str(tmp_path / "m.onnx"))
    images = np.random.default_rng(0).random((8, 3, 8, 8)).astype(np.float16)
    quantize_model(tmp_path, SPEC, TENSORRT, tmp_path / "m.onnx", NamedArrays({"image": images}), None)
    (want,) = run(open_session(tmp_path / "m.onnx", simulate=True), {"image": images})
    for name in ("model.onnx", "typed.onnx"):
        made = onnx.load(str(tmp_path / name))
        assert {e.type.tensor_type.elem_type for e in (*made.graph.input, *made.graph.output)} == {TensorProto.FLOAT16}
        (got,) = run(open_session(tmp_path / name, simulate=True), {"image": images})
        assert got.dtype == np.float16
        assert np.abs(got - want).max() <= 0.1 * np.abs(want).max()


# --- several inputs and outputs ---


def two_inputs(path: Path, *, fixed: int | str = "batch") -> Path:
    """An image and three numbers: conv(image) plus what a Gemm makes of the numbers; two outputs and an index."""
    net = Net(3)
    stem = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="relu")
    weight = net.constant("g.weight", net.rng.standard_normal((3, 16)).astype(np.float32))
    more = net.op("Reshape", net.op("Gemm", "numbers", weight, name="g"), net.constant("s", np.asarray([-1, 16, 1, 1])))
    both = net.op("Add", stem, more, name="both")
    logits = net.head(net.conv(both, 16, 16, name="c"), 16)
    best = net.op("ArgMax", logits, name="best", axis=1)
    ends = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [fixed, 3, 8, 8]),
            helper.make_tensor_value_info("numbers", TensorProto.FLOAT, [fixed, 3])]  # fmt: skip
    results = [helper.make_tensor_value_info(logits, TensorProto.FLOAT, [fixed, 4]),
               helper.make_tensor_value_info(both, TensorProto.FLOAT, [fixed, 16, 8, 8]),
               helper.make_tensor_value_info(best, TensorProto.INT64, [fixed, 1])]  # fmt: skip
    graph = helper.make_graph(net.nodes, "two", ends, results, net.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def feeds(count: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.random((count, 3, 8, 8)).astype(np.float32),
        "numbers": rng.standard_normal((count, 3)).astype(np.float32),
    }


@SCHEMES
@pytest.mark.parametrize("ranges", ["minmax", "auto"])
def test_several_inputs_are_fed_by_name(tmp_path: Path, scheme: Scheme, ranges: str) -> None:
    path = two_inputs(tmp_path / "m.onnx")
    np.savez(tmp_path / "feeds.npz", **feeds())
    arrays = read_arrays(tmp_path / "feeds.npz")
    spec = QuantizeSpec.model_validate({"images": 8, "ranges": ranges, "recover": "off"})
    for folder, given in (("a", arrays), ("b", NamedArrays({k: v[::-1] for k, v in feeds().items()}))):
        (tmp_path / folder).mkdir()
        quantize_model(tmp_path / folder, spec, scheme, path, given, None)
    report = json.loads((tmp_path / "a" / "quantize.json").read_text())
    assert report["sqnr_db"] > 20.0
    assert layers(report) == dict.fromkeys(("stem", "g", "c", "head"), True)
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (tmp_path / "b" / "model.onnx").read_bytes()
    names = [value.name for value in onnx.load(str(tmp_path / "a" / "model.onnx")).graph.output]
    assert names == ["head_out", "both_out", "best_out"]
    if scheme is TENSORRT:
        assert not check(tmp_path / "a" / "typed.onnx")


def test_a_fixed_batch_of_several_inputs(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    given = NamedArrays(feeds(7))
    spec = QuantizeSpec(images=7, ranges="minmax", recover="off")
    quantize_model(tmp_path / "a", spec, TENSORRT, two_inputs(tmp_path / "m.onnx", fixed=2), given, None)
    assert json.loads((tmp_path / "a" / "quantize.json").read_text())["calibration"]["batch"] == 2


def broken(change: str) -> dict[str, np.ndarray]:
    given = feeds()
    match change:
        case "missing":
            del given["numbers"]
        case "extra":
            given["more"] = np.zeros(8, np.float32)
        case "dtype":
            given["numbers"] = given["numbers"].astype(np.float64)
        case "shape":
            given["numbers"] = given["numbers"][:, :2]
        case "rank":
            given["numbers"] = given["numbers"][:, 0]
        case "count":
            given["numbers"] = np.concatenate([given["numbers"]] * 2)
        case "nan":
            given["image"][3, 0, 0, 0] = np.nan
        case "infinity":
            given["image"][5] = np.inf
    return given


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("missing", "the arrays has no array `numbers`, which the graph takes"),
        ("extra", "has an array `more`, which is not an input of the graph"),
        ("dtype", "array `numbers` of the arrays is float64; the graph takes float32"),
        ("shape", r"has the shape \(8, 2\); the graph takes float32 \(\*, 3\)"),
        ("rank", r"has the shape \(8,\); the graph takes float32 \(\*, 3\)"),
        ("count", "have different numbers of samples: `image` 8, `numbers` 16"),
        ("nan", "array `image` of the arrays holds NaN or infinity in sample 3"),
        ("infinity", "array `image` of the arrays holds NaN or infinity in sample 5"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, change: str, says: str) -> None:
    with pytest.raises(EdgeError, match=says) as error:
        quantize_model(tmp_path, SPEC, TENSORRT, two_inputs(tmp_path / "m.onnx"), NamedArrays(broken(change)), None)
    assert error.value.hint


# --- subgraphs ---


def with_if(path: Path, *, batch: str = "batch") -> Path:
    """A network with an If: one branch reads a tensor of the main graph and holds a Conv of its own."""
    net = Net(3)
    stem = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="relu")
    inner = net.conv(stem, 16, 16, name="inner")
    conv = net.nodes.pop()
    one, other = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, 16, 8, 8]) for n in ("then_y", "else_y"))
    conv.output[0] = "then_y"
    then = helper.make_graph([conv], "then", [], [one])
    other_branch = helper.make_graph([helper.make_node("Neg", [stem], ["else_y"])], "else", [], [other])
    mean = net.op("ReduceMean", "image", name="mean", keepdims=0)
    bright = net.op("Greater", mean, net.constant("half", np.float32(0.2)), name="bright")
    net.nodes.append(
        helper.make_node("If", [bright], ["chosen"], name="choice", then_branch=then, else_branch=other_branch)
    )
    assert inner == "inner_out"
    return net.save(path, net.head(net.conv("chosen", 16, 16, name="c"), 16))


@contextmanager
def hearing() -> Iterator[Notes]:
    notes = Notes()
    with progress.showing(notes):
        yield notes


@SCHEMES
def test_what_stands_in_a_subgraph_stays_float_and_is_said(tmp_path: Path, scheme: Scheme) -> None:
    path = with_if(tmp_path / "m.onnx")
    (tmp_path / "int8").mkdir()
    with hearing() as notes:
        quantize_model(tmp_path / "int8", SPEC, scheme, path, pictures(8), contract())
    assert "If `choice` holds a subgraph: its contents stay float" in notes.said
    report = json.loads((tmp_path / "int8" / "quantize.json").read_text())
    assert layers(report) == {"stem": True, "choice/inner": False, "c": True, "head": True}
    assert report["sqnr_db"] > 15.0
    model = ir.load(tmp_path / "int8" / "model.onnx")
    choice = next(node for node in model.graph if node.op_type == "If")
    assert [node.op_type for node in choice.attributes["then_branch"].as_graph()] == ["Conv"]
    if scheme is TENSORRT:
        assert "choice: holds a subgraph" in report["float_islands"]
        feed = contract().feed(pictures(8).images)
        (a,) = run(open_session(tmp_path / "int8" / "model.onnx", simulate=True), feed)
        (b,) = run(open_session(tmp_path / "int8" / "typed.onnx", simulate=True), feed)
        assert np.abs(a - b).max() <= 0.1 * np.abs(a).max()
        assert {found.rule.id for found in check(tmp_path / "int8" / "typed.onnx")} == {"subgraph"}


@pytest.mark.parametrize("channels", [16, 8])
def test_a_decided_if_is_the_branch_that_it_takes(tmp_path: Path, channels: int) -> None:
    """The condition asks for the number of channels, as squeeze does in TorchScript's exports."""
    net = Net(3)
    stem = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="relu")
    count = net.op("Gather", net.op("Shape", stem), net.constant("one", np.int64(1)), name="count")
    asked = net.op("Equal", count, net.constant("wanted", np.int64(channels)), name="asked")
    weight = numpy_helper.from_array(net.rng.standard_normal((16, 16, 1, 1)).astype(np.float32) / 4, "stem.weight2")
    told = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16, 8, 8]) for name in ("relu_out2", "same")]
    conv = helper.make_node("Conv", [stem, "stem.weight2"], ["relu_out2"], "inner")
    then = helper.make_graph([conv], "then", [], told[:1], [weight])
    other = helper.make_graph([helper.make_node("Neg", [stem], ["same"], "turn")], "else", [], told[1:])
    net.nodes.append(helper.make_node("If", [asked], ["chosen"], name="choice", then_branch=then, else_branch=other))
    path = net.save(tmp_path / "m.onnx", net.head(net.conv("chosen", 16, 16, name="c"), 16))
    report = quantized(tmp_path, path, TENSORRT)
    kept = {"inner": True} if channels == 16 else {}
    assert layers(report) == {"stem": True, "c": True, "head": True, **kept}
    feed = contract().feed(pictures(2).images)
    (want,), (got,) = run(open_session(path), feed), run(open_session(canonical(path)), feed)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_loop_stays_as_it_is(tmp_path: Path) -> None:
    net = Net(3)
    stem = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="relu")
    shape = ["batch", 16, 8, 8]
    told = helper.make_tensor_value_info
    ends = [told("i", TensorProto.INT64, []), told("go", TensorProto.BOOL, []), told("v", TensorProto.FLOAT, shape)]
    results = [
        helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, shape),
    ]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "body",
        ends,
        results,
    )
    trips, go = net.constant("trips", np.int64(2)), net.constant("go_on", np.asarray(True))
    net.nodes.append(helper.make_node("Loop", [trips, go, stem], ["looped"], name="again", body=body))
    path = net.save(tmp_path / "m.onnx", net.head(net.conv("looped", 16, 16, name="c"), 16))
    (tmp_path / "int8").mkdir()
    with hearing() as notes:
        quantize_model(tmp_path / "int8", SPEC, TENSORRT, path, pictures(8), contract())
    assert "Loop `again` holds a subgraph: its contents stay float" in notes.said
    assert json.loads((tmp_path / "int8" / "quantize.json").read_text())["sqnr_db"] > 15.0


def test_an_already_quantized_branch_is_refused(tmp_path: Path) -> None:
    residual_net(tmp_path / "m.onnx")
    quantize_model(tmp_path, SPEC, TENSORRT, tmp_path / "m.onnx", pictures(8), contract())
    shutil.move(tmp_path / "model.onnx", tmp_path / "q.onnx")
    with pytest.raises(EdgeError, match=r"is already quantized: node `.*` is a QuantizeLinear") as error:
        quantize_model(tmp_path, SPEC, TENSORRT, tmp_path / "q.onnx", pictures(8), contract())
    assert error.value.hint == "give the float model that it was made from"
