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

from edgecnn.process import progress
from edgecnn.process.errors import EdgeError

TYPED_OPSET = 19
_LOWEST_WITH_AXIS = 13  # per-channel DequantizeLinear


def at_typed_opset(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model at opset 19, by onnx's own converter; as it is, with a note, where that cannot convert it.

    What opset 19 has not (Gelu, RMSNormalization) or has otherwise (GroupNormalization) is written out first.

    Raises:
        EdgeError: the opset is below 13 and cannot be raised.
    """
    version = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if version == TYPED_OPSET:
        return proto
    try:
        converted = onnx.version_converter.convert_version(_older(_inlined(proto)), TYPED_OPSET)
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


def _older(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Operators of the main graph that opset 19 has not, or has otherwise, written out in what it has."""
    proto = _without_functions(proto)
    if not any(node.op_type in ("Gelu", "GroupNormalization") and _is_onnx(node) for node in proto.graph.node):
        return proto
    known = onnx.shape_inference.infer_shapes(proto).graph
    values = (*known.value_info, *known.input)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    sizes = {tensor.name: tensor.dims[0] for tensor in known.initializer if len(tensor.dims) == 1}
    for value in values:
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 1 and dims[0].dim_value:
            sizes[value.name] = dims[0].dim_value
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    taken = {name for node in proto.graph.node for name in (node.name, *node.input, *node.output)}
    nodes: list[NodeProto] = []
    for number, node in enumerate(proto.graph.node):
        name = node.name or f"{node.op_type.lower()}{number}"
        while any(other.startswith(f"{name}.") for other in taken):
            name += "_"
        taken.add(f"{name}.")
        kind = np.dtype(helper.tensor_dtype_to_np_dtype(kinds.get(node.input[0], 0) or 1)) if node.input else None
        if node.op_type == "Gelu" and _is_onnx(node) and kind is not None:
            nodes.extend(_gelu(node, name, kind))
        elif node.op_type == "GroupNormalization" and _is_onnx(node) and node.input[1] in sizes and kind is not None:
            nodes.extend(_group_norm(node, name, kind, sizes[node.input[1]]))
        else:
            nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _without_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Operators that opset 19 does not know, as the functions that ONNX defines them by."""
    version = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    ops = {node.op_type for node in proto.graph.node if _is_onnx(node)} - {"Gelu"}
    unknown = [
        ("", op) for op in sorted(ops) if not onnx.defs.has(op, TYPED_OPSET, "") and onnx.defs.has(op, version, "")
    ]
    if not unknown:
        return proto
    try:
        return onnx.inliner.inline_selected_functions(proto, unknown, inline_schema_functions=True)
    except TypeError:  # an onnx that does not offer it
        return proto


def _is_onnx(node: NodeProto) -> bool:
    return node.domain in ("", "ai.onnx")


def _group_norm(node: NodeProto, name: str, kind: np.dtype, size: int) -> Iterator[NodeProto]:
    """InstanceNormalization over (N, groups, rest); from opset 21 on scale and shift are one number a channel."""
    numbers = {attribute.name: attribute for attribute in node.attribute}
    groups = numbers["num_groups"].i
    epsilon = numbers["epsilon"].f if "epsilon" in numbers else 1e-5
    x, scale, shift = node.input

    def constant(part: str, array: np.ndarray) -> NodeProto:
        return helper.make_node(
            "Constant", [], [f"{name}.{part}"], f"{name}.{part}", value=numpy_helper.from_array(array)
        )

    def step(op: str, part: str, *inputs: str, **attributes: float) -> NodeProto:
        return helper.make_node(op, list(inputs), [f"{name}.{part}"], f"{name}.{part}", **attributes)

    yield constant("grouped", np.asarray([0, groups, -1], np.int64))
    yield from (step("Reshape", "groups", x, f"{name}.grouped"), step("Shape", "shape", x))
    if size == groups:
        yield step("InstanceNormalization", "scaled", f"{name}.groups", scale, shift, epsilon=epsilon)
    else:
        yield from (constant("ones", np.ones(groups, kind)), constant("zeros", np.zeros(groups, kind)))
        yield from (
            constant("each", np.asarray([0, size, -1], np.int64)),
            constant("column", np.asarray([-1, 1], np.int64)),
        )
        yield step(
            "InstanceNormalization", "normal", f"{name}.groups", f"{name}.ones", f"{name}.zeros", epsilon=epsilon
        )
        yield step("Reshape", "channels", f"{name}.normal", f"{name}.each")
        yield step("Reshape", "factor", scale, f"{name}.column")
        yield step("Reshape", "offset", shift, f"{name}.column")
        yield step("Mul", "times", f"{name}.channels", f"{name}.factor")
        yield step("Add", "scaled", f"{name}.times", f"{name}.offset")
    yield helper.make_node("Reshape", [f"{name}.scaled", f"{name}.shape"], list(node.output), f"{name}.groupnorm")


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
