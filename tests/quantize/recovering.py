"""Nets and tools for the rungs that need no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from quantize_graphs import TENSORRT, Net, Pictures, contract

from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.graph.sessions import observe, open_session, run_each
from edgecnn.quantize.ladder.candidate import Candidate, Tools, first
from edgecnn.quantize.place.placement import Graph, place
from edgecnn.recipe.device import Scheme

SIZE = 12


def smooth_pictures(count: int, seed: int = 0, size: int = SIZE) -> Pictures:
    """Random images whose neighbouring pixels are alike, as in photographs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, size // 3, size // 3, 3), np.uint8)
    return Pictures(coarse.repeat(3, axis=1).repeat(3, axis=2))


def begun(
    path: Path, folder: Path, scheme: Scheme = TENSORRT, images: int = 24, ranges: str = "minmax"
) -> tuple[Tools, Candidate]:
    """Tools over a file's canonical graph, and its first candidate."""
    model = canonical(path)
    feeder = Feeder(model, contract(size=SIZE), smooth_pictures(images), images)
    graph = Graph(model, observe(model, list(feeder.feeds([0])))[0])
    tools = Tools(scheme, graph, feeder, ranges, folder)  # type: ignore[arg-type]
    return tools, first(model, place(graph, scheme), tools)[0]


def unseen_db(model: ir.Model, reference: ir.Model, seed: int = 99, count: int = 32) -> float:
    """SQNR in dB of a float-simulated graph on images that no rung saw."""
    feeds = [contract(size=SIZE).feed(smooth_pictures(count, seed).images[n : n + 1]) for n in range(count)]
    signal = noise = 0.0
    pairs = zip(
        run_each(open_session(reference), feeds), run_each(open_session(model, simulate=True), feeds), strict=True
    )
    for want, got in pairs:
        for a, b in zip(want, got, strict=True):
            signal += float(np.square(a).sum())
            noise += float(np.square(a - b).sum())
    return float(10.0 * np.log10(signal / noise))


def unequal(model: onnx.ModelProto, pairs: list[tuple[str, str]], furthest: int = 4) -> onnx.ModelProto:
    """Multiply each first layer's channels by 2^-furthest … 2^furthest and divide the second's inputs again."""
    weights = {w.name: w for w in model.graph.initializer}
    rng = np.random.default_rng(3)

    def scale(name: str, factors: np.ndarray, axis: int) -> None:
        array = onnx.numpy_helper.to_array(weights[name])
        shape = [1] * array.ndim
        shape[axis] = -1
        weights[name].CopyFrom(onnx.numpy_helper.from_array(array * factors.reshape(shape), name))

    for one, other in pairs:
        count = weights[f"{one}.weight"].dims[0]
        factors = np.exp2(rng.integers(-furthest, furthest + 1, count)).astype(np.float32)
        scale(f"{one}.weight", factors, 0)
        scale(f"{one}.bias", factors, 0)
        depthwise = weights[f"{other}.weight"].dims[1] == 1
        scale(f"{other}.weight", 1.0 / factors, 0 if depthwise else 1)
    return model


def chain(activation: str = "Relu") -> Net:
    """conv → activation → depthwise → activation → conv → head."""
    net = Net(3, SIZE)

    def act(x: str) -> str:
        if activation == "Clip":
            low, high = net.constant(f"{x}.low", np.float32(0)), net.constant(f"{x}.high", np.float32(6))
            return net.op("Clip", x, low, high)
        if activation == "PRelu":
            return net.op("PRelu", x, net.constant(f"{x}.slope", np.full((16, 1, 1), 0.25, np.float32)))
        if activation == "Silu":
            return net.op("Mul", x, net.op("Sigmoid", x))
        return net.op(activation, x) if activation else x

    x = act(net.conv("image", 16, 3, name="one"))
    x = act(net.conv(x, 16, 16, name="two", group=16))
    x = act(net.conv(x, 16, 16, name="three"))
    net.last = net.head(x, 16)  # type: ignore[attr-defined]
    return net


def saved(net: Net, path: Path, pairs: list[tuple[str, str]] | None = None) -> Path:
    """Write a chain, made unequal between the pairs."""
    onnx.save(unequal(net.model(net.last), pairs or []), str(path))  # type: ignore[attr-defined]
    return path
