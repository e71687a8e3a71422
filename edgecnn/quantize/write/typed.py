"""FP16 islands: the graph for TensorRT's strongly typed networks, where precision is what the graph says.

Everything float becomes FP16, Q/DQ scales included (QuantizeLinear takes FP16 from opset 19 on), inputs and outputs
keep their types. What FP16 cannot hold (see `half`) stays FP32 between casts, as do shape arithmetic and nodes with
subgraphs.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecnn.process.errors import EdgeError
from edgecnn.quantize.calibration.magnitudes import Magnitudes
from edgecnn.quantize.graph.canonical import TYPED_OPSET, constant, opset
from edgecnn.quantize.graph.names import Names
from edgecnn.quantize.write.half import FLOAT_ONLY, wide_nodes
from edgecnn.quantize.write.half_values import LARGEST_HALF

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def typed(model: ir.Model, measured: Magnitudes, also: dict[str, str] | None = None) -> tuple[ir.Model, dict[str, str]]:
    """The model with FP16 islands, and why what stayed FP32 did, by node.

    Args:
        model: canonical float graph, with or without Q/DQ; not changed.
        measured: of its tensors, on calibration images.
        also: further nodes that stay FP32, with why.

    Raises:
        EdgeError: the opset is below 19.
    """
    if opset(model) < TYPED_OPSET:
        raise EdgeError(
            f"FP16 scales need opset {TYPED_OPSET}; the graph has {opset(model)} and onnx cannot raise it",
            f"export the model again with opset {TYPED_OPSET}",
        )
    copy = model.clone()
    graph = copy.graph
    declared = {value.name for value in graph.outputs if value.dtype == _FLOAT}
    wide = wide_nodes(graph, measured, also or {})
    names = Names(graph)
    _split(graph, wide, names)
    halves: dict[str, ir.Value] = {}
    casts: dict[tuple[int, ir.DataType], ir.Value] = {}
    for node in list(graph):
        target = _FLOAT if node.name in wide else _HALF
        if node.op_type == "Cast" and target is _HALF and node.attributes["to"].value == int(_FLOAT):
            node.attributes["to"] = ir.AttrInt64("to", int(_HALF))
            node.outputs[0].type = ir.TensorType(_HALF)
            continue
        if node.op_type == "Cast":
            continue
        if target is _HALF and (_has_float_attribute(node) or _has_sequence(node)):
            target = _FLOAT
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (_FLOAT, _HALF) or (node.op_type, index) in FLOAT_ONLY:
                continue
            if value.dtype != target:
                node.replace_input_with(index, _converted(graph, node, value, target, halves, casts, names))
        for output in node.outputs:
            if output.dtype == _FLOAT and target is _HALF:
                output.type = ir.TensorType(_HALF)
    _outputs(graph, declared, names)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
    return copy, {name: why for name, why in wide.items() if why}


def _split(graph: ir.Graph, wide: dict[str, str], names: Names) -> None:
    """A DequantizeLinear that FP32 and FP16 nodes read becomes two: a Cast behind it would part it from its layer."""
    for node in list(graph):
        if node.op_type != "DequantizeLinear" or node.name in wide:
            continue
        output = node.outputs[0]
        uses = [(use[0], use[1]) for use in output.uses() if use[0].name in wide]
        if not uses:
            continue
        twin = ir.node("DequantizeLinear", list(node.inputs), dict(node.attributes))
        twin.name, twin.outputs[0].name = names.free(f"{node.name}.fp32"), names.free(f"{output.name}.fp32")
        twin.outputs[0].shape = output.shape
        twin.outputs[0].type = ir.TensorType(_FLOAT)
        graph.insert_after(node, twin)
        wide[twin.name or ""] = ""
        for reader, index in uses:
            reader.replace_input_with(index, twin.outputs[0])


def _has_float_attribute(node: ir.Node) -> bool:
    """Ops whose output type an attribute fixes as float32."""
    dtype = node.attributes.get("dtype")
    value = node.attributes.get("value")
    if dtype is not None and dtype.value == int(_FLOAT):
        return True
    return node.op_type == "ConstantOfShape" and (value is None or value.value.dtype == _FLOAT)


def _has_sequence(node: ir.Node) -> bool:
    """A sequence's elements keep their type: a Cast takes tensors only."""
    values = (value for value in (*node.inputs, *node.outputs) if value is not None)
    return any(not isinstance(value.type, ir.TensorType | None) for value in values)


def _converted(
    graph: ir.Graph, node: ir.Node, value: ir.Value, target: ir.DataType, halves: dict[str, ir.Value],
    casts: dict[tuple[int, ir.DataType], ir.Value], names: Names,
) -> ir.Value:  # fmt: skip
    array = constant(value)
    if array is not None and target is _HALF and value.name is not None:
        if value.name not in halves:
            name = value.name
            half = ir.tensor(_as_half(array), name=names.free(f"{name}.fp16"))
            made = ir.Value(name=half.name, shape=half.shape, type=ir.TensorType(_HALF), const_value=half)
            graph.register_initializer(made)
            halves[name] = made
        return halves[value.name]
    key = (id(value), target)
    if key not in casts:
        text = "fp16" if target is _HALF else "fp32"
        cast = ir.node("Cast", [value], {"to": int(target)}, name=names.free(f"{value.name}.to_{text}"))
        cast.outputs[0].name = names.free(f"{value.name}.{text}")
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(target), value.shape
        producer = value.producer()
        if producer is None:
            graph.insert_before(next(iter(graph)), cast)
        else:
            graph.insert_after(producer, cast)
        casts[key] = cast.outputs[0]
    return casts[key]


def _as_half(array: np.ndarray) -> np.ndarray:
    """FP16, infinities only where they were (a Clip without a bound)."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return np.where(np.isfinite(array), np.clip(half, -LARGEST_HALF, LARGEST_HALF), half).astype(np.float16)


def _outputs(graph: ir.Graph, declared: set[str | None], names: Names) -> None:
    """Outputs keep name and float32."""
    for position, value in enumerate(list(graph.outputs)):
        if value.dtype != _HALF or value.name not in declared:
            continue
        name = value.name
        value.name = names.free(f"{name}.fp16")
        cast = ir.node("Cast", [value], {"to": int(_FLOAT)}, name=names.free(f"{name}.to_fp32"))
        cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].type = name, value.shape, ir.TensorType(_FLOAT)
        graph.append(cast)
        graph.outputs[position] = cast.outputs[0]
