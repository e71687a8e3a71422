"""A Mul per channel behind SiLU: the same function, and far less noise where a depthwise convolution reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from quantize_graphs import CPU, OPENVINO, TENSORRT, Net, contract, pictures, residual_net

from edgecnn.backends.tensorrt.rules import check
from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.graph.sessions import observe, open_session
from edgecnn.quantize.ladder.candidate import Tools, first
from edgecnn.quantize.ladder.quality import better
from edgecnn.quantize.place.placement import Graph, Placement, place
from edgecnn.quantize.rungs.equalize import equalize
from edgecnn.quantize.rungs.smooth import smoothed
from edgecnn.quantize.write.rewrite import serialized
from edgecnn.recipe.device import Scheme


def silu(net: Net, x: str, name: str) -> str:
    return net.op("Mul", x, net.op("Sigmoid", x, name=f"{name}_gate"), name=name)


def uneven(path: Path) -> Path:
    """SiLU channels from 1/64 to 1 in size, read by a depthwise convolution that evens them out again."""
    net = Net(3)
    sizes = np.exp2(-np.arange(16) % 7).astype(np.float32)
    x = silu(net, net.conv("image", 16, 3, name="stem"), "first")
    x = net.op("Mul", x, net.constant("sizes", sizes.reshape(1, 16, 1, 1)), name="scale")
    x = silu(net, x, "second")
    x = silu(net, net.conv(x, 16, 16, group=16, name="depthwise"), "third")
    weight = next(tensor for tensor in net.weights if tensor.name == "depthwise.weight")
    array = np.frombuffer(weight.raw_data, np.float32).reshape(16, 1, 3, 3) / sizes.reshape(16, 1, 1, 1)
    weight.raw_data = array.astype(np.float32).tobytes()
    return net.save(path, net.head(net.conv(x, 16, 16, kernel=1, name="point"), 16))


def tools_of(path: Path, folder: Path, scheme: Scheme = TENSORRT) -> tuple[Tools, Placement]:
    model = canonical(path)
    feeder = Feeder(model, contract(), pictures(32), 32)
    shapes, _ = observe(model, list(feeder.feeds([0])))
    graph = Graph(model, shapes)
    return Tools(scheme, graph, feeder, "mse", folder), place(graph, scheme)


def answers(model: ir.Model, tools: Tools) -> np.ndarray:
    session = open_session(model, simulate=True)
    return np.concatenate([session.run(None, feed)[0] for feed in tools.feeder.feeds()])


def muls(model: ir.Model) -> set[str]:
    return {node.name or "" for node in model.graph if (node.name or "").endswith(".smooth")}


def test_the_same_function_with_less_noise(tmp_path: Path) -> None:
    tools, placement = tools_of(uneven(tmp_path / "m.onnx"), tmp_path)
    before, _ = first(tools.graph.model, placement, tools)
    model = smoothed(tools.graph, placement, tools.feeder, list(range(32)))
    assert model is not None
    assert "second.smooth" in muls(model)
    np.testing.assert_allclose(answers(model, tools), answers(tools.graph.model, tools), atol=1e-4)
    assert not muls(tools.graph.model)  # the given graph stays as it is

    after, _ = first(model, placement, tools)
    which, qualities = better(tools, before, [after], list(range(32)))
    assert which == 0
    assert qualities[1] > qualities[0] + 6  # dB; half the noise amplitude


def test_equalize_takes_it_but_not_for_onnxruntime(tmp_path: Path) -> None:
    path = uneven(tmp_path / "m.onnx")
    tools, placement = tools_of(path, tmp_path)
    found = equalize(first(tools.graph.model, placement, tools)[0], tools)
    assert "second.smooth" in muls(found.model)
    (tmp_path / "int8.onnx").write_bytes(serialized(found.quantized(TENSORRT)))
    assert check(tmp_path / "int8.onnx") == []
    tools, placement = tools_of(path, tmp_path, OPENVINO)
    assert "second.smooth" in muls(equalize(first(tools.graph.model, placement, tools)[0], tools).model)
    tools, placement = tools_of(path, tmp_path, CPU)
    assert not muls(equalize(first(tools.graph.model, placement, tools)[0], tools).model)


def test_nothing_to_do_without_such_an_activation(tmp_path: Path) -> None:
    tools, placement = tools_of(residual_net(tmp_path / "m.onnx"), tmp_path)
    assert smoothed(tools.graph, placement, tools.feeder, list(range(32))) is None
