"""A graph without its weights, and the weights as arrays, which sessions take as they are: copying them through
protobuf would be most of the time of opening a session."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
import onnx.numpy_helper

_SMALL = 1024  # elements: smaller ones stay, shape arithmetic may need them
_KINDS = frozenset({
    onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8, onnx.TensorProto.INT32, onnx.TensorProto.INT64,
})  # fmt: skip


def apart(model: onnx.ModelProto, *, decode: bool) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The model with its large weights declared external, and these by name.

    Args:
        decode: DequantizeLinear of constants is done now instead of in every run: the same float32 numbers.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    given = {value.name for value in model.graph.input}
    arrays: dict[str, np.ndarray] = {}
    nodes = []
    for node in model.graph.node:
        decoded = _decoded(node, weights, given) if decode and node.op_type == "DequantizeLinear" else None
        if decoded is None:
            nodes.append(node)
        else:
            arrays[node.output[0]] = decoded
    read = {*_read(nodes), *(value.name for value in model.graph.output), *given}
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.name = model.graph.name
    light.graph.node.extend(nodes)
    for field in ("input", "output", "value_info", "sparse_initializer"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    for name, tensor in weights.items():
        if name in read:
            if int(np.prod(tensor.dims)) > _SMALL and tensor.data_type in _KINDS and name not in given:
                arrays[name] = onnx.numpy_helper.to_array(tensor)
            else:
                light.graph.initializer.append(tensor)
    for name, array in arrays.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        outside = light.graph.initializer.add(
            name=name, data_type=kind, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL
        )
        outside.external_data.add(key="location", value="in memory")
    return light, arrays


def _decoded(
    node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], given: set[str]
) -> np.ndarray | None:  # fmt: skip
    """What a DequantizeLinear of constants makes; None where its input is computed or it is of another kind."""
    names = [name for name in node.input if name]
    if any(name not in weights or name in given for name in names):
        return None
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    integers, scales, *zeros = (onnx.numpy_helper.to_array(weights[name]) for name in names)
    if scales.dtype != np.float32 or attributes.get("block_size") or (zeros and zeros[0].any()):
        return None
    axis = attributes.get("axis", 1)
    along = [-1 if index == axis % max(1, integers.ndim) else 1 for index in range(integers.ndim)]
    return np.ascontiguousarray(integers.astype(np.float32) * (scales.reshape(along) if scales.size > 1 else scales))


def _read(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Every name that the nodes read, in their subgraphs too."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _read(graph.node)
                yield from (value.name for value in graph.output)
