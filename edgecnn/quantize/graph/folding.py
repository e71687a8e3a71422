"""Folding of shape arithmetic that is already decided.

Exporters compute paddings and reshapes from `Shape` nodes even where the size is static; with a dynamic batch a general
constant folder gives up on the whole Shape. Here single known entries of a shape are followed through Gather and Slice.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

_LARGEST = 256  # elements; shape arithmetic is small, weights are not folded
_FOLDABLE = frozenset({
    "Add", "Sub", "Mul", "Div", "Floor", "Ceil", "Cast", "Concat", "Unsqueeze", "Squeeze", "Reshape", "Transpose",
    "Gather", "Slice", "ConstantOfShape", "Shape", "Neg", "Max", "Min", "Where", "Equal", "Range", "Mod", "Abs",
    "Expand", "ReduceProd", "Clip",
})  # fmt: skip
_Known = dict[str, list[int | None]]


def fold_shapes(graph: ir.Graph) -> int:
    """Replace, in place, the outputs of small decided nodes by initializers; how many."""
    folded = 0
    partial: _Known = {}
    for node in list(graph):
        if node.op_type not in _FOLDABLE or node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
            continue
        output = node.outputs[0]
        array = _decided(node, partial)
        if array is None or array.size > _LARGEST or output.is_graph_output() or output.name is None:
            continue
        name = output.name
        tensor = ir.tensor(np.asarray(array, order="C"), name=name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        ir.convenience.replace_all_uses_with(output, value)
        graph.remove(node, safe=True)
        graph.register_initializer(value)
        folded += 1
    return folded


def _decided(node: ir.Node, partial: _Known) -> np.ndarray | None:
    source = node.inputs[0] if node.inputs else None
    name = node.outputs[0].name or ""
    if node.op_type == "Shape" and source is not None and source.shape is not None and source.const_value is None:
        dims = [int(dim) if isinstance(dim, int) else None for dim in source.shape]
        start = node.attributes.get("start")
        end = node.attributes.get("end")
        dims = dims[(start.value if start else 0) : (end.value if end else None)]
        partial[name] = dims
        return _whole(dims)
    arrays = [value.const_value.numpy() if value is not None and value.const_value is not None else None
              for value in node.inputs]  # fmt: skip
    if source is not None and source.name in partial and all(array is not None for array in arrays[1:]):
        known = partial[source.name]
        if node.op_type == "Gather" and len(arrays) == 2:
            picked = np.asarray(known, object)[arrays[1]]
            return np.asarray(picked, np.int64) if all(v is not None for v in np.ravel(picked)) else None
        if node.op_type in ("Slice", "Squeeze", "Unsqueeze", "Cast") and all(v is not None for v in known):
            return None
        if node.op_type == "Slice" and len(arrays) >= 3:
            start, stop, *rest = (int(array.reshape(-1)[0]) for array in arrays[1:] if array is not None)
            partial[name] = known[start : stop : rest[1] if len(rest) > 1 else 1]
            return _whole(partial[name])
    if any(array is None and value is not None for array, value in zip(arrays, node.inputs, strict=True)):
        return None
    if any(array is not None and array.size > _LARGEST for array in arrays):
        return None
    return _evaluated(node, [array for array in arrays if array is not None])


def _whole(dims: list[int | None]) -> np.ndarray | None:
    return np.asarray(dims, np.int64) if all(dim is not None for dim in dims) else None


def _made(node: ir.Node, arrays: list[np.ndarray]) -> float:
    """How many elements the operators that make more of them than they read would make."""
    try:
        match node.op_type:
            case "ConstantOfShape":
                return float(np.prod(arrays[0].astype(np.float64)))
            case "Expand":
                return float(np.prod(np.maximum(arrays[1].astype(np.float64), 1))) * arrays[0].size
            case "Range":
                start, stop, step = (float(array.reshape(-1)[0]) for array in arrays[:3])
                return abs((stop - start) / step)
            case _:
                return 0.0
    except (IndexError, ValueError, TypeError, ZeroDivisionError):
        return float("inf")


def _evaluated(node: ir.Node, arrays: list[np.ndarray]) -> np.ndarray | None:
    if not _made(node, arrays) <= _LARGEST * _LARGEST:
        return None
    proto = ir.serde.serialize_node(node)
    given = dict(zip((name for name in proto.input if name), arrays, strict=True))
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
              for name, array in given.items()]  # fmt: skip
    outputs = [onnx.ValueInfoProto(name=proto.output[0])]
    version = node.graph.opset_imports.get("", 19) if isinstance(node.graph, ir.Graph) else 19
    opset = [onnx.helper.make_opsetid("", version)]
    small = onnx.helper.make_model(onnx.helper.make_graph([proto], "node", inputs, outputs), opset_imports=opset)
    try:
        return np.asarray(ReferenceEvaluator(small).run(None, given)[0])
    except Exception:  # noqa: BLE001  # the reference lacks this case; leaving the node is always right
        return None
