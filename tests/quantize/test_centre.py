"""What a Clip at 0 makes, stored less half of its range: the same function with steps of half the size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from quantize_graphs import CPU, TENSORRT, Net
from recovering import SIZE, begun

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.graph.sessions import expose, open_session, run_each
from edgecnn.quantize.ladder.candidate import Candidate, Tools
from edgecnn.quantize.rungs.centre import centred
from edgecnn.quantize.rungs.equalize import equalize
from edgecnn.quantize.write.rewrite import serialized


def net_of(path: Path, *, kernel: int = 1, twice: bool = False, outlet: bool = False, low: float = 0.0) -> Path:
    """conv → ReLU6 → conv of the kernel (twice: two of them, added; outlet: a pool reads the ReLU6 too) → head."""
    net = Net(3, SIZE)
    x = net.conv("image", 16, 3, name="one")
    ends = net.constant("low", np.float32(low)), net.constant("high", np.float32(6))
    net.weights[0].CopyFrom(onnx.numpy_helper.from_array(8 * onnx.numpy_helper.to_array(net.weights[0]), "one.weight"))
    x = net.op("Clip", x, *ends, name="six")
    y = net.conv(x, 16, 16, kernel=kernel, name="two")
    if twice:
        y = net.op("Add", y, net.conv(x, 16, 16, kernel=1, name="three"))
    if outlet:
        y = net.op("Add", y, x)
    return net.save(path, net.head(y, 16))


def outputs(model: ir.Model, tools: Tools) -> np.ndarray:
    return np.concatenate([each[0] for each in run_each(open_session(model), tools.feeder.feeds())])


def rounding_noise(candidate: Candidate, tools: Tools) -> float:
    """Mean square that storing the ReLU6's output as INT8 costs."""
    session, grid = open_session(expose(candidate.model, ["six_out"])), candidate.grids(TENSORRT)["six_out"]
    values = np.concatenate([each[0] for each in run_each(session, tools.feeder_of(candidate.model).feeds())])
    return float(np.square(grid.rounded(values) - values).mean())


def clip_ends(candidate: Candidate) -> tuple[float, float]:
    node = next(node for node in candidate.model.graph if node.op_type == "Clip")
    low, high = (constant(value) for value in node.inputs[1:])
    assert low is not None
    assert high is not None
    return float(low), float(high)


@pytest.mark.parametrize("twice", [False, True])
def test_the_same_function_with_half_the_step(tmp_path: Path, twice: bool) -> None:
    tools, plain = begun(net_of(tmp_path / "net.onnx", twice=twice), tmp_path)
    found = centred(plain, tools)
    exact = outputs(plain.model, tools)
    assert np.abs(outputs(found.model, tools) - exact).max() < 1e-5 * np.abs(exact).max()
    before, after = plain.grids(TENSORRT)["six_out"], found.grids(TENSORRT)["six_out"]
    assert after.scale == pytest.approx(before.scale * 127 / 255, rel=2e-3)
    low, high = clip_ends(found)
    assert low == -128 * after.scale  # zero is a step of its own, the lowest
    assert high == pytest.approx(6 - 128 * after.scale)
    assert rounding_noise(found, tools) < 0.3 * rounding_noise(plain, tools)
    assert clip_ends(plain) == (0.0, 6.0)  # what was given stays


@pytest.mark.parametrize(
    ("change", "scheme"),
    [
        ({"kernel": 3}, TENSORRT),  # a padded zero would be half of the range
        ({"outlet": True}, TENSORRT),  # an Add takes no shift back
        ({"low": -1.0}, TENSORRT),
        ({}, CPU),  # UINT8 has no level below zero
    ],
)
def test_left_alone(tmp_path: Path, change: dict[str, float], scheme: object) -> None:
    tools, plain = begun(net_of(tmp_path / "net.onnx", **change), tmp_path, scheme)  # type: ignore[arg-type]
    assert centred(plain, tools) is plain


def test_a_layer_kept_float_is_no_reader(tmp_path: Path) -> None:
    tools, plain = begun(net_of(tmp_path / "net.onnx"), tmp_path)
    weights = tuple(weight for weight in plain.placement.weights if weight.node != "two")
    bare = replace(plain, placement=replace(plain.placement, weights=weights))
    assert centred(bare, tools) is bare


def test_equalize_takes_it(tmp_path: Path) -> None:
    tools, plain = begun(net_of(tmp_path / "net.onnx"), tmp_path)
    found = equalize(plain, tools)
    assert clip_ends(found)[0] < 0
    serialized(found.quantized(TENSORRT))
