"""Insert Q/DQ where placement says, with the scales that ranges chose; checked and byte-deterministic.

Weights are stored as INT8 with a DequantizeLinear: a quarter of the bytes, and both TensorRT's parsers and onnxruntime
read it. Biases stay float for TensorRT, which refuses quantized ones; onnxruntime's fusion needs them as INT32.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from edgecnn.process.errors import EdgeError
from edgecnn.quantize.calibration.ranges import Grid, activation_type
from edgecnn.quantize.graph.canonical import add_initializer, constant, opset
from edgecnn.quantize.graph.ends import Ends
from edgecnn.quantize.graph.names import Names
from edgecnn.quantize.place.placement import Activation, Placement, Weight
from edgecnn.quantize.write.weights import IntegerWeight, integer_bias, integer_weight
from edgecnn.recipe.device import Scheme

METADATA_KEY = "edgecnn.quantize"
Grids = dict[str, Grid]
QUANTIZES, CLIPS = "edgecnn.quantizes", "edgecnn.clips"  # what our nodes say of themselves: the tensor's name
BIAS = 2  # the bias's input index of Conv, ConvTranspose and Gemm


@dataclass(frozen=True)
class Overrides:
    """What a recovery rung chose in place of the float model's own numbers.

    Attributes:
        weights: integers and scales by weight tensor name; others are rounded to nearest with their largest magnitude.
        biases: float32 bias (one number per output channel) by node name, of Conv, ConvTranspose and Gemm nodes, and
            of Adds of a constant to a MatMul.
    """

    weights: dict[str, IntegerWeight] = field(default_factory=dict)
    biases: dict[str, np.ndarray] = field(default_factory=dict)


NOTHING = Overrides()


def rewrite(
    model: ir.Model, placement: Placement, grids: Grids, scheme: Scheme, overrides: Overrides = NOTHING
) -> ir.Model:
    """A new model with Q/DQ; `model` is left as it is.

    Args:
        grids: scale and zero-point by tensor name, for every activation of the placement.
        overrides: weights and biases that replace the model's own.
    """
    copy = model.clone()
    graph = copy.graph
    names = Names(graph)
    nodes = {node.name: node for node in graph}
    for name, bias in overrides.biases.items():
        _set_bias(graph, nodes[name], bias, names)
    for activation in placement.activations:
        _insert(graph, activation, nodes, grids[activation.tensor], scheme, names)
    originals: dict[tuple[str, int], tuple[ir.Value, IntegerWeight]] = {}
    for weight in placement.weights:
        _insert_weight(graph, weight, nodes, grids, scheme, originals, placement, overrides, names)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
    return copy


def _insert(
    graph: ir.Graph, activation: Activation, nodes: dict[str | None, ir.Node], grid: Grid, scheme: Scheme, names: Names
) -> None:
    value = next(v for v in _values(graph, activation, nodes) if v.name == activation.tensor)
    kind = activation_type(scheme)
    name = activation.tensor
    scale = add_initializer(graph, f"{name}_scale", np.asarray(grid.scale, np.float32), names)
    zero = add_initializer(graph, f"{name}_zero_point", np.asarray(grid.zero_point, kind), names)
    inside = _clipped(graph, value, grid, kind, names)
    quantize = ir.node("QuantizeLinear", [inside[-1].outputs[0] if inside else value, scale, zero],
                       name=names.free(f"{name}_QuantizeLinear"))  # fmt: skip
    dequantize = ir.node(
        "DequantizeLinear", [quantize.outputs[0], scale, zero], name=names.free(f"{name}_DequantizeLinear")
    )  # fmt: skip
    quantize.meta[QUANTIZES] = name
    quantize.outputs[0].name = names.free(f"{name}_quantized")
    dequantize.outputs[0].name = names.free(f"{name}_dequantized")
    quantize.outputs[0].shape = dequantize.outputs[0].shape = value.shape
    quantize.outputs[0].type = ir.TensorType(ir.DataType.INT8 if kind is np.int8 else ir.DataType.UINT8)
    dequantize.outputs[0].type = value.type
    producer = value.producer()
    if producer is None:
        first = next(iter(graph))
        graph.insert_before(first, [*inside, quantize, dequantize])
    else:
        graph.insert_after(producer, [*inside, quantize, dequantize])
    for edge in activation.edges:
        nodes[edge.node].replace_input_with(edge.index, dequantize.outputs[0])
    if value.is_graph_output() and not activation.edges:
        _as_output(graph, value, dequantize.outputs[0], names)


def _clipped(graph: ir.Graph, value: ir.Value, grid: Grid, kind: type, names: Names) -> list[ir.Node]:
    """With fewer than 8 bits QuantizeLinear's own saturation is too late: a Clip to the grid's ends before it."""
    if (grid.lowest, grid.highest) == (np.iinfo(kind).min, np.iinfo(kind).max):
        return []
    ends = [
        add_initializer(
            graph, f"{value.name}_{end}", np.asarray((step - grid.zero_point) * grid.scale, np.float32), names
        )
        for end, step in (("lowest", grid.lowest), ("highest", grid.highest))
    ]
    clip = ir.node("Clip", [value, *ends], name=names.free(f"{value.name}_Clip"))
    clip.meta[CLIPS] = value.name
    clip.outputs[0].name = names.free(f"{value.name}_clipped")
    clip.outputs[0].shape, clip.outputs[0].type = value.shape, value.type
    return [clip]


def _values(graph: ir.Graph, activation: Activation, nodes: dict[str | None, ir.Node]) -> list[ir.Value]:
    if activation.edges:
        edge = activation.edges[0]
        return [nodes[edge.node].inputs[edge.index]]
    return list(graph.outputs)


def _as_output(graph: ir.Graph, inner: ir.Value, outer: ir.Value, names: Names) -> None:
    """The graph's output keeps its name but reads the dequantized value."""
    name = inner.name
    position = next(index for index, value in enumerate(graph.outputs) if value is inner)
    inner.name = names.free(f"{name}_float")
    outer.name = name
    graph.outputs[position] = outer


def _insert_weight(
    graph: ir.Graph, weight: Weight, nodes: dict[str | None, ir.Node], grids: Grids, scheme: Scheme,
    made: dict[tuple[str, int], tuple[ir.Value, IntegerWeight]], placement: Placement, overrides: Overrides,
    names: Names,
) -> None:  # fmt: skip
    node = nodes[weight.node]
    array = constant(node.inputs[weight.index])
    assert array is not None
    bias_index = BIAS if weight.node in overrides.biases else weight.bias
    bias = constant(node.inputs[bias_index]) if bias_index is not None else None
    input_scale = grids[_input_of(weight, placement)].scale
    key = (weight.tensor, weight.axis)
    if key not in made or scheme.bias == "int32":
        integer = overrides.weights.get(weight.tensor)
        if integer is None:
            integer = integer_weight(weight.tensor, array, weight.axis, scheme, bias, input_scale)
        values = add_initializer(graph, f"{weight.tensor}_quantized", integer.values, names)
        scales = add_initializer(graph, f"{weight.tensor}_scale", integer.scales, names)
        zeros = add_initializer(graph, f"{weight.tensor}_zero_point", np.zeros(integer.scales.shape, np.int8), names)
        output = _dequantized(graph, node, [values, scales, zeros], weight.axis, names)
        output.shape = ir.Shape(array.shape)
        made[key] = output, integer
    output, integer = made[key]
    node.replace_input_with(weight.index, output)
    if scheme.bias == "int32" and bias is not None and bias_index is not None:
        name = node.inputs[bias_index].name
        steps, scales_of_bias = integer_bias(bias, input_scale, integer.scales)
        parts = [
            add_initializer(graph, f"{name}_quantized", steps, names),
            add_initializer(graph, f"{name}_scale", scales_of_bias, names),
            add_initializer(graph, f"{name}_zero_point", np.zeros(scales_of_bias.shape, np.int32), names),
        ]
        node.replace_input_with(bias_index, _dequantized(graph, node, parts, 0, names))


def _set_bias(graph: ir.Graph, node: ir.Node, bias: np.ndarray, names: Names) -> None:
    value = add_initializer(graph, f"{node.name}_bias", bias.astype(np.float32), names)
    if node.op_type == "Add":  # a MatMul's
        node.replace_input_with(next(i for i, v in enumerate(node.inputs) if constant(v) is not None), value)
    elif len(node.inputs) > BIAS:
        node.replace_input_with(BIAS, value)
    else:
        node.resize_inputs(BIAS + 1)
        node.replace_input_with(BIAS, value)


def _input_of(weight: Weight, placement: Placement) -> str:
    for activation in placement.activations:
        if any(edge.node == weight.node and edge.index == 0 for edge in activation.edges):
            return activation.tensor
    raise AssertionError(f"placement gives {weight.node} an INT8 weight but no INT8 input")


def _dequantized(graph: ir.Graph, before: ir.Node, parts: list[ir.Value], axis: int, names: Names) -> ir.Value:
    node = ir.node("DequantizeLinear", parts, {"axis": axis}, name=names.free(f"{parts[0].name}_DequantizeLinear"))
    node.outputs[0].name = names.free(f"{parts[0].name}_dequantized")
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(before, node)
    return node.outputs[0]


def serialized(model: ir.Model, metadata: str | None = None, ends: Ends | None = None) -> bytes:
    """The model as bytes: IR version lowered to what its opset needs, metadata set, checked, shapes inferred strictly.

    Args:
        ends: the inputs and outputs that it must have, as the user's file declares them.

    Raises:
        InternalError: it has others.
        EdgeError: onnx refuses the graph (a fault of the rewrite or of the model; the node is in the message).
    """
    if metadata is not None:
        model.metadata_props[METADATA_KEY] = metadata
    proto = ir.serde.serialize_model(model)
    if opset(model) <= 19:
        proto.ir_version = min(proto.ir_version, 9)  # what TensorRT 10.3 reads; opset 19 needs no more
    proto.producer_name, proto.producer_version, proto.doc_string = "edgecnn", "", ""
    for node in proto.graph.node:
        del node.metadata_props[:]
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    metadata_props = sorted((prop.key, prop.value) for prop in proto.metadata_props)
    del proto.metadata_props[:]
    for key, text in metadata_props:
        proto.metadata_props.add(key=key, value=text)
    try:
        onnx.checker.check_model(proto)
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        hint = "keep that node float: `quantize.keep_float`"
        raise EdgeError(f"onnx refuses the quantized graph: {lines[0] if lines else error}", hint) from error
    if ends is not None:
        ends.declare(inferred)
    return bytes(inferred.SerializeToString(deterministic=True))
