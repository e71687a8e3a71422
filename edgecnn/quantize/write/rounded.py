"""A typed graph as onnxruntime's CPU can run it in FP16 arithmetic.

The CPU has no FP16 kernels: onnxruntime casts such nodes to FP32 and drops the casts between them, so what a GPU rounds
stays exact there. Here every FP16 tensor is a float32 one that is rounded to FP16 and back where it is made. Each
operator computes in FP32 and rounds its result once: FP32 accumulation, as TensorRT's convolutions and matrix products
have it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecnn.quantize.graph.names import Names
from edgecnn.quantize.place.tensorrt import passes

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_TYPES = ("to", "dtype", "output_dtype")
_EXACT = frozenset({"Relu", "Neg", "Abs", "Identity"})  # beside what moves values: these round nothing


def rounded(model: ir.Model) -> ir.Model:
    """A float32 graph with the same outputs, FP16 ones as float32 of the same values; `model` is left as it is."""
    copy = model.clone()
    graph, names = copy.graph, Names(copy.graph)
    for value in graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == _HALF:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(_FLOAT)
    for value in [value for value in graph.inputs if value.dtype == _HALF]:
        _widened(graph, value, names)
    for node in list(graph):
        for name in _TYPES:
            attribute = node.attributes.get(name)
            if attribute is not None and attribute.value == int(_HALF):
                node.attributes[name] = ir.AttrInt64(name, int(_FLOAT))
        filled = node.attributes.get("value")
        if filled is not None and filled.type == ir.AttributeType.TENSOR and filled.value.dtype == _HALF:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(filled.value.numpy().astype(np.float32)))
        for value in node.outputs:
            if value.dtype != _HALF:
                continue
            value.type = ir.TensorType(_FLOAT)
            if not _exact(node):
                _round(graph, node, value, names)
    return copy


def _exact(node: ir.Node) -> bool:
    """Its results are values that it reads, which are FP16 numbers already."""
    return node.op_type in _EXACT or (passes(node) and node.op_type != "Pad")


def _widened(graph: ir.Graph, value: ir.Value, names: Names) -> None:
    cast = names.give(ir.node("Cast", [value], {"to": int(_FLOAT)}), f"{value.name}.widened")
    cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(_FLOAT), value.shape
    ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    cast.replace_input_with(0, value)
    graph.insert_before(next(iter(graph)), cast)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value, names: Names) -> None:
    """value → FP16 → float32, which takes the name and the uses of `value`."""
    half = names.give(ir.node("Cast", [value], {"to": int(_HALF)}), f"{value.name}.half")
    back = names.give(ir.node("Cast", [half.outputs[0]], {"to": int(_FLOAT)}), f"{value.name}.back")
    ir.convenience.replace_all_uses_with(value, back.outputs[0], replace_graph_outputs=True)
    half.replace_input_with(0, value)
    value.name, back.outputs[0].name = names.free(f"{value.name}.exact"), value.name
    for output, kind in ((half.outputs[0], _HALF), (back.outputs[0], _FLOAT)):
        output.type, output.shape = ir.TensorType(kind), value.shape
    graph.insert_after(node, [half, back])
