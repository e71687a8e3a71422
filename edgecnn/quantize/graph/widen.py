"""A model kept in FP16 or BF16 becomes one in FP32, the form that every later step reads; its ends keep their types.

Rounding weights to integers starts from their exact values either way, and the typed graph writes FP16 again.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecnn.quantize.graph.names import Names

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_FLOAT = ir.DataType.FLOAT


def widen(model: ir.Model) -> bool:
    """Make every half-precision tensor float32, in place; whether there was one."""
    graph = model.graph
    found = False
    ends = {value.name or "": value.dtype for value in graph.outputs if value.dtype in _HALVES}
    for value in graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype in _HALVES:
            array = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
            value.type = ir.TensorType(_FLOAT)
            found = True
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for name in ("to", "dtype"):
            attribute = node.attributes.get(name)
            if attribute is not None and attribute.type == ir.AttributeType.INT and attribute.value in _HALVES:
                node.attributes[name] = ir.AttrInt64(name, int(_FLOAT))
                found = True
        filled = node.attributes.get("value")
        if filled is not None and filled.type == ir.AttributeType.TENSOR and filled.value.dtype in _HALVES:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(filled.value.numpy().astype(np.float32)))
            found = True
        for value in node.outputs:
            if value.dtype in _HALVES:
                value.type = ir.TensorType(_FLOAT)
    found = _inputs(graph) or found
    found = _outputs(graph, ends) or found
    if found:
        _drop_casts(graph)
    return found


def _inputs(graph: ir.Graph) -> bool:
    halves = [value for value in graph.inputs if value.dtype in _HALVES]
    names = Names(graph)
    for value in halves:
        cast = ir.node("Cast", [value], {"to": int(_FLOAT)}, name=names.free(f"{value.name}.to_fp32"))
        cast.outputs[0].name, cast.outputs[0].shape = names.free(f"{value.name}.fp32"), value.shape
        cast.outputs[0].type = ir.TensorType(_FLOAT)
        for node, index in list(value.uses()):
            node.replace_input_with(index, cast.outputs[0])
        cast.replace_input_with(0, value)
        graph.insert_before(next(iter(graph)), cast)
    return bool(halves)


def _outputs(graph: ir.Graph, ends: dict[str, ir.DataType | None]) -> bool:
    """Outputs that were half stay so, by a Cast at the end."""
    names = Names(graph)
    for position, value in enumerate(list(graph.outputs)):
        name, kind = value.name or "", ends.get(value.name or "")
        if kind is None:
            continue
        if not value.is_graph_input():
            value.name = names.free(f"{name}.fp32")
        cast = ir.node("Cast", [value], {"to": int(kind)}, name=names.free(f"{name}.to_{kind.name.lower()}"))
        cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].type = name, value.shape, ir.TensorType(kind)
        graph.append(cast)
        graph.outputs[position] = cast.outputs[0]
    return bool(ends)


def _drop_casts(graph: ir.Graph) -> None:
    """A Cast from float32 to float32 does nothing."""
    for node in list(graph):
        if node.op_type != "Cast" or node.attributes["to"].value != int(_FLOAT):
            continue
        source, output = node.inputs[0], node.outputs[0]
        if source is not None and source.dtype == _FLOAT and not output.is_graph_output():
            ir.convenience.replace_all_uses_with(output, source)
            graph.remove(node, safe=True)
