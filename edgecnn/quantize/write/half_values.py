"""Small values that FP16 loses and that matter: denominators, logarithms, roots, and what an operator holds inside.

FP16's steps stop shrinking at 2^-24. Where a value is added to a larger one that is no loss; where it is divided by, or
its logarithm or root is taken, it decides. From there the demand for a value's own precision goes back through the
graph until a tensor is large enough for FP16, so that an island holds everything between.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.place.placement import LAYERS, QDQ

if TYPE_CHECKING:
    from edgecnn.quantize.calibration.magnitudes import Magnitudes

LARGEST_HALF = 65504.0
LEAST = 2.0**-20  # FP16 is off by up to 3 % there
HEADROOM = 64.0  # of the smallest value seen: a few images were looked at
EXP_HEADROOM = 16.0
_FLOAT = ir.DataType.FLOAT
# What passes a demand on to its inputs as it is: a sum is as exact as its terms, a choice as what is chosen.
_PASSING = frozenset({
    "Add", "Sub", "Sum", "Mean", "Max", "Min", "Clip", "Where", "Concat", "Relu", "LeakyRelu", "PRelu", "Abs", "Neg",
    "Identity", "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "GlobalAveragePool",
    "AveragePool", "GlobalMaxPool", "MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand",
    "Tile", "Slice", "Split", "Gather", "GatherElements", "GatherND", "Pad", "Resize", "DepthToSpace", "SpaceToDepth",
    "CumSum", "Tanh", "Sin", "Asinh", "Atan", "Erf", "Softsign", "Div", "ScatterND", "ScatterElements",
})  # fmt: skip
_UNSIGNED = frozenset({"Relu", "Abs", "Sqrt", "Exp", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "ReduceL1",
                       "ReduceL2", "ReduceSumSquare", "GlobalLpPool"})  # fmt: skip


def demanded(graph: ir.Graph, smallest: dict[str, float], *, deep: bool = False) -> dict[str, str]:
    """Nodes that stay FP32 because they read or make values that FP16 loses, by name, with why.

    Args:
        smallest: smallest magnitude seen that isn't zero, by tensor.
        deep: through layers that are not INT8 too. A filter whose small answers count, as a spectrum's do before its
            logarithm, takes them from what is large: its input may not be rounded either.
    """
    wide: dict[str, str] = {}
    asked: dict[ir.Value, float] = {}
    filtered: set[ir.Value] = set()
    waiting = [(node, value, 0.0, node) for node in graph for value in _decided(node)]
    while waiting:
        reader, value, least, origin = waiting.pop()
        least = least if value in filtered else max(least, _attained(value, smallest))
        if least >= LEAST or np.isinf(least):
            continue
        why = f"{origin.op_type} `{origin.name}` depends on values of `{value.name}` as small as {least:.1g}"
        wide.setdefault(reader.name or "", why)
        producer = value.producer()
        if producer is None or producer.op_type in QDQ or asked.get(value, np.inf) <= least:
            continue
        asked[value] = least
        wide.setdefault(producer.name or "", why)
        passed = _passed(producer, least)
        if deep and producer.op_type in LAYERS and producer.inputs[0] is not None:
            passed = [(producer.inputs[0], least)]
        if deep and (producer.op_type in LAYERS or value in filtered):
            filtered.update(source for source, _ in passed)
        waiting.extend((producer, source, need, origin) for source, need in passed)
    return wide


def watched(graph: ir.Graph) -> list[str]:
    """The tensors whose smallest values `demanded` may ask for: all that a demand could reach."""
    seen: dict[ir.Value, None] = {}
    waiting = [value for node in graph for value in _decided(node)]
    waiting += [node.outputs[0] for node in graph if node.op_type == "ReduceL2"]
    while waiting:
        value = waiting.pop()
        if value in seen or constant(value) is not None:
            continue
        seen[value] = None
        producer = value.producer()
        if producer is not None:
            waiting.extend(source for source, _ in _passed(producer, 0.0))
    return [value.name for value in seen if value.name and value.dtype == _FLOAT]


def squared(graph: ir.Graph) -> dict[str, tuple[str, list[int]]]:
    """Normalizations that sum squares inside: (tensor, axes) by node."""
    found = {}
    for node in graph:
        value = node.inputs[0] if node.inputs else None
        if value is None or value.dtype != _FLOAT or value.shape is None:
            continue
        rank = len(value.shape)
        axis = node.attributes.get_int("axis", -1)
        if node.op_type == "LayerNormalization":
            found[node.name or ""] = (value.name or "", list(range(axis % rank, rank)))
        elif node.op_type == "LpNormalization":
            found[node.name or ""] = (value.name or "", [axis % rank])
    return found


def hidden(node: ir.Node, measured: Magnitudes) -> str:
    """Why FP16 doesn't hold what this operator computes inside; '' where it does.

    Most runtimes build these of several FP16 steps: a norm of squares, a softplus of an exponential, a mean of a sum.
    """
    output = node.outputs[0].name or ""
    high = measured.largest.get(output, 1.0)
    match node.op_type:
        case "ReduceL2" if high * high * 2 > LARGEST_HALF:
            return f"its squares reach {high * high:.3g}"
        case "ReduceL2" if (low := measured.smallest.get(output, 1.0)) ** 2 < 2.0**-14:
            return f"its squares are as small as {low * low:.1g}"
        case "InstanceNormalization" | "GroupNormalization" if (
            most := _read_most(node, measured)
        ) ** 2 * 2 > LARGEST_HALF:
            return f"its squares reach {most * most:.3g}"
        case "ReduceMean" | "GlobalAveragePool" if high * (many := _averaged(node, measured.shapes)) * 2 > LARGEST_HALF:
            return f"the sum of {many:.0f} values reaches {high * many:.3g}"
        case "Softplus" if high > np.log(LARGEST_HALF / 2):
            return f"exp({high:.3g}) is computed inside"
        case "Exp" if high * EXP_HEADROOM > LARGEST_HALF:
            return f"it reaches {high:.3g}, and grows fast"
        case "CumSum":
            return "it adds up one value after the other"
        case "LogSoftmax" | "ReduceLogSumExp" | "ReduceLogSum" | "MeanVarianceNormalization":
            return "it computes logarithms of sums, or sums of squares, inside"
        case _:
            pass
    if (total := measured.squares.get(node.name or "", 0.0)) * 2 > LARGEST_HALF:
        return f"its sum of squares reaches {total:.3g}"
    if node.op_type in ("LayerNormalization", "LpNormalization") and 0.0 < total < 2.0**-14:
        return f"its sum of squares is at most {total:.1g}"
    return ""


def _read_most(node: ir.Node, measured: Magnitudes) -> float:
    value = node.inputs[0]
    return measured.largest.get(value.name or "", 1.0) if value is not None else 1.0


def _averaged(node: ir.Node, shapes: dict[str, tuple[int, ...]]) -> float:
    """How many values become one."""
    sizes = [math.prod(shapes.get(value.name or "", ())) for value in (node.inputs[0], node.outputs[0]) if value]
    return sizes[0] / max(1, sizes[1]) if len(sizes) == 2 else 1.0


def raised(graph: ir.Graph, largest: dict[str, float]) -> dict[str, float]:
    """The largest magnitudes, and what a reciprocal of a guarded value may reach: the guard's own."""
    found = dict(largest)
    for node in graph:
        power = -1.0
        if node.op_type == "Pow" and (exponent := constant(node.inputs[1])) is not None and exponent.size == 1:
            power = float(exponent.reshape(-1)[0])
        elif not (node.op_type == "Reciprocal" or (node.op_type == "Div" and constant(node.inputs[0]) is not None)):
            continue
        value = node.inputs[1 if node.op_type == "Div" else 0]
        floor = _floor(value) if value is not None else None
        if power < 0.0 and floor:
            name = node.outputs[0].name or ""
            found[name] = max(found.get(name, 0.0), floor**power)
    return found


def _decided(node: ir.Node) -> list[ir.Value]:
    """Inputs whose small values decide this node's result."""
    match node.op_type:
        case "Log" | "Sqrt" | "Reciprocal":
            found = [node.inputs[0]]
        case "Div":
            found = [node.inputs[1]]
        case "Pow" if not _whole_power(node):
            found = [node.inputs[0]]
        case _:
            return []
    return [value for value in found if value is not None and value.dtype == _FLOAT]


def _whole_power(node: ir.Node) -> bool:
    exponent = constant(node.inputs[1])
    return exponent is not None and bool(np.all(exponent > 0) and np.all(exponent == np.round(exponent)))


def _passed(node: ir.Node, least: float) -> list[tuple[ir.Value, float]]:
    """Inputs that must be as exact as the output, and down to which magnitude each."""
    floats = [value for value in node.inputs if value is not None and value.dtype == _FLOAT]
    if node.op_type in _PASSING:
        return [(value, least) for value in (floats[:1] if node.op_type == "Div" else floats)]
    match node.op_type:
        case "Mul" if len(floats) == 2 and floats[0] is floats[1]:
            return [(floats[0], least**0.5)]
        case "Mul":
            return [(value, least) for value in floats]
        case "ReduceSumSquare":
            return [(floats[0], least**0.5)]
        case "Sqrt":
            return [(floats[0], least**2)]
        case "Pow":
            exponent = constant(node.inputs[1])
            if exponent is not None and exponent.size and float(exponent.reshape(-1)[0]) > 0.0:
                return [(floats[0], least ** (1.0 / float(exponent.reshape(-1)[0])))]
        case _:
            pass
    return []


def _attained(value: ir.Value, smallest: dict[str, float]) -> float:
    """The smallest magnitude that isn't zero which the tensor may take."""
    array = constant(value)
    if array is not None:
        real = np.abs(array[np.isfinite(array) & (array != 0)])
        return float(real.min()) if real.size else float("inf")
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        scale = constant(producer.inputs[1])
        return float(np.abs(scale).min()) if scale is not None and scale.size else 1.0
    floor = _floor(value)
    return floor if floor else smallest.get(value.name or "", 1.0) / HEADROOM


def _floor(value: ir.Value) -> float | None:
    """The constant that keeps a tensor away from zero, behind what only moves it; None where there is none."""
    producer = value.producer()
    if producer is None:
        return None
    if producer.op_type in ("Expand", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Identity", "Sqrt"):
        source = producer.inputs[0]
        below = _floor(source) if source is not None else None
        return below**0.5 if below and producer.op_type == "Sqrt" else below
    read = [v for v in producer.inputs if v is not None]
    match producer.op_type:
        case "Clip" if len(producer.inputs) > 1:
            guards = [constant(producer.inputs[1])]
        case "Max":
            guards = [constant(v) for v in read]
        case "Add" | "Sum" if all(constant(v) is not None or _unsigned(v) for v in read):
            guards = [constant(v) for v in read]
        case _:
            return None
    floors = [float(guard.min()) for guard in guards if guard is not None and guard.size]
    return max((floor for floor in floors if floor > 0.0), default=None)


def _unsigned(value: ir.Value, depth: int = 8) -> bool:
    """Never below zero, as far as the operators that make it tell."""
    producer = value.producer()
    if producer is None or depth == 0:
        return False
    if producer.op_type in _UNSIGNED:
        return True
    read = [v for v in producer.inputs if v is not None]
    if producer.op_type == "Mul" and len(read) == 2 and read[0] is read[1]:
        return True
    if producer.op_type == "Pow":
        exponent = constant(producer.inputs[1])
        return exponent is not None and bool(np.all(exponent % 2 == 0))
    if producer.op_type == "Clip":
        low = constant(producer.inputs[1]) if len(producer.inputs) > 1 else None
        return low is not None and bool(np.all(low >= 0))
    if producer.op_type in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "Expand", "Reshape", "Transpose",
                            "Unsqueeze", "Squeeze", "GlobalAveragePool", "AveragePool", "MaxPool"):  # fmt: skip
        return _unsigned(read[0], depth - 1)
    return False
