"""Seeded mutations of ONNX files: bytes, and single fields of a parsed file."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

SIZES = (-(2**63), -1, 0, 1, 2, 7, 2**16, 2**31, 10**10, 2**63 - 1)
OPS = (
    "Conv", "Gemm", "MatMul", "Relu", "Add", "Concat", "Reshape", "Transpose", "Resize", "Slice", "Gather", "Tile",
    "Expand", "ConstantOfShape", "Range", "Loop", "If", "Scan", "Einsum", "LSTM", "NonZero", "TopK", "Identity",
    "Split", "Cast", "Shape", "Squeeze", "Unsqueeze", "Pad", "MaxPool", "BatchNormalization", "Dropout", "Clip",
    "OneHot", "SequenceEmpty", "SplitToSequence", "Optional", "StringNormalizer", "GroupNormalization", "Attention",
    "NoSuchOp", "",
)  # fmt: skip


def mutated_bytes(data: bytes, seed: int) -> bytes:
    """One to a few changes: bits flipped, a part cut, doubled, zeroed or put elsewhere, the end lost."""
    rng = random.Random(seed)
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        start = rng.randrange(len(content) or 1)
        stop = min(len(content), start + rng.choice((1, 2, 8, 64)))
        match rng.randrange(6):
            case 0:
                content[start:stop] = bytes(rng.randrange(256) for _ in range(stop - start))
            case 1:
                del content[start:stop]
            case 2:
                content[start:start] = content[start:stop]
            case 3:
                content[start:stop] = bytes(stop - start)
            case 4:
                del content[start:]
            case _:
                content[start : start + 1] = bytes([content[start] ^ 1 << rng.randrange(8)]) if content else b""
    return bytes(content)


def mutated_model(model: ModelProto, seed: int) -> ModelProto:
    """One to three changes of fields."""
    rng = random.Random(seed)
    copy = ModelProto()
    copy.CopyFrom(model)
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice(_CHANGES)(copy, rng)
    return copy


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _graph(model: ModelProto, rng: random.Random) -> GraphProto:
    return rng.choice(list(_graphs(model.graph)))


def _node(model: ModelProto, rng: random.Random) -> NodeProto:
    nodes = [node for graph in _graphs(model.graph) for node in graph.node]
    return rng.choice(nodes) if nodes else NodeProto()


def _tensor(model: ModelProto, rng: random.Random) -> TensorProto:
    found = [tensor for graph in _graphs(model.graph) for tensor in graph.initializer]
    found += [a.t for graph in _graphs(model.graph) for node in graph.node for a in node.attribute if a.HasField("t")]
    return rng.choice(found) if found else TensorProto()


def _names(model: ModelProto) -> list[str]:
    graph = model.graph
    found = {name for node in graph.node for name in (*node.input, *node.output)}
    return sorted(found | {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input})


def _dims(model: ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    if tensor.dims and rng.random() < 0.7:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(SIZES)
    else:
        tensor.dims.append(rng.choice(SIZES))


def _values(model: ModelProto, rng: random.Random) -> None:
    """Shapes and axes are values: of an integer tensor one becomes something else."""
    found = [t for graph in _graphs(model.graph) for t in graph.initializer if t.data_type == TensorProto.INT64]
    if not found:
        return
    tensor = rng.choice(found)
    count = len(tensor.raw_data) // 8
    if count:
        at = 8 * rng.randrange(count)
        value = rng.choice(SIZES).to_bytes(8, "little", signed=True)
        tensor.raw_data = tensor.raw_data[:at] + value + tensor.raw_data[at + 8 :]


def _kind(model: ModelProto, rng: random.Random) -> None:
    _tensor(model, rng).data_type = rng.choice((0, 1, 2, 6, 7, 8, 9, 10, 11, 14, 16, 17, 21, 22, 23, 99, -1))


def _raw(model: ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)] + b"xy" * rng.randrange(3)


def _strings(model: ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    tensor.ClearField("raw_data")
    tensor.data_type = TensorProto.STRING
    tensor.string_data.extend([b"a", b"\xff\x1b[2J"])


def _external(model: ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    tensor.data_location = TensorProto.EXTERNAL
    places = ("../../etc/passwd", "/etc/passwd", "/dev/zero", "", ".", "nowhere.bin", "a\0b", "x" * 300, "weights.bin")
    tensor.external_data.add(key="location", value=rng.choice(places))
    tensor.external_data.add(key="offset", value=rng.choice(("0", "-1", "8", "99999999999", "one")))
    tensor.external_data.add(key="length", value=rng.choice(("0", "-1", "8", "99999999999", "inf")))


def _operator(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    node.op_type = rng.choice(OPS)
    if rng.random() < 0.1:
        node.domain = rng.choice(("com.microsoft", "ai.onnx.ml", "x", "ai.onnx"))


def _reading(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([*_names(model), "", "no such tensor"])
    else:
        node.input.append(rng.choice(_names(model)))


def _writing(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.output and rng.random() < 0.8:
        node.output[rng.randrange(len(node.output))] = rng.choice([*_names(model), "", "elsewhere"])
    else:
        del node.output[:]


def _attribute(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    attribute = (
        rng.choice(list(node.attribute)) if node.attribute and rng.random() < 0.8 else node.attribute.add(name="axis")
    )
    attribute.type = rng.choice(list(AttributeProto.AttributeType.values()))
    attribute.i = rng.choice(SIZES)
    attribute.ints.extend(rng.choice(SIZES) for _ in range(rng.randrange(4)))
    attribute.f = rng.choice((float("nan"), 1e38, 0.0))
    attribute.s = b"\xff\0"


def _numbers(model: ModelProto, rng: random.Random) -> None:
    """A number of an attribute, its type kept."""
    found = [
        a for graph in _graphs(model.graph) for node in graph.node for a in node.attribute if a.ints or a.type == 2
    ]
    if not found:
        return
    attribute = rng.choice(found)
    if attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(SIZES)
    else:
        attribute.i = rng.choice(SIZES)


def _opset(model: ModelProto, rng: random.Random) -> None:
    match rng.randrange(4):
        case 0:
            del model.opset_import[:]
        case 1:
            model.opset_import.add(domain=rng.choice(("", "ai.onnx", "x")), version=rng.choice(SIZES))
        case 2 if model.opset_import:
            model.opset_import[0].version = rng.choice((*SIZES, *range(9, 26)))
        case _:
            model.ir_version = rng.choice((0, 1, 3, 7, 99, 2**62))


def _end(model: ModelProto, rng: random.Random) -> None:
    ends = [*_graph(model, rng).input, *_graph(model, rng).output]
    if not ends:
        return
    value = rng.choice(ends)
    dims = value.type.tensor_type.shape.dim
    match rng.randrange(6):
        case 0:
            value.name = rng.choice([*_names(model), "", "new"])
        case 1:
            value.type.tensor_type.elem_type = rng.choice((0, 1, 7, 8, 9, 10, 16, 99))
        case 2:
            value.type.tensor_type.ClearField("shape")
        case 3 if dims:
            rng.choice(dims).dim_value = rng.choice(SIZES)
        case 4:
            value.ClearField("type")
        case _:
            value.type.sequence_type.elem_type.tensor_type.elem_type = 1


def _twice(model: ModelProto, rng: random.Random) -> None:
    graph = _graph(model, rng)
    part = rng.choice((graph.node, graph.initializer, graph.input, graph.output))
    if part:
        part.add().CopyFrom(rng.choice(list(part)))


def _lost(model: ModelProto, rng: random.Random) -> None:
    graph = _graph(model, rng)
    part = rng.choice((graph.node, graph.initializer, graph.input, graph.output))
    if part:
        del part[rng.randrange(len(part))]


def _nested(model: ModelProto, rng: random.Random) -> None:
    """A graph within itself, a few levels deep."""
    node = _node(model, rng)
    inner = GraphProto()
    inner.CopyFrom(model.graph)
    for _ in range(rng.choice((1, 3, 20))):
        outer = GraphProto(name="outer")
        outer.output.extend(inner.output)
        outer.node.add(op_type="If", input=["r"], output=[value.name for value in inner.output])
        for name in ("then_branch", "else_branch"):
            attribute = outer.node[0].attribute.add(name=name, type=AttributeProto.GRAPH)
            if name == "then_branch":
                attribute.g.CopyFrom(inner)
        inner = outer
    node.attribute.add(name="then_branch", type=AttributeProto.GRAPH).g.CopyFrom(inner)


def _function(model: ModelProto, rng: random.Random) -> None:
    """A local function that calls itself, or one that is not there."""
    body = [onnx.helper.make_node("F", ["a"], ["b"], domain="local")]
    if rng.random() < 0.7:
        imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("local", 1)]
        model.functions.append(onnx.helper.make_function("local", "F", ["a"], ["b"], body, imports))
    model.opset_import.add(domain="local", version=1)
    node = _node(model, rng)
    node.op_type, node.domain = "F", "local"


_CHANGES: tuple[Callable[[ModelProto, random.Random], None], ...] = (
    _dims, _values, _kind, _raw, _strings, _external, _operator, _reading, _writing, _attribute, _numbers, _opset, _end,
    _twice, _lost, _nested, _function,
)  # fmt: skip
