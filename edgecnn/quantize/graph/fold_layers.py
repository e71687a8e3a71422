"""What belongs to a layer becomes part of it: BatchNormalization, zero padding, the factors and bias of a Gemm."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecnn.process import progress
from edgecnn.quantize.graph.constants import add_initializer, constant
from edgecnn.quantize.graph.names import Names, replace_value

_AXES_AS_INPUT = 18  # the opset since which the reductions take their axes as an input


def fold_layers(graph: ir.Graph) -> None:
    """Fold, in place."""
    _write_out_training(graph)
    _plain_gemms(graph)
    _fold_batch_norms(graph)
    _fold_pads(graph)


def in_training(node: ir.Node) -> bool:
    """A Dropout or BatchNormalization that works as in training, or may, because an input decides."""
    if node.op_type == "BatchNormalization":
        return bool(_number(node, "training_mode", 0))
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    told = constant(mode)
    return mode is not None and (told is None or bool(told.any()))


def _write_out_training(graph: ir.Graph) -> None:
    """BatchNormalization in training mode normalizes by its own batch: means and differences in its place."""
    for norm in list(graph):
        x = norm.inputs[0] if norm.op_type == "BatchNormalization" else None
        if x is None or x.shape is None or not in_training(norm):
            continue
        if any(value.uses() or value.is_graph_output() for value in norm.outputs[1:]):
            continue
        progress.current().note(
            f"BatchNormalization `{norm.name or norm.outputs[0].name}` is in training mode: its answers depend on the "
            "other images of the batch; export the model after model.eval()"
        )
        names, rank = Names(graph), len(x.shape)
        base, kind = norm.name or norm.outputs[0].name, ir.TensorType(x.dtype or ir.DataType.FLOAT)
        made: list[ir.Node] = []

        def step(op: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
            node = names.give(ir.node(op, list(inputs), attributes), f"{base}.{op}")  # noqa: B023  # used in this turn
            node.outputs[0].type = kind  # noqa: B023
            made.append(node)  # noqa: B023
            return node.outputs[0]

        def mean(value: ir.Value) -> ir.Value:
            if graph.opset_imports.get("", 0) < _AXES_AS_INPUT:
                return step("ReduceMean", value, axes=axes.tolist(), keepdims=1)  # noqa: B023
            return step("ReduceMean", value, add_initializer(graph, f"{base}.axes", axes, names), keepdims=1)  # noqa: B023

        axes = np.asarray([axis for axis in range(rank) if axis != 1], np.int64)
        column = add_initializer(graph, f"{base}.column", np.asarray([-1] + [1] * (rank - 2), np.int64), names)
        epsilon = np.asarray(_number(norm, "epsilon", 1e-5), np.float32)
        least = add_initializer(graph, f"{base}.epsilon", epsilon, names)
        centred = step("Sub", x, mean(x))
        variance = mean(step("Mul", centred, centred))
        normal = step("Div", centred, step("Sqrt", step("Add", variance, least)))
        scaled = step("Mul", normal, step("Reshape", norm.inputs[1], column))
        shifted = step("Add", scaled, step("Reshape", norm.inputs[2], column))
        graph.insert_before(norm, made)
        name = norm.outputs[0].name
        replace_value(graph, norm.outputs[0], shifted, names)
        graph.remove(norm, safe=True)
        shifted.name = name


def _plain_gemms(graph: ir.Graph) -> None:
    """A Gemm with constants: alpha and beta in them, and a bias of one number a channel; another bias as an Add."""
    for gemm in list(graph):
        if gemm.op_type != "Gemm" or (weight := constant(gemm.inputs[1])) is None:
            continue
        bias_of = gemm.inputs[2] if len(gemm.inputs) > 2 else None
        bias = constant(bias_of)
        alpha, beta = _number(gemm, "alpha", 1.0), _number(gemm, "beta", 1.0)
        if alpha != 1.0:
            _own(graph, gemm, 1, (weight * weight.dtype.type(alpha)), f"{gemm.inputs[1].name}.scaled")
            gemm.attributes.pop("alpha", None)
        if bias is None or bias_of is None:
            continue  # none, or computed: then beta stays
        gemm.attributes.pop("beta", None)
        bias = bias * bias.dtype.type(beta)
        channels = weight.shape[0] if _number(gemm, "transB", 0) else weight.shape[1]
        if bias.size in (1, channels) and (bias.size == 1 or bias.shape[-1] == channels):
            flat = np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), (channels,)))
            if beta != 1.0 or bias.shape != flat.shape:
                _own(graph, gemm, 2, flat, f"{bias_of.name}.bias")
            continue
        _split_bias(graph, gemm, bias, bias_of)


def _split_bias(graph: ir.Graph, gemm: ir.Node, bias: np.ndarray, bias_of: ir.Value) -> None:
    """A bias that differs between the rows of a batch."""
    names, output = Names(graph), gemm.outputs[0]
    gemm.resize_inputs(2)
    added = add_initializer(graph, f"{bias_of.name}.rows", bias, names)
    add = names.give(ir.node("Add", [output, added]), f"{gemm.name or output.name}.bias")
    add.outputs[0].type, add.outputs[0].shape = output.type, output.shape
    graph.insert_after(gemm, add)
    name = output.name
    ir.convenience.replace_all_uses_with(output, add.outputs[0], replace_graph_outputs=True)
    add.replace_input_with(0, output)
    output.name = names.free(f"{name}.product")
    add.outputs[0].name = name


def _own(graph: ir.Graph, node: ir.Node, index: int, array: np.ndarray, name: str) -> None:
    """Give `node` the constant input `array`: under the same name if it alone uses the initializer."""
    old = node.inputs[index] if index < len(node.inputs) else None
    if old is not None and old.is_initializer() and len(old.uses()) == 1 and old.name is not None:
        old.const_value = ir.tensor(np.asarray(array, order="C"), name=old.name)
        old.shape = ir.Shape(array.shape)
        return
    value = add_initializer(graph, name, array)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _fold_batch_norms(graph: ir.Graph) -> None:
    """BatchNormalization after Conv, ConvTranspose or Gemm becomes part of its weight and bias (Jacob et al. 2018)."""
    for norm in list(graph):
        if norm.op_type != "BatchNormalization" or any(v.uses() or v.is_graph_output() for v in norm.outputs[1:]):
            continue
        if in_training(norm):
            continue
        source = norm.inputs[0]
        layer = source.producer() if source is not None else None
        if layer is None or layer.op_type not in ("Conv", "ConvTranspose", "Gemm"):
            continue
        if len(source.uses()) != 1 or source.is_graph_output():
            continue
        arrays = [constant(value) for value in norm.inputs[1:5]]
        weight = constant(layer.inputs[1])
        bias = constant(layer.inputs[2]) if len(layer.inputs) > 2 and layer.inputs[2] is not None else None
        if weight is None or any(array is None for array in arrays):
            continue
        if len(layer.inputs) > 2 and layer.inputs[2] is not None and bias is None:
            continue
        if layer.op_type == "Gemm" and (_number(layer, "alpha", 1.0) != 1.0 or _number(layer, "beta", 1.0) != 1.0):
            continue
        scale, shift, mean, variance = (np.asarray(array, np.float64) for array in arrays)
        factor = scale / np.sqrt(variance + _number(norm, "epsilon", 1e-5))
        old_bias = np.zeros_like(mean) if bias is None else bias.astype(np.float64)
        _own(graph, layer, 1, _scaled(layer, weight, factor), f"{layer.inputs[1].name}.{norm.name or 'folded'}")
        folded_bias = ((old_bias - mean) * factor + shift).astype(weight.dtype)
        _own(graph, layer, 2, folded_bias, f"{layer.inputs[1].name}.bias")
        name = norm.outputs[0].name
        replace_value(graph, norm.outputs[0], source)
        graph.remove(norm, safe=True)
        source.name = name


def _scaled(layer: ir.Node, weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """The weight with output channel k multiplied by factor[k]."""
    wide = weight.astype(np.float64)
    if layer.op_type == "ConvTranspose":  # (C_in, C_out / groups, …): group g owns a slice of C_in and of the outputs
        groups = int(_number(layer, "group", 1))
        parts = wide.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        shape = (groups, 1, weight.shape[1]) + (1,) * (weight.ndim - 2)
        wide = (parts * factor.reshape(shape)).reshape(weight.shape)
    elif layer.op_type == "Gemm" and not int(_number(layer, "transB", 0)):
        wide = wide * factor[None, :]
    else:
        wide = wide * factor.reshape((-1,) + (1,) * (weight.ndim - 1))
    return wide.astype(weight.dtype)


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def _fold_pads(graph: ir.Graph) -> None:
    """Zero Pad of the spatial axes before a Conv becomes the Conv's own padding."""
    for conv in list(graph):
        if conv.op_type != "Conv" or ("auto_pad" in conv.attributes and conv.attributes["auto_pad"].value != "NOTSET"):
            continue
        pad = conv.inputs[0].producer() if conv.inputs[0] is not None else None
        if pad is None or pad.op_type != "Pad" or len(pad.inputs) > 3:
            continue
        mode = pad.attributes.get("mode")
        pads = constant(pad.inputs[1])
        fill = constant(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] is not None else np.zeros(1)
        if pads is None or fill is None or float(fill.reshape(-1)[0]) != 0.0 or (mode and mode.value != "constant"):
            continue
        before, after = pads[: len(pads) // 2], pads[len(pads) // 2 :]
        if len(before) < 3 or before[:2].any() or after[:2].any() or (pads < 0).any():
            continue
        own = conv.attributes.get("pads")
        spatial = len(before) - 2
        have = np.asarray(own.value if own else [0] * 2 * spatial)
        total = have + np.concatenate([before[2:], after[2:]])
        conv.attributes["pads"] = ir.AttrInt64s("pads", [int(n) for n in total])
        conv.replace_input_with(0, pad.inputs[0])
