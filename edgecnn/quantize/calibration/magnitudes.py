"""How large and how small a graph's tensors get on a few calibration images: what FP16 is held to."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from edgecnn.quantize.graph.names import Names
from edgecnn.quantize.graph.sessions import Feeds, open_session, run
from edgecnn.quantize.write.half_values import squared, watched


@dataclass(frozen=True)
class Magnitudes:
    """What was seen; what is in none of these is taken to fit.

    Attributes:
        largest: magnitude by tensor.
        smallest: magnitude that isn't zero, by tensor: of those whose relative precision matters.
        squares: largest sum of squares that a normalization computes inside, by node.
        shapes: of one inference, by tensor.
    """

    largest: dict[str, float] = field(default_factory=dict)
    smallest: dict[str, float] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def magnitudes(
    model: ir.Model, feeds: list[Feeds], largest: dict[str, float], shapes: dict[str, tuple[int, ...]]
) -> Magnitudes:
    """The smallest magnitudes and the hidden sums beside the `largest` that are known; one run over the feeds."""
    largest = largest | {
        name: max(float(np.abs(feed[name]).max(initial=0.0)) for feed in feeds)
        for name, array in feeds[0].items()
        if array.dtype.kind == "f"
    }
    proto = ir.serde.serialize_model(model)
    names, norms = watched(model.graph), squared(model.graph)
    if not names and not norms:
        return Magnitudes(largest, shapes=shapes)
    own = Names(model.graph).prefix("edgecnn")
    del proto.graph.output[:]
    proto.graph.initializer.extend([
        onnx.numpy_helper.from_array(np.float32(0.0), f"{own}.zero"),
        onnx.numpy_helper.from_array(np.float32(np.inf), f"{own}.none"),
    ])  # fmt: skip
    for number, name in enumerate(names):
        _smallest(proto.graph, name, own, number)
    for number, (name, axes) in enumerate(norms.values()):
        _square_sum(proto.graph, name, axes, f"{own}.squares.{number}")
    session = open_session(proto, simulate=True)
    smallest, squares = dict.fromkeys(names, float("inf")), dict.fromkeys(norms, 0.0)
    for feed in feeds:
        got = [float(value) for value in run(session, feed)]
        smallest = {name: min(smallest[name], value) for name, value in zip(names, got, strict=False)}
        squares = {node: max(squares[node], value) for node, value in zip(norms, got[len(names) :], strict=True)}
    return Magnitudes(largest, smallest, squares, shapes)


def _smallest(graph: onnx.GraphProto, name: str, own: str, number: int) -> None:
    output = f"{own}.smallest.{number}"
    steps = (
        helper.make_node("Abs", [name], [f"{output}.abs"]),
        helper.make_node("Equal", [f"{output}.abs", f"{own}.zero"], [f"{output}.is_zero"]),
        helper.make_node("Where", [f"{output}.is_zero", f"{own}.none", f"{output}.abs"], [f"{output}.rest"]),
        helper.make_node("ReduceMin", [f"{output}.rest"], [output], keepdims=0),
    )
    graph.node.extend(steps)
    graph.output.add(name=output)


def _square_sum(graph: onnx.GraphProto, name: str, axes: list[int], output: str) -> None:
    graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(axes, np.int64), f"{output}.axes"))
    graph.node.append(helper.make_node("ReduceSumSquare", [name, f"{output}.axes"], [f"{output}.each"]))
    graph.node.append(helper.make_node("ReduceMax", [f"{output}.each"], [output], keepdims=0))
    graph.output.add(name=output)
