"""Index arithmetic: FP16 holds every whole number up to 2048 and no further, so what counts or points stays FP32.

Numbers that come from integers (a Cast of ArgMax, of TopK's indices, a Range, a grid written as whole numbers) are FP32
as long as nothing else is mixed in, and beyond that while they exceed 2048. What becomes an integer (a Cast, Floor,
Round) is FP32 from the layer on that it was computed from, as is what is put in order: TopK, or an ArgMax whose index
is computed with. Two values that FP16 makes equal change places, and with them everything that is read by the index.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.place.placement import LAYERS, QDQ

WHOLE = 2048.0  # FP16 holds every integer up to here
_FLOAT = ir.DataType.FLOAT
_INDICES = frozenset({  # DOUBLE, as nobody takes it for anything that may be rounded
    ir.DataType.DOUBLE, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT16, ir.DataType.UINT32,
    ir.DataType.UINT64,
})  # fmt: skip
_ADDED = frozenset({"Add", "Sub", "Sum", "Concat", "Where", "Max", "Min"})
_STEPS = frozenset({"Floor", "Ceil", "Round", "Mod"})
# What an exact number is followed back through, to the layer it comes from.
_FOLLOWED = _STEPS | {
    "Add", "Sub", "Mul", "Div", "Neg", "Abs", "Max", "Min", "Clip", "Relu", "Sigmoid", "HardSigmoid", "Tanh", "Exp",
    "Log", "Sqrt", "Pow", "Reciprocal", "Where", "Concat", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten",
    "Expand", "Tile", "Slice", "Split", "Gather", "GatherElements", "GatherND", "Identity", "Cast", "Sum",
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "GlobalAveragePool", "Softmax",
    "MaxPool",
}  # fmt: skip


def exact_nodes(graph: ir.Graph, largest: dict[str, float]) -> dict[str, str]:
    """Nodes that stay FP32 because whole numbers pass through them, by name, with why.

    Args:
        largest: magnitude seen, by tensor.
    """
    wide: dict[str, str] = {}
    indices: set[ir.Value] = set()  # whole numbers and what is computed of nothing else
    mixed: set[ir.Value] = {  # with other numbers in it
        value
        for value in graph.inputs
        if value.dtype == _FLOAT and value.shape is not None and len(value.shape) <= 2
        and largest.get(value.name or "", 0.0) > WHOLE
    }  # fmt: skip
    for node in graph:
        _forward(node, largest, indices, mixed, wide)
    for node in graph:
        if node.op_type in _STEPS or (node.op_type == "Cast" and node.outputs[0].dtype in _INDICES):
            _backward(node, wide, "makes whole numbers of it")
        elif node.op_type == "TopK" or (node.op_type in ("ArgMax", "ArgMin") and _read(node)):
            _backward(node, wide, "puts it in order")
    return wide


def _forward(
    node: ir.Node, largest: dict[str, float], indices: set[ir.Value], mixed: set[ir.Value], wide: dict[str, str]
) -> None:
    outputs = [value for value in node.outputs if value.dtype == _FLOAT]
    if not outputs or node.op_type in LAYERS or node.op_type in QDQ:
        return
    read = [value for value in node.inputs if value is not None]
    if node.op_type == "Cast" and read[0].dtype == ir.DataType.BOOL:
        mixed.update(outputs)  # to be counted
        return
    if node.op_type == "Range" or (node.op_type == "Cast" and read[0].dtype in _INDICES):
        wide[node.name or ""] = "it computes with indices"
        indices.update(outputs)
        return
    floats = [value for value in read if value.dtype == _FLOAT and constant(value) is None]
    known = [value for value in floats if value in indices or value in mixed]
    # A bound is not a number to keep; a factor may be any that FP16 has.
    table = node.op_type != "Clip" and any(_whole(value, rounded=node.op_type not in _ADDED) for value in read)
    if floats and all(value in indices for value in floats):
        wide[node.name or ""] = "it computes with indices"
        indices.update(outputs)
    elif known or table:
        bound = max(largest.get(value.name or "", 0.0) for value in (*known, *outputs))
        if bound > WHOLE or table:
            wide[node.name or ""] = f"whole numbers up to {bound:.0f} are in it, and FP16 holds them up to {WHOLE:.0f}"
        mixed.update(outputs)


def _read(node: ir.Node) -> bool:
    """Something is computed with the integers that the node makes; answering them, as they are or cast, is not that."""
    readers = [use[0] for use in node.outputs[0].uses()]
    return any(reader.op_type != "Cast" or reader.outputs[0].dtype == _FLOAT or _read(reader) for reader in readers)


def _backward(node: ir.Node, wide: dict[str, str], how: str) -> None:
    """FP32 from the layer on; an INT8 layer answers FP32 itself, which costs it nothing but the larger output."""
    waiting = [node]
    seen = {node}
    while waiting:
        reader = waiting.pop()
        wide.setdefault(reader.name or "", f"{node.op_type} `{node.name}` {how}")
        if reader.op_type in LAYERS:
            continue
        for value in reader.inputs:
            producer = value.producer() if value is not None and value.dtype == _FLOAT else None
            if producer is None or producer in seen:
                continue
            if producer.op_type in _FOLLOWED or (producer.op_type in LAYERS and _in_int8(producer)):
                seen.add(producer)
                waiting.append(producer)


def _in_int8(layer: ir.Node) -> bool:
    producers = [value.producer() for value in layer.inputs[:2] if value is not None]
    return all(producer is not None and producer.op_type == "DequantizeLinear" for producer in producers)


def _whole(value: ir.Value, *, rounded: bool) -> bool:
    """A constant of whole or half numbers beyond what FP16 holds all of: a grid, a size, a count.

    Args:
        rounded: only one that FP16 does not hold as it is.
    """
    array = constant(value)
    if array is None or array.dtype != np.float32 or not array.size or not np.isfinite(array).all():
        return False
    if not WHOLE / 2 < float(np.abs(array).max()) <= 2.0**23 or not np.array_equal(2 * array, np.round(2 * array)):
        return False
    with np.errstate(over="ignore"):
        exact = np.array_equal(array.astype(np.float16).astype(np.float32), array)
    return not exact or (not rounded and float(np.abs(array).max()) > WHOLE)
