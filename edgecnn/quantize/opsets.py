"""Every graph at opset 19: the first whose QuantizeLinear takes FP16, and the last that TensorRT 10.3 reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import NodeProto, helper, numpy_helper

from edgecnn import progress
from edgecnn.errors import EdgeError

TYPED_OPSET = 19
_LOWEST_WITH_AXIS = 13  # per-channel DequantizeLinear


def at_typed_opset(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model at opset 19, by onnx's own converter; as it is, with a note, where that cannot convert it.

    Gelu (opset 20) is written out first, as opset 19 has it not.

    Raises:
        EdgeError: the opset is below 13 and cannot be raised.
    """
    version = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if version == TYPED_OPSET:
        return proto
    try:
        converted = onnx.version_converter.convert_version(_without_gelu(_inlined(proto)), TYPED_OPSET)
        onnx.checker.check_model(converted)
    except Exception as error:  # the converter raises RuntimeError and its own kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if version < _LOWEST_WITH_AXIS:
            raise EdgeError(
                f"`{path}` has opset {version}, and onnx cannot raise it to {TYPED_OPSET}: {reason}",
                "export the model again with opset 19",
            ) from error
        lost = "no typed graph will be made" if version < TYPED_OPSET else "TensorRT 10.3 does not read it"
        progress.current().note(f"opset stays {version}, {lost}: {reason}")
        return proto
    del converted.metadata_props[:]
    converted.metadata_props.extend(proto.metadata_props)
    converted.ir_version = 9  # opset 19 came with IR 9, and TensorRT 10.3 reads no later one
    return converted


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Local functions in place, and no domain that only they came from: the converter knows neither."""
    if not proto.functions:
        return proto
    flat = onnx.inliner.inline_local_functions(proto)
    used = {node.domain for node in flat.graph.node}
    kept = [entry for entry in flat.opset_import if entry.domain in used | {""}]
    del flat.opset_import[:]
    flat.opset_import.extend(kept)
    return flat


def _without_gelu(proto: onnx.ModelProto) -> onnx.ModelProto:
    """x/2 · (1 + erf(x/√2)), or its tanh form, in place of Gelu nodes of the main graph."""
    if not any(node.op_type == "Gelu" and node.domain in ("", "ai.onnx") for node in proto.graph.node):
        return proto
    known = onnx.shape_inference.infer_shapes(proto).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*known.value_info, *known.input)}
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    nodes: list[NodeProto] = []
    for number, node in enumerate(proto.graph.node):
        if node.op_type == "Gelu" and node.domain in ("", "ai.onnx"):
            kind = np.dtype(helper.tensor_dtype_to_np_dtype(kinds.get(node.input[0], onnx.TensorProto.FLOAT)))
            nodes.extend(_gelu(node, node.name or f"gelu{number}", kind))
        else:
            nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _gelu(node: NodeProto, name: str, kind: np.dtype) -> Iterator[NodeProto]:
    x = node.input[0]

    def constant(part: str, number: float) -> NodeProto:
        value = numpy_helper.from_array(np.asarray(number, kind))
        return helper.make_node("Constant", [], [f"{name}.{part}"], f"{name}.{part}", value=value)

    def step(op: str, part: str, *inputs: str) -> NodeProto:
        return helper.make_node(op, list(inputs), [f"{name}.{part}"], f"{name}.{part}")

    tanh = any(a.name == "approximate" and a.s == b"tanh" for a in node.attribute)
    if tanh:  # tanh(√(2/π) (x + 0.044715 x³))
        yield from (constant("cubic", 0.044715), constant("factor", math.sqrt(2.0 / math.pi)))
        yield from (step("Mul", "square", x, x), step("Mul", "cube", f"{name}.square", x))
        yield from (step("Mul", "bent", f"{name}.cube", f"{name}.cubic"), step("Add", "sum", x, f"{name}.bent"))
        yield from (step("Mul", "inner", f"{name}.sum", f"{name}.factor"), step("Tanh", "curve", f"{name}.inner"))
    else:
        yield from (constant("root", math.sqrt(2.0)), step("Div", "inner", x, f"{name}.root"))
        yield step("Erf", "curve", f"{name}.inner")
    yield from (constant("one", 1.0), constant("half", 0.5))
    yield from (step("Add", "shifted", f"{name}.curve", f"{name}.one"), step("Mul", "scaled", x, f"{name}.shifted"))
    yield helper.make_node("Mul", [f"{name}.scaled", f"{name}.half"], list(node.output), f"{name}.gelu")
