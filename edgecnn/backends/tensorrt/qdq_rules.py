"""The rows of the TensorRT 10.3 table about QuantizeLinear and DequantizeLinear: explicit, symmetric INT8 only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from edgecnn.backends.tensorrt.graph import Graph, attribute, label, type_name

Finding = tuple[str, str]
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def is_qdq(node: NodeProto) -> bool:
    """QuantizeLinear or DequantizeLinear."""
    return node.op_type in ("QuantizeLinear", "DequantizeLinear")


def _qdq(graph: Graph) -> Iterator[NodeProto]:
    return (node for node in graph.nodes if is_qdq(node))


def _zero_point(node: NodeProto) -> str | None:
    return node.input[2] if len(node.input) > 2 and node.input[2] else None


def _quantized_type(graph: Graph, node: NodeProto) -> int | None:
    if node.op_type == "DequantizeLinear":
        return graph.types.get(node.input[0])
    if zero := _zero_point(node):
        return graph.types.get(zero)
    # Without a zero point ONNX reads UINT8, unless the output type is written.
    kind: int = attribute(node, "output_dtype", 0) or TensorProto.UINT8
    return kind


def int8_only(graph: Graph) -> Iterator[Finding]:
    """Every quantized tensor is INT8; INT32 is the bias row's."""
    for node in _qdq(graph):
        kind = _quantized_type(graph, node)
        if kind not in (None, TensorProto.INT8, TensorProto.INT32):
            yield label(node), f"{node.op_type} with quantized type {type_name(kind)}"


def bias(graph: Graph) -> Iterator[Finding]:
    """No DequantizeLinear of INT32, which is how onnxruntime's quantizer writes biases."""
    for node in _qdq(graph):
        if _quantized_type(graph, node) == TensorProto.INT32:
            yield label(node), f"{node.op_type} of INT32 tensor `{node.input[0]}`: a quantized bias"


def zero_point(graph: Graph) -> Iterator[Finding]:
    """Zero points, where given, are constants and all zero."""
    for node in _qdq(graph):
        name = _zero_point(node)
        if name is None:
            continue
        value = graph.value(name)
        if value is None:
            yield label(node), f"zero point `{name}` is computed, not constant"
        elif np.any(value):
            yield label(node), f"zero point `{name}` is not zero"


def scale_constant(graph: Graph) -> Iterator[Finding]:
    """Scales are known when the engine is built."""
    for node in _qdq(graph):
        if graph.value(node.input[1]) is None:
            yield label(node), f"scale `{node.input[1]}` is computed, not constant"


def scale_positive(graph: Graph) -> Iterator[Finding]:
    """Scales are finite and positive; a small scale can become zero when it is written as FLOAT16."""
    for node in _qdq(graph):
        scale = graph.value(node.input[1])
        if scale is not None and not (np.all(np.isfinite(scale)) and np.all(scale > 0)):
            yield label(node), f"scale `{node.input[1]}` has the value {float(np.min(scale)):g}"


def scale_type(graph: Graph) -> Iterator[Finding]:
    """A scale is FLOAT or FLOAT16, and in a strongly typed network the type of the tensor that is quantized."""
    for node in _qdq(graph):
        kind = graph.types.get(node.input[1])
        data = graph.types.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if kind is not None and kind not in FLOATS:
            yield label(node), f"scale `{node.input[1]}` is {type_name(kind)}"
        elif kind is not None and data is not None and data != kind:
            yield (
                label(node),
                f"scale `{node.input[1]}` is {type_name(kind)} but `{node.input[0]}` is {type_name(data)}",
            )


def activation_granularity(graph: Graph) -> Iterator[Finding]:
    """A computed tensor has one scale."""
    for node in _qdq(graph):
        scale = graph.value(node.input[1])
        if scale is not None and scale.size > 1 and _weight(graph, node) is None:
            yield label(node), f"activation `{node.input[0]}` has {scale.size} scales"


def weight_axis(graph: Graph) -> Iterator[Finding]:
    """A weight's scales lie along its output channels, one for each."""
    for node in _qdq(graph):
        scale, weight = graph.value(node.input[1]), _weight(graph, node)
        if scale is None or weight is None or scale.size <= 1 or attribute(node, "block_size", 0):
            continue
        axis = attribute(node, "axis", 1) % weight.ndim if weight.ndim else 0
        length = weight.shape[axis] if weight.ndim else 1
        if scale.ndim != 1 or scale.size != length:
            yield label(node), f"weight `{node.input[0]}` has scales of shape {scale.shape} for {length} channels"
        elif any(axis != wanted for wanted in _output_axes(graph, node, weight.ndim)):
            yield label(node), f"weight `{node.input[0]}` is quantized along axis {axis}, not its output channels"


def block(graph: Graph) -> Iterator[Finding]:
    """No block_size."""
    for node in _qdq(graph):
        if size := attribute(node, "block_size", 0):
            yield label(node), f"{node.op_type} with block_size {size}"


def _weight(graph: Graph, node: NodeProto) -> np.ndarray | None:
    """The constant at the start of the chain `constant → [QuantizeLinear →] node`, or None for an activation."""
    value: np.ndarray | None = graph.value(node.input[0])
    producer = graph.producers.get(node.input[0])
    if value is None and producer is not None and producer.op_type == "QuantizeLinear":
        value = graph.value(producer.input[0])
    return value


def _output_axes(graph: Graph, node: NodeProto, rank: int) -> Iterator[int]:
    """The output-channel axis that each layer reading this weight expects."""
    for reader in graph.consumers.get(node.output[0], ()):
        if reader.op_type == "DequantizeLinear":
            yield from _output_axes(graph, reader, rank)
        elif len(reader.input) < 2 or reader.input[1] != node.output[0]:
            continue
        elif reader.op_type == "Conv":
            yield 0
        elif reader.op_type == "ConvTranspose":
            yield 1
        elif reader.op_type == "Gemm":
            yield 0 if attribute(reader, "transB", 0) else 1
        elif reader.op_type == "MatMul":
            yield rank - 1
