"""The rung `adaround` on small nets: what it gains, what it leaves alone, resuming and determinism."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from quantize_graphs import CPU, TENSORRT, Net, Pictures, contract, residual_net

from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.graph.sessions import observe
from edgecnn.quantize.ladder.candidate import Candidate, Tools, first
from edgecnn.quantize.noise.split import integer_weights, noise_split, sqnr_of
from edgecnn.quantize.place.placement import Graph, place
from edgecnn.quantize.write.rewrite import serialized
from edgecnn.quantize.write.weights import weight_limit
from edgecnn.recipe.device import Scheme

pytest.importorskip("torch")
from edgecnn.process.versions import install_command
from edgecnn.quantize.rungs.learned.adaround import NAME, Settings, adaround
from edgecnn.quantize.rungs.learned.blocks import cut

FOUR_BITS = TENSORRT.model_copy(update={"weight_bits": 4})
SHORT = Settings(iterations=120, work=2e9, largest_batch=16)
SIZE = 8


def smooth(count: int, seed: int) -> Pictures:
    """Random pictures whose neighbouring pixels resemble each other, as in photographs."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 3, 3, 3)).astype(np.float64)
    fine = np.repeat(np.repeat(coarse, 3, 1), 3, 2)[:, :SIZE, :SIZE] + rng.normal(0, 12, (count, SIZE, SIZE, 3))
    return Pictures(np.clip(fine, 0, 255).astype(np.uint8))


def begun(path: Path, scheme: Scheme, folder: Path, images: int = 48) -> tuple[Tools, Candidate]:
    model = canonical(path)
    feeder = Feeder(model, contract(), smooth(images, 0), images)
    shapes, _ = observe(model, list(feeder.feeds([0])))
    tools = Tools(scheme, Graph(model, shapes), feeder, "minmax", folder)
    return tools, first(model, place(tools.graph, scheme), tools)[0]


def unseen(candidate: Candidate, tools: Tools) -> float:
    """Output SQNR in dB on pictures that calibration never saw."""
    feeder = Feeder(tools.graph.model, contract(), smooth(96, 7), 96)
    return sqnr_of([candidate.quantized(tools.scheme)], tools.graph.model, feeder, list(range(96)))[0]


def content(candidate: Candidate, scheme: Scheme) -> bytes:
    return serialized(candidate.quantized(scheme))


def many_kinds(path: Path) -> Path:
    """Depthwise, grouped, transposed and bias-free convolutions, and one weight that two layers share."""
    net = Net(3)
    x = net.op("Relu", net.conv("image", 16, 3, name="stem"))
    x = net.op("Clip", net.conv(x, 16, 16, name="depthwise", group=16), net.constant("zero", np.float32(0)),
               net.constant("six", np.float32(6)))  # fmt: skip
    shared = net.constant("shared", (net.rng.standard_normal((16, 16, 1, 1)) * 0.25).astype(np.float32))
    x = net.op("Relu", net.op("Conv", x, shared, name="one"))
    x = net.op("LeakyRelu", net.conv(x, 16, 16, name="grouped", group=4, bias=False), alpha=0.1)
    up = net.constant("up.weight", (net.rng.standard_normal((16, 16, 2, 2)) * 0.2).astype(np.float32))
    x = net.op("Relu", net.op("ConvTranspose", x, up, name="up", strides=[2, 2]))
    x = net.op("HardSwish", net.op("Conv", x, shared, name="two"))
    return net.save(path, net.head(x, 16))


@pytest.mark.parametrize(("maker", "least"), [(residual_net, 2.0), (many_kinds, 1.5)])
def test_four_bit_weights_gain_much(tmp_path: Path, maker: object, least: float) -> None:
    tools, candidate = begun(maker(tmp_path / "float.onnx"), FOUR_BITS, tmp_path)  # type: ignore[operator]
    before = content(candidate, FOUR_BITS)
    better = adaround(candidate, tools, SHORT)
    assert better.rungs == (NAME,)
    assert unseen(better, tools) >= unseen(candidate, tools) + least
    assert content(candidate, FOUR_BITS) == before
    weights = integer_weights(better, FOUR_BITS)
    for name, integer in integer_weights(candidate, FOUR_BITS).items():
        assert np.abs(weights[name].values).max() <= weight_limit(FOUR_BITS)
        np.testing.assert_array_equal(weights[name].scales, integer.scales)
        assert np.abs(weights[name].values.astype(int) - integer.values).max() <= 1
    assert "dB" in better.notes[-1]


def test_a_weight_shared_by_two_blocks_keeps_its_integers(tmp_path: Path) -> None:
    tools, candidate = begun(many_kinds(tmp_path / "float.onnx"), FOUR_BITS, tmp_path)
    blocks = cut(tools.graph, candidate.placement)
    assert [block.layers for block in blocks] == [
        ("stem", "depthwise", "one"), ("grouped", "up", "two"), ("head",)
    ]  # fmt: skip
    better = adaround(candidate, tools, SHORT)
    assert "shared" not in better.overrides.weights
    assert "up.weight" in better.overrides.weights


@pytest.mark.parametrize("scheme", [TENSORRT, CPU], ids=["int8 symmetric", "uint8 asymmetric, int32 bias"])
def test_eight_bits_get_no_worse(tmp_path: Path, scheme: Scheme) -> None:
    tools, candidate = begun(residual_net(tmp_path / "float.onnx"), scheme, tmp_path, images=96)
    better = adaround(candidate, tools, SHORT)
    assert unseen(better, tools) >= unseen(candidate, tools) - 0.2
    assert better.notes
    serialized(better.quantized(scheme))


def test_the_same_again_and_after_a_cut(tmp_path: Path) -> None:
    path = residual_net(tmp_path / "float.onnx")
    tools, candidate = begun(path, FOUR_BITS, tmp_path / "first")
    whole = adaround(candidate, tools, SHORT)
    files = sorted((tmp_path / "first" / NAME).glob("*.npz"))
    assert len(files) == len(cut(tools.graph, candidate.placement))
    again, _ = begun(path, FOUR_BITS, tmp_path / "second")
    assert content(adaround(candidate, again, SHORT), FOUR_BITS) == content(whole, FOUR_BITS)
    # A run killed after its first block: the first is taken as it is, the others are learned.
    stamp = files[0].stat().st_mtime_ns
    files[1].write_bytes(files[1].read_bytes()[:100])
    for file in files[2:]:
        file.unlink()
    assert content(adaround(candidate, tools, SHORT), FOUR_BITS) == content(whole, FOUR_BITS)
    assert files[0].stat().st_mtime_ns == stamp


def test_another_candidate_does_not_take_the_kept_blocks(tmp_path: Path) -> None:
    tools, candidate = begun(residual_net(tmp_path / "float.onnx"), FOUR_BITS, tmp_path)
    adaround(candidate, tools, SHORT)
    kept = {file.name: file.read_bytes() for file in (tmp_path / NAME).glob("*.npz")}
    wider = replace(candidate, ranges={name: (2 * low, 2 * high) for name, (low, high) in candidate.ranges.items()})
    adaround(wider, tools, SHORT)
    assert all(file.read_bytes() != kept[file.name] for file in (tmp_path / NAME).glob("*.npz"))


def test_blocks_are_residual_blocks_with_their_activation(tmp_path: Path) -> None:
    tools, candidate = begun(residual_net(tmp_path / "float.onnx"), TENSORRT, tmp_path)
    blocks = cut(tools.graph, candidate.placement)
    assert [block.layers for block in blocks] == [("stem",), ("first", "second"), ("head",)]
    assert [block.outputs for block in blocks][:2] == [("stem_relu_out",), ("last_relu_out",)]
    assert [name for block in blocks for name in block.nodes] == [node.name for node in tools.graph.nodes()]


def test_an_operator_without_a_torch_function_leaves_single_layers(tmp_path: Path) -> None:
    net = Net(3)
    x = net.op("Relu", net.conv("image", 16, 3, name="stem"), name="stem_relu")
    y = net.op("Softplus", net.conv(x, 16, 16, name="first"), name="odd")
    x = net.op("Add", net.conv(y, 16, 16, name="second"), x, name="add")
    tools, candidate = begun(net.save(tmp_path / "float.onnx", net.head(x, 16)), FOUR_BITS, tmp_path)
    better = adaround(candidate, tools, SHORT)
    assert {"stem.weight", "first.weight", "second.weight"} <= set(better.overrides.weights)
    assert unseen(better, tools) > unseen(candidate, tools)


@pytest.mark.parametrize("end", ["turned", "one number an image"])
def test_an_output_without_the_images_in_front(end: str, tmp_path: Path) -> None:
    """The blocks before it are learned; what ends in it is not."""
    net = Net(3)
    x = "image"
    for number in range(5):
        x = net.op("Relu", net.conv(x, 8, 8 if number else 3, name=f"layer{number}"))
    if end == "turned":
        path = net.save(tmp_path / "float.onnx", net.op("Transpose", x, perm=[1, 0, 2, 3]), rank=4)
    else:
        axes = net.constant("axes", np.array([1, 2, 3]))
        path = net.save(tmp_path / "float.onnx", net.op("ReduceMean", x, axes, keepdims=0), rank=1)
    tools, candidate = begun(path, FOUR_BITS, tmp_path, images=16)
    better = adaround(candidate, tools, SHORT)
    assert better.notes[-1].startswith("adaround: ")
    assert better.rungs == (NAME,)
    assert "layer0.weight" in better.overrides.weights


def test_one_image_is_too_few(tmp_path: Path) -> None:
    tools, candidate = begun(residual_net(tmp_path / "float.onnx"), TENSORRT, tmp_path, images=1)
    same = adaround(candidate, tools)
    assert same.overrides == candidate.overrides
    assert same.rungs == ()
    assert "two calibration images" in same.notes[-1]


def test_without_torch_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    tools, candidate = begun(residual_net(tmp_path / "float.onnx"), TENSORRT, tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    same = adaround(candidate, tools)
    assert same.rungs == ()
    assert install_command("train") in same.notes[-1]


def test_noise_splits_into_weights_and_activations(tmp_path: Path) -> None:
    tools, candidate = begun(residual_net(tmp_path / "float.onnx"), FOUR_BITS, tmp_path)
    split = noise_split(candidate, FOUR_BITS, tools.graph.model, tools.feeder, list(range(16)))
    assert split.weights < split.activations - 6  # four bits against eight
    powers = [10 ** (-value / 10) for value in (split.weights, split.activations)]
    assert split.whole == pytest.approx(-10 * np.log10(sum(powers)), abs=1.5)
    assert isinstance(candidate.model, ir.Model)
