"""The ends of a graph: the last layers before its outputs, where a detector's boxes and scores are still alike."""

from __future__ import annotations

import onnx_ir as ir

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.place.placement import LAYERS


def ends(model: ir.Model) -> list[str]:
    """Names of the last layers' outputs on the way back from the graph's outputs; without any, the outputs."""
    found: dict[str, None] = {}
    seen: set[int] = set()
    waiting = list(model.graph.outputs)[::-1]
    while waiting:
        value = waiting.pop()
        producer = value.producer()
        if id(value) in seen or constant(value) is not None:
            continue
        seen.add(id(value))
        if producer is None:
            continue
        if producer.op_type in LAYERS and any(constant(v) is not None for v in producer.inputs[1:2]):
            found[value.name or ""] = None
            continue
        waiting.extend(v for v in reversed(producer.inputs) if v is not None)
    return list(found) or [value.name or "" for value in model.graph.outputs]
