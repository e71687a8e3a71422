"""Is this ONNX file one that can be quantized? Every refusal says what, where and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.numpy_helper

from edgecnn.onnx_file.stored import check_sizes, check_tensors, check_windows
from edgecnn.onnx_file.wiring import check_wiring
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.io_contract import fed_inputs

LOWEST_OPSET, HIGHEST_OPSET = 11, 23
MOST_TURNS = 10_000  # of a Loop
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


def check_readable(path: Path) -> None:
    """Refuse a file that is damaged or hostile; it may be quantized, and of any opset.

    Raises:
        EdgeError: not readable; its tensors or its wiring are not what they say; no input of a known rank.
    """
    model = _read(path)
    _ends(model, path)
    check_wiring(model, path)
    _turns(model, path)
    check_sizes(_inferred(model, path), path)


def _read(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise EdgeError(f"`{path}` does not exist", "give the path of an ONNX file")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises its own kinds
        raise EdgeError(f"`{path}` is not a readable ONNX file: {error}", "export the model again") from error
    if not model.graph.node or not model.graph.output:
        raise EdgeError(f"`{path}` holds no graph", "export the model again")
    _free_sizes(model)
    check_tensors(model, path)
    check_windows(_nodes(model), path)
    return model


def _free_sizes(model: onnx.ModelProto) -> None:
    """A size of -1 is how some exporters write a free one."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value == -1:
                dim.ClearField("dim_value")


def _inferred(model: onnx.ModelProto, path: Path) -> onnx.GraphProto:
    try:
        return inferred_values(model, declared=False)
    except Exception as error:
        raise EdgeError(f"shapes of `{path}` cannot be inferred: {_reason(error)}", "export the model again") from error


def _reason(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def load_checked(path: Path) -> onnx.ModelProto:
    """`check_onnx`, then the model with its external data in memory."""
    model = _read(path)
    _opset(model, path)
    _not_quantized(model, path)
    _ends(model, path)
    check_wiring(model, path)
    _turns(model, path)
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        raise EdgeError(f"`{path}` fails the onnx checker: {_reason(error)}", "export the model again") from error
    onnx.load_external_data_for_model(model, str(path.parent))
    inferred = _inferred(model, path)
    check_sizes(inferred, path)
    _declared(model, inferred, path)
    return model


def _declared(model: onnx.ModelProto, inferred: onnx.GraphProto, path: Path) -> None:
    """The outputs have the shapes that the file declares."""
    for told, found in zip(model.graph.output, inferred.output, strict=True):
        kinds = told.type.tensor_type, found.type.tensor_type
        if not all(kind.HasField("shape") for kind in kinds):
            continue
        wants, has = ([dim.dim_value for dim in kind.shape.dim] for kind in kinds)
        if len(wants) != len(has) or any(a > 0 and b > 0 and a != b for a, b in zip(wants, has, strict=True)):
            raise EdgeError(
                f"output `{told.name}` of `{path}` is declared as {_sizes(wants)}; the graph computes {_sizes(has)}",
                "declare its real shape: export again, or clear it and run onnx.shape_inference.infer_shapes",
            )


def _sizes(dims: list[int]) -> str:
    return " x ".join(str(dim) if dim > 0 else "?" for dim in dims) or "one number"


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of subgraphs and local functions too."""
    for part in (model.graph, *model.functions):
        yield from _nodes_in(part)


def _nodes_in(part: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    for node in part.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _nodes_in(inner)


def _opset(model: onnx.ModelProto, path: Path) -> None:
    told = {(entry.domain or "ai.onnx", entry.version) for entry in model.opset_import}
    domains = [domain for domain, _ in told]
    if twice := next((name for name in domains if domains.count(name) > 1), None):
        raise EdgeError(f"`{path}` gives two opsets of {twice}", "export the model again")
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    version = opsets.get("ai.onnx")
    if version is None or not LOWEST_OPSET <= version <= HIGHEST_OPSET:
        raise EdgeError(
            f"`{path}` has opset {version} of ai.onnx; edgecnn takes {LOWEST_OPSET} to {HIGHEST_OPSET}",
            "export with opset 19",
        )


def _not_quantized(model: onnx.ModelProto, path: Path) -> None:
    for node in _nodes(model):
        if node.op_type in _QUANTIZED_OPS:
            raise EdgeError(
                f"`{path}` is already quantized: node `{node.name}` is a {node.op_type}",
                "give the float model that it was made from",
            )


def inferred_values(model: onnx.ModelProto, *, declared: bool = True) -> onnx.GraphProto:
    """The graph with shapes inferred, its large weights left out: copying them would be most of the time.

    Args:
        declared: what the file says of its tensors is believed; False: only of its inputs.
    """
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    light.metadata_props.extend(model.metadata_props)
    light.graph.name = graph.name
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(light.graph, field).extend(getattr(graph, field))
    if not declared:
        del light.graph.value_info[:]
        for value in light.graph.output:
            value.type.tensor_type.ClearField("shape")
    given = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= SMALL or tensor.name in given:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return onnx.shape_inference.infer_shapes(light, data_prop=True).graph


def _turns(model: onnx.ModelProto, path: Path) -> None:
    """A Loop ends while somebody waits for it."""
    nodes = list(_nodes(model))
    loops = [node for node in nodes if node.op_type == "Loop" and node.input]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    turns: dict[str, int] = {}
    for node in nodes if loops else []:
        for attribute in node.attribute if node.op_type == "Constant" and node.output else []:
            match attribute.name:
                case "value":
                    tensors[node.output[0]] = attribute.t
                case "value_int":
                    turns[node.output[0]] = attribute.i
                case "value_ints" if len(attribute.ints) == 1:
                    turns[node.output[0]] = attribute.ints[0]
                case _:
                    pass
    for loop in loops:
        count = turns.get(loop.input[0]) if loop.input[0] else math.inf
        tensor = tensors.get(loop.input[0])
        if tensor is not None and tensor.data_type == onnx.TensorProto.INT64 and math.prod(tensor.dims) == 1:
            count = int(onnx.numpy_helper.to_array(tensor, str(path.parent)).reshape(-1)[0])
        if count is not None and count > MOST_TURNS and _runs_on(loop):
            told = f"{count:,} times, more than {MOST_TURNS:,}" if loop.input[0] else "without end"
            raise EdgeError(f"Loop `{loop.name}` of `{path}` runs {told}", "export the model without that loop")


def _runs_on(loop: onnx.NodeProto) -> bool:
    """Its body computes no condition to end by; one that does may be given any number of turns, as `while` is."""
    body = next((attribute.g for attribute in loop.attribute if attribute.name == "body"), None)
    if body is None or len(body.input) < 2 or not body.output:
        return False  # left to onnx's checker
    makers = {name: node for node in body.node for name in node.output}
    name = body.output[0].name
    for _ in body.node:
        if name in makers and makers[name].op_type in ("Identity", "Cast") and makers[name].input:
            name = makers[name].input[0]
    return name not in makers or makers[name].op_type == "Constant"


def _ends(model: onnx.ModelProto, path: Path) -> None:
    inputs = fed_inputs(model.graph)
    if not inputs:
        raise EdgeError(f"`{path}` has no input", "export the model again")
    for kind, values in (("input", inputs), ("output", list(model.graph.output))):
        names = [value.name for value in values]
        for value in values:
            if not value.name or names.count(value.name) > 1:
                raise EdgeError(f"`{path}` has {kind}s without a name of their own: {names}", "export the model again")
            if value.type.WhichOneof("value") not in (None, "tensor_type"):
                raise EdgeError(
                    f"{kind} `{value.name}` of `{path}` is not a tensor", "export the model with tensors at its ends"
                )
    for value in inputs:
        if not value.type.tensor_type.HasField("shape"):
            raise EdgeError(
                f"input `{value.name}` of `{path}` has no rank",
                "export with a shape for every input; a dynamic batch is fine, an unknown number of dimensions is not",
            )
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value <= 0:
                raise EdgeError(
                    f"input `{value.name}` of `{path}` has a dimension of {dim.dim_value}",
                    "export it with its real size, or as a named dynamic dimension",
                )
