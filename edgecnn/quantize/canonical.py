"""Float ONNX → the canonical float graph that every later step reads.

Constants lifted to initializers, shape arithmetic that is already decided folded away, Identity and Dropout dropped,
BatchNormalization folded into the layer before it, zero padding folded into its Conv, every node named, opset 19
where onnx can convert to it, shapes inferred. Weight names stay as they were: `names.json` ties them to torch modules.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from edgecnn import progress
from edgecnn.quantize.branches import take_branches
from edgecnn.quantize.check import SMALL, inferred_values, load_checked
from edgecnn.quantize.fold_weights import fold_weights
from edgecnn.quantize.folding import fold_shapes
from edgecnn.quantize.opsets import TYPED_OPSET, at_typed_opset
from edgecnn.quantize.widen import widen

__all__ = ["TYPED_OPSET", "add_initializer", "canonical", "constant", "opset"]


def canonical(path: Path) -> ir.Model:
    """Read, check and canonicalize an ONNX file.

    Raises:
        EdgeError: see `check_onnx`; or the opset is below 13 and onnx cannot raise it.
    """
    proto = at_typed_opset(load_checked(path), path)
    del proto.graph.value_info[:]  # inferred again below; stale ones would contradict folded nodes
    model: ir.Model = ir.serde.deserialize_model(proto)
    passes.InlinePass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.RemoveInitializersFromInputsPass()(model)
    _drop_dropout(model.graph)
    passes.IdentityEliminationPass()(model)
    _infer(model)
    if widen(model):
        _infer(model)
    while fold_shapes(model.graph) + take_branches(model):  # a folded padding decides the shapes after it
        _infer(model)
    if fold_weights(model):
        passes.RemoveUnusedNodesPass()(model)
        _infer(model)
    _fold_batch_norms(model.graph)
    _fold_pads(model.graph)
    _cast_first(model.graph)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.DeduplicateInitializersPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.TopologicalSortPass()(model)
    _name_nodes(model.graph)
    metadata = dict(model.metadata_props)
    passes.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.update(metadata)  # the model's own stay: `edgecnn.io` is among them
    _infer(model)
    for value in model.graph.initializers.values():
        if value.const_value is not None:  # arrays of our own: protobuf's bytes are copied at every look
            value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
    for node in model.graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            progress.current().note(f"{node.op_type} `{node.name}` holds a subgraph: what is in it stays float")
    return model


def opset(model: ir.Model) -> int:
    """The model's opset of ai.onnx."""
    return int(model.opset_imports.get("", 0))


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer, or None when the value is not one."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return np.asarray(value.const_value.numpy())


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Register a new initializer; a taken name gets a number."""
    unique, number = name, 1
    while unique in graph.initializers:
        unique, number = f"{name}.{number}", number + 1
    tensor = ir.tensor(np.asarray(array, order="C"), name=unique)
    value = ir.Value(name=unique, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _infer(model: ir.Model) -> None:
    """Give every tensor of the main graph the type and shape that onnx infers, in place."""
    light = model.clone()
    for name, value in list(light.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.size > SMALL and not value.is_graph_input():
            # As an input without values: onnx would copy the weights several times.
            value.const_value = None
            del light.graph.initializers[name]
            light.graph.inputs.append(value)
    proto = ir.serde.serialize_model(light)
    del proto.graph.value_info[:]
    seen = inferred_values(proto)
    found = {value.name: value for value in (*seen.value_info, *seen.output)}
    for node in model.graph:
        for value in node.outputs:
            told = found.get(value.name)
            value.shape = ir.serde.deserialize_type_proto_for_shape(told.type) if told is not None else None
            if told is not None and (kind := ir.serde.deserialize_type_proto_for_type(told.type)) is not None:
                value.type = kind


def _drop_dropout(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type == "Dropout" and not node.outputs[1:]:
            node_input = node.inputs[0]
            identity = ir.node("Identity", [node_input], name=node.name)
            _replace(graph, node, identity)


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Put `new` where `old` was; its output takes the old one's name, type and uses."""
    name, shape, kind = old.outputs[0].name, old.outputs[0].shape, old.outputs[0].type
    graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(old.outputs[0], new.outputs[0], replace_graph_outputs=True)
    graph.remove(old, safe=True)
    new.outputs[0].name, new.outputs[0].shape, new.outputs[0].type = name, shape, kind


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
        if norm.op_type != "BatchNormalization" or any(output.uses() for output in norm.outputs[1:]):
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
        ir.convenience.replace_all_uses_with(norm.outputs[0], source, replace_graph_outputs=True)
        name = norm.outputs[0].name
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


def _cast_first(graph: ir.Graph) -> None:
    """Transpose of uint8 pixels then Cast → Cast then Transpose: TensorRT takes UINT8 at a Cast only."""
    for cast in list(graph):
        move = cast.inputs[0].producer() if cast.op_type == "Cast" and cast.inputs[0] is not None else None
        if move is None or move.op_type != "Transpose" or len(move.outputs[0].uses()) != 1:
            continue
        if move.outputs[0].is_graph_output() or move.inputs[0].dtype != ir.DataType.UINT8:
            continue
        pixels, kind = move.inputs[0], cast.outputs[0].type
        cast.replace_input_with(0, pixels)
        ir.convenience.replace_all_uses_with(cast.outputs[0], move.outputs[0], replace_graph_outputs=True)
        move.replace_input_with(0, cast.outputs[0])
        moved, casted = move.outputs[0], cast.outputs[0]
        moved.type, moved.shape, casted.shape = kind, None, None
        graph.remove(move)
        graph.insert_after(cast, move)


def _name_nodes(graph: ir.Graph) -> None:
    """Every node gets a unique name; those that have one keep it."""
    taken = {node.name for node in graph if node.name}
    seen: set[str] = set()
    for node in graph:
        name = node.name or f"{node.op_type}_{node.outputs[0].name}"
        number = 1
        while name in seen or (not node.name and name in taken):
            name, number = f"{node.name or node.op_type}_{number}", number + 1
        node.name = name
        seen.add(name)
