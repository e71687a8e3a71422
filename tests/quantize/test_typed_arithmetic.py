"""The typed file in FP16 arithmetic: numbers that FP16 loses stay FP32, and what is delivered was run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from onnx.reference import ReferenceEvaluator
from quantize_graphs import TENSORRT, Net, contract, pictures
from random_graphs import Builder, networks

from edgecnn.quantize import quantize_model
from edgecnn.quantize.calibration.arrays import NamedArrays
from edgecnn.quantize.calibration.magnitudes import Magnitudes
from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.graph.sessions import open_session, run
from edgecnn.quantize.noise.closeness import LOST, lost_db, picked
from edgecnn.quantize.write.rounded import rounded
from edgecnn.quantize.write.typed import typed
from edgecnn.quantize.write.typed_check import Reference, checked
from edgecnn.recipe.recipe import QuantizeSpec

SPEC = QuantizeSpec(images=8, ranges="minmax", recover="off")
Tail = Callable[[Net, str], str]


def decibel(wanted: np.ndarray, got: np.ndarray) -> float:
    noise = np.square(wanted.astype(np.float64) - got).sum()
    return float(10 * np.log10(np.square(wanted.astype(np.float64)).sum() / max(noise, 1e-300)))


def numpy_half(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """onnx's reference evaluator: numpy in the types that the graph says."""
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(str(path)).run(None, feeds)[0]


def number(net: Net, value: Any, kind: Any = np.float32) -> str:
    return net.constant(f"number{len(net.weights)}", np.asarray(value, kind))


def log_of_power(net: Net, x: str) -> str:
    return net.op("Log", net.op("Add", net.op("Mul", x, x), number(net, 1e-10)))


def log_of_clipped(net: Net, x: str) -> str:
    return net.op("Log", net.op("Clip", net.op("Relu", x), number(net, 1e-8)))


def normalized(net: Net, x: str) -> str:
    norm = net.op("ReduceL2", net.op("Relu", x), number(net, [1], np.int64), keepdims=1)
    return net.op("Div", net.op("Relu", x), net.op("Max", norm, number(net, 1e-12)))


def normalized_by_square_root(net: Net, x: str) -> str:
    total = net.op("ReduceSum", net.op("Mul", x, x), number(net, [1], np.int64), keepdims=1)
    return net.op("Div", x, net.op("Sqrt", net.op("Add", total, number(net, 1e-12))))


def reciprocal(net: Net, x: str) -> str:
    zero = net.op("Sub", x, x)
    return net.op("Add", x, net.op("Mul", zero, net.op("Reciprocal", net.op("Add", zero, number(net, 1e-6)))))


def inverse_power(net: Net, x: str) -> str:
    square = net.op("Add", net.op("Pow", net.op("Relu", x), number(net, 2.0)), number(net, 1e-9))
    return net.op("Mul", net.op("Relu", x), net.op("Pow", square, number(net, -0.5)))


def generalized_mean(net: Net, x: str) -> str:
    cubes = net.op("Pow", net.op("Clip", net.op("Mul", x, number(net, 0.01)), number(net, 1e-6)), number(net, 3.0))
    mean = net.op("ReduceMean", cubes, axes=[2, 3], keepdims=1) if net.opset < 18 else net.op(
        "ReduceMean", cubes, number(net, [2, 3], np.int64), keepdims=1
    )  # fmt: skip
    return net.op("Pow", mean, number(net, 1 / 3))


def softplus(net: Net, x: str) -> str:
    return net.op("Softplus", net.op("Mul", x, number(net, 40.0)))


def log_softmax(net: Net, x: str) -> str:
    return net.op("LogSoftmax", net.op("Mul", x, number(net, 30.0)), axis=1)


def far_normalized(net: Net, x: str) -> str:
    """Squares beyond 65504 inside of a norm whose own result is small enough."""
    large = net.op("Mul", x, number(net, 400.0))
    return net.op("Div", large, net.op("ReduceL2", large, number(net, [1, 2, 3], np.int64), keepdims=1))


def shannon_entropy(net: Net, x: str) -> str:
    share = net.op("Softmax", net.op("Mul", x, number(net, 40.0)), axis=1)
    return net.op("Mul", share, net.op("Log", net.op("Add", share, number(net, 1e-9))))


def variance_in_two_sums(net: Net, x: str) -> str:
    """E[x²] - E[x]²: two numbers of one size, of which a small one is left."""
    shifted = net.op("Add", x, number(net, 40.0))
    mean, axes = [], number(net, [2, 3], np.int64)
    for part in (net.op("Mul", shifted, shifted), shifted):
        mean.append(net.op("ReduceMean", part, axes, keepdims=1))
    return net.op("Sub", mean[0], net.op("Mul", mean[1], mean[1]))


TAILS: list[Tail] = [
    log_of_power, log_of_clipped, normalized, normalized_by_square_root, reciprocal, inverse_power, generalized_mean,
    softplus, log_softmax, far_normalized, shannon_entropy, variance_in_two_sums,
]  # fmt: skip


@pytest.mark.parametrize("tail", TAILS, ids=lambda tail: tail.__name__)
def test_what_decides_a_result_is_not_lost_in_fp16(tmp_path: Path, tail: Tail) -> None:
    net = Net(3)
    x = net.conv("image", 8, 3, name="stem", bias=tail is not log_of_power)
    net.save(tmp_path / "m.onnx", tail(net, x), rank=4)
    images = pictures(8)
    images.images[:, :4] = 0  # a black bar: exact zeros, where a logarithm or a norm has only its epsilon
    quantize_model(tmp_path, SPEC, TENSORRT, tmp_path / "m.onnx", images, contract())
    feed = contract().feed(images.images[:4])
    exact, single, half = (numpy_half(tmp_path / f"{n}.onnx", feed) for n in ("m", "model", "typed"))
    assert np.isfinite(half).all()
    assert decibel(exact, half) > min(decibel(exact, single), 40.0) - 3
    told = json.loads((tmp_path / "quantize.json").read_text())["typed"]
    assert told["arithmetic"] == "FP16"
    assert told["lost_db"] <= 3
    assert told["outputs"][0]["sqnr_db"] == pytest.approx(told["sqnr_db"])


def indices(net: Net, x: str) -> str:
    """Rows and columns of the largest value of each channel's map, 64 × 64."""
    flat = net.op("Reshape", x, number(net, [0, 4, -1], np.int64))
    at = net.op("Cast", net.op("ArgMax", flat, axis=2, keepdims=0), to=onnx.TensorProto.FLOAT)
    row = net.op("Floor", net.op("Div", at, number(net, 64.0)))
    column = net.op("Sub", at, net.op("Mul", row, number(net, 64.0)))
    return net.op("Concat", net.op("Unsqueeze", column, number(net, [2], np.int64)),
                  net.op("Unsqueeze", row, number(net, [2], np.int64)), axis=2)  # fmt: skip


def best_of_all(net: Net, x: str) -> str:
    """The places of the three largest values, as one number each."""
    flat = net.op("Reshape", x, number(net, [0, -1], np.int64))
    net.nodes.append(
        onnx.helper.make_node("TopK", [flat, number(net, [3], np.int64)], ["top", "place"], "topk", axis=1)
    )
    return net.op("Mul", net.op("Cast", "place", to=onnx.TensorProto.FLOAT), number(net, 1.0))


def heatmap_peaks(net: Net, x: str) -> str:
    """Score, class, row and column of the three largest values, as detectors by centres answer."""
    flat = net.op("Reshape", net.op("Sigmoid", x), number(net, [0, -1], np.int64))
    net.nodes.append(
        onnx.helper.make_node("TopK", [flat, number(net, [3], np.int64)], ["top", "place"], "topk", axis=1)
    )
    at = net.op("Cast", "place", to=onnx.TensorProto.FLOAT)
    kind = net.op("Floor", net.op("Div", at, number(net, 4096.0)))
    rest = net.op("Sub", at, net.op("Mul", kind, number(net, 4096.0)))
    row = net.op("Floor", net.op("Div", rest, number(net, 64.0)))
    column = net.op("Sub", rest, net.op("Mul", row, number(net, 64.0)))
    return net.op("Concat", "top", kind, row, column, axis=1)


def counted(net: Net, x: str) -> str:
    """How many of 4096 pixels are above a limit, and of two channels together."""
    above = net.op("Cast", net.op("Greater", x, number(net, -5.0)), to=onnx.TensorProto.FLOAT)
    return net.op("ReduceSum", above, number(net, [1, 2, 3], np.int64), keepdims=1)


def computed_in_double(net: Net, x: str) -> str:
    flat = net.op("Reshape", x, number(net, [0, 4, -1], np.int64))
    at = net.op("Cast", net.op("ArgMax", flat, axis=2, keepdims=0), to=onnx.TensorProto.DOUBLE)
    return net.op("Cast", net.op("Add", at, number(net, 1.0, np.float64)), to=onnx.TensorProto.FLOAT)


def far_grid(net: Net, x: str) -> str:
    """A grid of pixels written as numbers beyond 2048, and an offset that a layer answers."""
    grid = np.arange(64 * 64, dtype=np.float32).reshape(1, 1, 64, 64) + np.float32(0.5)
    return net.op("Add", net.op("Sigmoid", x), number(net, grid))


def far_range(net: Net, x: str) -> str:
    places = net.op("Range", number(net, 0.0), number(net, 4096.0), number(net, 1.0))
    return net.op("Add", net.op("Sigmoid", x), net.op("Reshape", places, number(net, [1, 1, 64, 64], np.int64)))


def looked_up(net: Net, x: str) -> str:
    """A layer's answer becomes a place in a table of 5000, which holds its own places."""
    share = net.op("Sigmoid", net.op("GlobalAveragePool", x))
    place = net.op("Cast", net.op("Mul", share, number(net, 4999.0)), to=onnx.TensorProto.INT64)
    return net.op("Gather", number(net, np.arange(5000)), place, axis=0)


NUMBERED: dict[Tail, int] = {
    indices: 3, best_of_all: 2, heatmap_peaks: 2, counted: 4, computed_in_double: 2, far_grid: 4, far_range: 4,
    looked_up: 4,
}  # fmt: skip


@pytest.mark.parametrize("tail", NUMBERED, ids=lambda tail: tail.__name__)
def test_whole_numbers_stay_exact(tmp_path: Path, tail: Tail) -> None:
    net = Net(3, size=64)
    output = tail(net, net.conv("image", 4, 3, name="stem"))
    net.save(tmp_path / "m.onnx", output, rank=NUMBERED[tail])
    images = pictures(4, size=64)
    quantize_model(
        tmp_path, SPEC.model_copy(update={"images": 4}), TENSORRT, tmp_path / "m.onnx", images, contract(size=64)
    )
    feed = contract(size=64).feed(images.images[:2])
    single, half = (numpy_half(tmp_path / f"{name}.onnx", feed) for name in ("model", "typed"))
    if tail is looked_up:
        assert np.abs(single - half).max() <= 1
        return
    # The image itself is rounded: now and then another of two nearly equal pixels is the largest.
    assert np.mean(np.abs(single - half) < 0.01) > 0.8
    if tail in (indices, best_of_all, counted, computed_in_double):
        assert np.array_equal(half, np.round(half))


def test_numbers_that_are_given_as_arrays(tmp_path: Path) -> None:
    """A position of up to 5000 beside the image."""
    net = Net(3)
    net.op("Mul", "place", number(net, 0.999), name="scaled")
    image = net.head(net.op("Relu", net.conv("image", 8, 3, name="stem")), 8)
    output = net.op("Add", "scaled_out", image)
    place = onnx.helper.make_tensor_value_info("place", onnx.TensorProto.FLOAT, ["batch", 1])
    onnx.save(net.model(output, inputs=[place]), str(tmp_path / "m.onnx"))
    random = np.random.default_rng(0)
    arrays = {
        "image": random.random((8, 3, 8, 8), np.float32),
        "place": np.arange(4001, 4009, dtype=np.float32)[:, None],
    }
    quantize_model(tmp_path, SPEC, TENSORRT, tmp_path / "m.onnx", NamedArrays(arrays), None)
    single, half = (numpy_half(tmp_path / f"{name}.onnx", arrays) for name in ("model", "typed"))
    assert np.abs(single - half).max() < 0.1


# numpy's half sums in FP16, and these sums are beyond it; a reciprocal that is infinite leaves nothing to compare.
_OUTSIDE = (reciprocal, far_normalized, variance_in_two_sums)
INSIDE = [tail for tail in TAILS if tail not in _OUTSIDE]


@pytest.mark.parametrize("tail", [None, *INSIDE], ids=lambda tail: tail.__name__ if tail else "head")
def test_the_evaluation_is_numpys_half(tmp_path: Path, tail: Tail | None) -> None:
    """Rounded tensors in onnxruntime against onnx's reference evaluator, with nothing protected."""
    net = Net(3)
    x = net.op("Relu", net.conv("image", 8, 3, name="stem"), name="relu")
    net.save(tmp_path / "m.onnx", tail(net, x) if tail else net.head(x, 8), rank=4 if tail else 2)
    half, _ = typed(canonical(tmp_path / "m.onnx"), Magnitudes())
    ir.save(half, tmp_path / "typed.onnx")
    feed = contract().feed(pictures(4).images)
    wanted = numpy_half(tmp_path / "typed.onnx", feed)
    (got,) = run(open_session(rounded(half), simulate=True), feed)
    assert np.array_equal(np.isfinite(wanted), np.isfinite(got))
    both = np.isfinite(wanted)
    assert decibel(wanted[both], got[both]) > 45


@settings(max_examples=8, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(network=networks())
def test_random_networks_in_fp16(tmp_path_factory: pytest.TempPathFactory, network: tuple[Builder, str, int]) -> None:
    folder = tmp_path_factory.mktemp("half")
    net, output, rank = network
    onnx.save(net.model(output, rank), str(folder / "m.onnx"))
    quantize_model(folder, SPEC, TENSORRT, folder / "m.onnx", pictures(8), contract())
    if not (folder / "typed.onnx").exists():
        return
    feed = contract().feed(pictures(8).images)
    (exact,) = run(open_session(folder / "m.onnx"), feed)
    (single,) = run(open_session(folder / "model.onnx", simulate=True), feed)
    (half,) = run(open_session(rounded(ir.load(folder / "typed.onnx")), simulate=True), feed)
    assert np.isfinite(half).all()
    assert decibel(exact, half) > min(decibel(exact, single), 40.0) - 3


def test_a_spectrum_whose_quiet_parts_count_is_filtered_in_fp32(tmp_path: Path) -> None:
    """A loud tone in a filter bank, then a logarithm: rounding the samples would drown all other bands."""
    net = Net(3, size=64)
    turns = 2 * np.pi * np.outer(np.arange(16), np.arange(64)) / 64
    window = np.blackman(64) / 16
    power = []
    mix = net.constant("mix", np.full((3, 3, 1, 1), 0.3, np.float32))
    samples = net.op("Conv", "image", mix, name="resample", kernel_shape=[1, 1])
    for name, wave in (("real", np.cos(turns)), ("imaginary", np.sin(turns))):
        kernel = net.constant(name, (wave * window).reshape(16, 1, 1, 64).repeat(3, axis=1).astype(np.float32))
        band = net.op("Conv", samples, kernel, name=f"{name}_filter", kernel_shape=[1, 64])
        power.append(net.op("Mul", band, band))
    level = net.op("Log", net.op("Add", net.op("Add", *power), number(net, 1e-12)), name="level")
    net.save(tmp_path / "m.onnx", net.conv(net.op("Mul", level, number(net, 0.1)), 16, 16, name="head"), rank=4)
    tones = [np.sin(2 * np.pi * (4 + 0.3 * row) * np.arange(64) / 64 + row) for row in range(64)]
    feeds = {"image": np.broadcast_to(np.stack(tones), (8, 3, 64, 64)).astype(np.float32)}
    filters = ("resample", "real_filter", "imaginary_filter")
    spec = SPEC.model_copy(update={"keep_float": filters})
    quantize_model(tmp_path, spec, TENSORRT, tmp_path / "m.onnx", NamedArrays(feeds), None)
    report = json.loads((tmp_path / "quantize.json").read_text())
    assert report["typed"]["lost_db"] <= 3
    islands = {text.split(":")[0] for text in report["float_islands"]}
    assert islands > {*filters, "level"}
    assert "head" not in islands
    exact, single, half = (
        numpy_half(tmp_path / f"{n}.onnx", {"image": feeds["image"][:1]}) for n in ("m", "model", "typed")
    )
    assert decibel(exact, half) > min(decibel(exact, single), 40.0) - 3


def test_one_row_that_changes_places_is_no_loss() -> None:
    """Boxes sorted by their score, two of them nearly equal; a mask whose pixels differ; a NaN."""
    rows = np.random.default_rng(0).random((1, 40, 6)).astype(np.float32)
    swapped, exact = rows[:, [1, 0, *range(2, 40)]], [rows]
    assert lost_db(exact, exact, [swapped], True, 40.0) == 0
    assert lost_db(exact, exact, [swapped], None, 40.0) > 20
    assert lost_db(exact, exact, [rows + np.float32(0.1)], True, 40.0) > 3
    assert lost_db(exact, exact, [np.where(rows > 0.9, np.nan, rows)], True, 40.0) == LOST
    mask = np.arange(4096, dtype=np.int64).reshape(1, 64, 64) % 21
    for share, lost in ((0.02, 0), (0.4, 9)):
        other = np.where(np.random.default_rng(1).random(mask.shape) < share, mask + 1, mask)
        assert lost_db([mask], [mask], [other], False, 40.0) == pytest.approx(lost, abs=0.5)


def test_what_lies_behind_an_index_is_known() -> None:
    net = Net(3, size=64)
    peaks = heatmap_peaks(net, net.conv("image", 4, 3, name="stem"))
    largest = net.op("ArgMax", "stem_out", axis=1)
    model = net.model(peaks)
    model.graph.output.append(onnx.helper.make_tensor_value_info(largest, onnx.TensorProto.INT64, None))
    model.graph.output.append(onnx.helper.make_tensor_value_info("stem_out", onnx.TensorProto.FLOAT, None))
    graph = ir.serde.deserialize_model(model).graph
    assert picked(graph) == {peaks: True, largest: False}


def test_a_graph_that_fp16_cannot_hold_becomes_fp32(tmp_path: Path) -> None:
    """Nothing was measured, so nothing is protected: the evaluation alone finds it, and the answers are FP32's."""
    net = Net(3)
    x = net.op("Relu", net.conv("image", 8, 3, name="stem"))
    large = net.op("Mul", x, number(net, 60000.0), name="large")
    net.save(tmp_path / "m.onnx", net.op("Mul", net.op("Mul", large, large), number(net, 1e-5)), rank=4)
    model = canonical(tmp_path / "m.onnx")
    feeds = [contract().feed(pictures(8).images[i : i + 1]) for i in range(8)]
    exact = [run(open_session(model), feed) for feed in feeds]
    names = [value.name or "" for value in model.graph.outputs]
    found = checked(model, Magnitudes(), Reference(feeds, 8, names, exact, exact, 40.0))
    assert found.lost_db <= 3
    assert found.outputs[0].sqnr_db > 40
    assert "large" in found.islands
    assert "stem" not in found.islands  # no more of it than what needs FP32
