"""Bias correction: the mean that INT8 adds to a layer's outputs goes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from quantize_graphs import CPU, TENSORRT, Net
from recovering import SIZE, begun, chain, saved, unseen_db

from edgecnn.quantize.graph.sessions import expose, open_session, run_each
from edgecnn.quantize.ladder.candidate import Candidate, Tools
from edgecnn.quantize.rungs.bias import bias
from edgecnn.quantize.write.rewrite import serialized
from edgecnn.recipe.device import Scheme

FOUR_BITS = TENSORRT.model_copy(update={"weight_bits": 4})
CPU_FOUR_BITS = CPU.model_copy(update={"weight_bits": 4})


def mean_error(candidate: Candidate, tools: Tools, tensor: str) -> np.ndarray:
    """Mean difference per channel of a tensor, INT8 minus float, over the calibration images."""
    models = (expose(tools.graph.model, [tensor]), expose(candidate.quantized(tools.scheme), [tensor]))
    exact, got = (
        np.concatenate([o[0] for o in run_each(open_session(model, simulate=True), tools.feeder.feeds())])
        for model in models
    )
    return np.asarray((got - exact).mean(axis=tuple(axis for axis in range(exact.ndim) if axis != 1)))


@pytest.mark.parametrize("scheme", [FOUR_BITS, CPU_FOUR_BITS], ids=["tensorrt", "cpu-int32-bias"])
def test_coarse_weights_shift_means_and_it_takes_them_back(tmp_path: Path, scheme: Scheme) -> None:
    tools, candidate = begun(saved(chain(), tmp_path / "net.onnx"), tmp_path, scheme)
    found = bias(candidate, tools)
    assert found.rungs == ("bias",)
    assert candidate.overrides.biases == {}
    assert {"one", "two", "three"} <= set(found.overrides.biases)
    before, after = (np.abs(mean_error(c, tools, "three_out")).sum() for c in (candidate, found))
    assert after < 0.5 * before
    assert unseen_db(found.quantized(scheme), tools.graph.model) > unseen_db(
        candidate.quantized(scheme), tools.graph.model
    )
    serialized(found.quantized(scheme))


def headed(path: Path, kind: str) -> Path:
    """conv without bias → relu → pool → flatten → MatMul + Add, or Gemm without bias → relu → Gemm."""
    net = Net(3, SIZE)
    x = net.op("Relu", net.conv("image", 16, 3, name="bare", bias=False))
    flat = net.op("Flatten", net.op("GlobalAveragePool", x), name="flat")
    weight = net.constant("w", net.rng.standard_normal((16, 12)).astype(np.float32))
    if kind == "matmul":
        product = net.op("MatMul", flat, weight, name="product")
        hidden = net.op("Add", net.constant("b", np.zeros(12, np.float32)), product, name="plus")
    else:
        hidden = net.op("Gemm", flat, weight, name="product")
    return net.save(path, last(net, hidden))


def last(net: Net, hidden: str) -> str:
    """A Gemm with a bias behind a ReLU."""
    weight = net.constant("head.weight", net.rng.standard_normal((4, 12)).astype(np.float32))
    bias_name = net.constant("head.bias", np.zeros(4, np.float32))
    return net.op("Gemm", net.op("Relu", hidden), weight, bias_name, transB=1, name="head")


@pytest.mark.parametrize(("kind", "holder"), [("matmul", "plus"), ("gemm", "head")])
def test_layers_without_a_bias_of_their_own(tmp_path: Path, kind: str, holder: str) -> None:
    """A Conv gets one, a MatMul's is the Add behind it."""
    tools, candidate = begun(headed(tmp_path / "net.onnx", kind), tmp_path, FOUR_BITS)
    found = bias(candidate, tools)
    assert found.rungs == ("bias",)
    assert {"bare", holder} <= set(found.overrides.biases)
    quantized = found.quantized(FOUR_BITS)
    node = next(n for n in quantized.graph if n.name == "bare")
    assert len(node.inputs) == 3
    np.testing.assert_array_equal(node.inputs[2].const_value.numpy(), found.overrides.biases["bare"])
    serialized(quantized)


def test_nothing_to_correct_changes_nothing(tmp_path: Path) -> None:
    tools, candidate = begun(saved(chain(), tmp_path / "net.onnx"), tmp_path, FOUR_BITS)
    once = bias(candidate, tools)
    again = bias(once, tools)
    assert again.overrides is once.overrides or again.rungs == ("bias", "bias")
    if again.overrides is once.overrides:
        assert "bias: no correction" in again.notes[-1]
    before, after = (unseen_db(c.quantized(FOUR_BITS), tools.graph.model) for c in (once, again))
    assert after > before - 0.3


def test_no_constant_bias_is_said(tmp_path: Path) -> None:
    net = Net(3, SIZE)
    flat = net.op("Flatten", net.op("GlobalAveragePool", "image"), name="flat")
    weight = net.constant("w", net.rng.standard_normal((3, 4)).astype(np.float32))
    net.save(tmp_path / "net.onnx", net.op("MatMul", flat, weight, name="product"))
    tools, candidate = begun(tmp_path / "net.onnx", tmp_path)
    found = bias(candidate, tools)
    assert replace(found, notes=()) == replace(candidate, notes=())
    assert "no INT8 layer has a constant bias" in found.notes[-1]


def test_one_image_and_the_same_again(tmp_path: Path) -> None:
    tools, candidate = begun(saved(chain(), tmp_path / "net.onnx"), tmp_path, FOUR_BITS, images=1)
    one, other = (serialized(bias(candidate, tools).quantized(FOUR_BITS)) for _ in range(2))
    assert one == other
