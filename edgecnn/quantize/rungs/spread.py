"""Extremes and powers of every channel of a tensor over calibration images, in one streaming pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from edgecnn.process.progress import track
from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.canonical import opset
from edgecnn.quantize.graph.names import Names
from edgecnn.quantize.graph.sessions import expose, open_session, run_each
from edgecnn.quantize.place.placement import Graph

_AXES_AS_INPUT = 18  # the opset since which the reductions take their axes as an input
_MEASURES = ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSumSquare")
_LONGEST = 4.0


@dataclass(frozen=True)
class Spread:
    """By channel, float64 (C,).

    Attributes:
        low, high: the extremes seen.
        usual: the mean over the images of the largest magnitude of each.
        mean, power: E[x] and E[x²].
    """

    low: np.ndarray
    high: np.ndarray
    usual: np.ndarray
    mean: np.ndarray
    power: np.ndarray

    @property
    def bound(self) -> np.ndarray:
        """The largest magnitude to provide for.

        A channel that is silent on most images and loud on few has probably not yet shown its loudest: what was seen
        is extended by the square root of the ratio of the largest image to the usual one.
        """
        seen = np.maximum(self.high, -self.low)
        ratio = seen / np.maximum(self.usual, 1e-30)
        return np.asarray(seen * np.sqrt(np.clip(ratio, 1.0, _LONGEST**2)))


def spreads(feeder: Feeder, graph: Graph, tensors: list[str], sample: list[int]) -> dict[str, Spread]:
    """Spread by tensor name, of float tensors with channels on axis 1."""
    proto, own = expose(feeder.model, []), Names(feeder.model.graph).prefix("edgecnn")
    for number, tensor in enumerate(tensors):
        axes = [axis for axis in range(len(graph.shapes[tensor])) if axis != 1]
        for measure in _MEASURES:
            add_reduction(proto, measure, tensor, f"{own}.{measure}.{number}", axes, opset(feeder.model))
    session = open_session(proto)
    found: dict[str, list[list[np.ndarray]]] = {tensor: [] for tensor in tensors}
    for values in track(run_each(session, feeder.feeds(sample)), "channels", math.ceil(len(sample) / feeder.batch)):
        wide = [np.asarray(value, np.float64).reshape(-1) for value in values]
        for number, tensor in enumerate(tensors):
            found[tensor].append(wide[number * len(_MEASURES) : (number + 1) * len(_MEASURES)])
    result = {}
    for tensor, rows in found.items():
        high, low, mean, squares = (np.stack(part) for part in zip(*rows, strict=True))
        count = max(
            math.prod(n for axis, n in enumerate(graph.shapes[tensor]) if axis != 1), 1
        )  # an output may be empty
        usual = np.maximum(high, -low).mean(axis=0)
        result[tensor] = Spread(
            low.min(axis=0), high.max(axis=0), usual, mean.mean(axis=0), squares.mean(axis=0) / count
        )
    return result


def add_reduction(proto: onnx.ModelProto, op: str, tensor: str, output: str, axes: list[int], version: int) -> None:
    """Append an output that is a reduction of a tensor."""
    if version < _AXES_AS_INPUT:
        node = onnx.helper.make_node(op, [tensor], [output], axes=axes, keepdims=0)
    else:
        name = f"{output}.axes"
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(axes, np.int64), name))
        node = onnx.helper.make_node(op, [tensor, name], [output], keepdims=0)
    proto.graph.node.append(node)
    proto.graph.output.add(name=output)


def measurable(graph: Graph, tensors: list[ir.Value | None]) -> list[str]:
    """Names, once each, of tensors with known shape and at least two axes."""
    names = [value.name or "" for value in tensors if value is not None]
    return [name for name in dict.fromkeys(names) if len(graph.shapes.get(name, ())) >= 2]
