"""Is this ONNX file one that can be quantized? Every refusal says what, where and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx

from edgecnn.errors import EdgeError
from edgecnn.quantize.wiring import check_wiring

LOWEST_OPSET, HIGHEST_OPSET = 11, 23
SMALL = 256  # elements: what shape arithmetic may need the values of
_QUANTIZED_OPS = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QLinearAdd",
    "QLinearGlobalAveragePool", "QLinearConcat", "QGemm", "QLinearMul", "QLinearSigmoid", "QLinearLeakyRelu",
    "QLinearAveragePool", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat",
})  # fmt: skip


def check_onnx(path: Path) -> None:
    """Refuse a file that the quantizer cannot take.

    Raises:
        EdgeError: not readable; external data missing; opset of ai.onnx outside 11..23; fails the onnx checker; has a
            cycle or a missing tensor; already quantized; an input of unknown rank; no input or output.
    """
    load_checked(path)


def load_checked(path: Path) -> onnx.ModelProto:
    """`check_onnx`, then the model with its external data in memory."""
    if not path.is_file():
        raise EdgeError(f"`{path}` does not exist", "give the path of an ONNX file")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises its own kinds
        raise EdgeError(f"`{path}` is not a readable ONNX file: {error}", "export the model again") from error
    if not model.graph.node or not model.graph.output:
        raise EdgeError(f"`{path}` holds no graph", "export the model again")
    _external_data(model, path)
    _opset(model, path)
    _not_quantized(model, path)
    _input_ranks(model, path)
    check_wiring(model, path)
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EdgeError(f"`{path}` fails the onnx checker: {reason}", "export the model again") from error
    onnx.load_external_data_for_model(model, str(path.parent))
    return model


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in _nodes(graph):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _nodes(inner)


def _external_data(model: onnx.ModelProto, path: Path) -> None:
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        name = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if not name or not (path.parent / name).is_file():
            raise EdgeError(
                f"`{path}` keeps the weights `{tensor.name}` in the file `{name}`, which is missing",
                f"put `{name}` beside the ONNX file, or export with the weights inside",
            )


def _opset(model: onnx.ModelProto, path: Path) -> None:
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    version = opsets.get("ai.onnx")
    if version is None or not LOWEST_OPSET <= version <= HIGHEST_OPSET:
        raise EdgeError(
            f"`{path}` has opset {version} of ai.onnx; edgecnn takes {LOWEST_OPSET} to {HIGHEST_OPSET}",
            "export with opset 19",
        )


def _not_quantized(model: onnx.ModelProto, path: Path) -> None:
    for node in _nodes(model.graph):
        if node.op_type in _QUANTIZED_OPS:
            raise EdgeError(
                f"`{path}` is already quantized: node `{node.name}` is a {node.op_type}",
                "give the float model that it was made from",
            )


def inferred_values(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph with shapes inferred, its large weights left out: copying them would be most of the time."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    light.metadata_props.extend(model.metadata_props)
    light.graph.name = graph.name
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(light.graph, field).extend(getattr(graph, field))
    given = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= SMALL or tensor.name in given:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return onnx.shape_inference.infer_shapes(light, data_prop=True).graph


def _input_ranks(model: onnx.ModelProto, path: Path) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if not inputs:
        raise EdgeError(f"`{path}` has no input", "export the model again")
    for value in inputs:
        if not value.type.tensor_type.HasField("shape"):
            raise EdgeError(
                f"input `{value.name}` of `{path}` has no rank",
                "export with a shape for every input; a dynamic batch is fine, an unknown number of dimensions is not",
            )
