"""Multiply-accumulates of every operator that has them, quantizable or not, in subgraphs too.

The count of an If is that of its heavier branch; a Loop whose turns nothing tells counts once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from edgecnn.quantize.graph.constants import constant

Shape = tuple[int, ...]
ShapeOf = Callable[[ir.Value | None], Shape]
_CONVOLUTIONS = frozenset({"Conv", "FusedConv", "NhwcConv", "NhwcFusedConv", "DeformConv"})
_TRANSPOSED = frozenset({"ConvTranspose", "ConvTransposeWithDynamicPads"})
_PRODUCTS = frozenset({
    "MatMul", "Gemm", "FusedMatMul", "FusedMatMulActivation", "FusedGemm", "GemmFastGelu", "GemmFloat8",
    "TransposeMatMul", "MatMulNBits", "MatMulFpQ4", "MatMulBnb4", "SparseToDenseMatMul",
})  # fmt: skip
_RECURRENT = frozenset({"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"})


@dataclass(frozen=True)
class Layer:
    """One operator with multiply-accumulates; `outer`: the node of the main graph, which may hold it in a subgraph."""

    name: str
    op: str
    macs: int
    outer: ir.Node

    @property
    def inside(self) -> bool:
        """It stands in a subgraph."""
        return self.op != self.outer.op_type or self.name != self.outer.name


def layers_in(node: ir.Node, shape: ShapeOf) -> list[Layer]:
    """The layers of a node of the main graph: itself, or what its subgraphs hold, as `outer/inner`."""
    own = macs_of(node, shape)
    if own or node.op_type in _CONVOLUTIONS | _TRANSPOSED | _PRODUCTS:
        return [Layer(node.name or "", node.op_type, own, node)]
    return [Layer(f"{node.name}/{name}", op, count, node) for name, op, count in _inner(node, shape)]


def macs_of(node: ir.Node, shape: ShapeOf) -> int:
    """Multiply-accumulates of one run of an operator; 0 of one that has none, or whose shapes are not known."""
    op = node.op_type
    inputs = [shape(value) for value in node.inputs]
    output = shape(node.outputs[0]) if node.outputs else ()
    first, second = (*inputs, (), ())[:2]
    if op in _CONVOLUTIONS:
        return math.prod(output) * math.prod(second[1:])
    if op in _TRANSPOSED:
        return math.prod(first) * math.prod(second[1:])
    if op in _PRODUCTS:
        along = -2 if _number(node, "transA") or _number(node, "transposeA") else -1
        return math.prod(output) * first[along] if len(first) >= -along else 0
    if op in _RECURRENT:  # input (steps, batch, …), weights (directions, gates · hidden, …)
        third = inputs[2] if len(inputs) > 2 else ()
        return math.prod(first[:2]) * (math.prod(second) + math.prod(third)) if len(first) == 3 else 0
    if op == "Einsum":
        return _einsum(node, inputs)
    if op.endswith("Attention"):
        return _attention(node, inputs)
    return 0


def _einsum(node: ir.Node, inputs: list[Shape]) -> int:
    """The product of all letters' sizes, where several inputs meet."""
    equation = node.attributes.get("equation")
    if equation is None or len(inputs) < 2:
        return 0
    terms = str(equation.as_string()).replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, dims in zip(terms, inputs, strict=False):
        before, dots, after = term.partition("...")
        letters = [*before, *(f".{len(dims) - i}" for i in range(len(before), len(dims) - len(after)) if dots), *after]
        for letter, size in zip(letters, dims, strict=False):
            sizes[letter] = max(sizes.get(letter, 1), size)
    return math.prod(sizes.values()) if sizes and all(inputs) else 0


def _attention(node: ir.Node, inputs: list[Shape]) -> int:
    """Scores and weighted values; of onnxruntime's fused form also the projections to query, key and value."""
    first, second, third = (*inputs, (), (), ())[:3]
    if node.op_type in ("Attention", "QAttention") and node.domain == "com.microsoft" and len(first) == 3:
        batch, length, width = first
        made = second[-1] if second else 3 * width
        return batch * length * width * made + 2 * batch * length * length * (made // 3)
    if len(first) < 3:
        return 0
    length = (second or first)[-2]
    if len(first) == len(second) == 4:
        heads, others = first[1], second[1]
    else:
        heads = _number(node, "q_num_heads") or 1
        others = _number(node, "kv_num_heads") or heads
    values = third[-1] * heads // others if len(third) == 3 else (third or first)[-1]
    return math.prod(first[:-1]) * length * (first[-1] + values)


def _inner(node: ir.Node, shape: ShapeOf) -> list[tuple[str, str, int]]:
    """(name, operator, multiply-accumulates) of the layers in a node's subgraphs, over all turns."""
    graphs = [
        attribute.as_graph() for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH
    ]
    found = [_of_graph(graph, node, shape) for graph in graphs]
    if node.op_type == "If":
        found = [max(found, key=lambda one: sum(count for _, _, count in one))] if found else []
    turns = _turns(node, shape)
    return [(name, op, count * turns) for one in found for name, op, count in one]


def _turns(node: ir.Node, shape: ShapeOf) -> int:
    if node.op_type == "Loop":
        told = constant(node.inputs[0])
        carried = len(node.inputs) - 2
        stacked = [shape(value) for value in node.outputs[carried:]]
        return int(told.reshape(-1)[0]) if told is not None else next((one[0] for one in stacked if one), 1)
    if node.op_type == "Scan":
        scanned = int(_number(node, "num_scan_inputs") or 1)
        first = shape(node.inputs[len(node.inputs) - scanned])
        return first[_axis(node, 0)] if first else 1
    return 1


def _of_graph(graph: ir.Graph, node: ir.Node, shape: ShapeOf) -> list[tuple[str, str, int]]:
    if not any(macs_of(one, lambda _: (2, 2, 2)) for one in ir.traversal.RecursiveGraphIterator(graph)):
        return []
    known = _shapes_in(graph, node, shape)

    def inside(value: ir.Value | None) -> Shape:
        if value is None or value.name is None:
            return ()
        return known.get(value.name) or shape(value)

    found: list[tuple[str, str, int]] = []
    for one in graph:
        name = one.name or f"{one.op_type}_{one.outputs[0].name}"
        if own := macs_of(one, inside):
            found.append((name, one.op_type, own))
        found += [(f"{name}/{inner}", op, count) for inner, op, count in _inner(one, inside)]
    return found


def _shapes_in(graph: ir.Graph, node: ir.Node, shape: ShapeOf) -> dict[str, Shape]:
    """Shapes of a subgraph's tensors, inferred from those that come in from outside."""
    proto = ir.serde.serialize_graph(graph)
    del proto.value_info[:]
    given = dict(zip((value.name for value in graph.inputs), _given(node, graph, shape), strict=False))
    for value in proto.input:
        if size := given.get(value.name):
            kind = value.type.tensor_type.elem_type or onnx.TensorProto.FLOAT
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, size))
    own = {value.name for value in graph.inputs} | set(graph.initializers)
    own |= {value.name for one in graph for value in one.outputs}
    outside = {
        value.name: value
        for one in ir.traversal.RecursiveGraphIterator(graph)
        for value in one.inputs
        if value is not None and value.name not in own
    }
    for name, value in outside.items():
        if size := shape(value):
            kind = int(value.dtype) if value.dtype is not None else onnx.TensorProto.FLOAT
            proto.input.append(onnx.helper.make_tensor_value_info(name or "", kind, size))
    version = graph.opset_imports.get("") or (node.graph.opset_imports.get("", 19) if node.graph is not None else 19)
    model = onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", version)])
    seen = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*seen.input, *seen.value_info, *seen.output)
    return {
        value.name: tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }


def _given(node: ir.Node, graph: ir.Graph, shape: ShapeOf) -> list[Shape]:
    """Shapes of a subgraph's inputs, as its node hands them in."""
    if node.op_type == "Loop":
        return [(), (), *(shape(value) for value in node.inputs[2:])]
    if node.op_type == "Scan":
        scanned = int(_number(node, "num_scan_inputs") or 1)
        states = len(node.inputs) - scanned
        slices = []
        for number, value in enumerate(node.inputs[states:]):
            size, axis = shape(value), _axis(node, number)
            slices.append((*size[:axis], *size[axis + 1 :]))
        return [*(shape(value) for value in node.inputs[:states]), *slices]
    return [() for _ in graph.inputs]


def _axis(node: ir.Node, number: int) -> int:
    axes = node.attributes.get("scan_input_axes")
    return max(0, int(axes.value[number])) if axes is not None and number < len(axes.value) else 0


def _number(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return int(attribute.value) if attribute is not None else 0
