"""Float ONNX → the canonical float graph that every later step reads.

Constants lifted to initializers, shape arithmetic that is already decided folded away, Identity and Dropout dropped,
BatchNormalization folded into the layer before it, zero padding folded into its Conv, every node named, opset 19
where onnx can convert to it, shapes inferred. Weight names stay as they were: those of the torch modules.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from edgecnn.onnx_file.check import SMALL, inferred_values, load_checked
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError, InternalError
from edgecnn.quantize.graph.branches import take_branches
from edgecnn.quantize.graph.constants import add_initializer, constant
from edgecnn.quantize.graph.fold_layers import fold_layers, in_training
from edgecnn.quantize.graph.fold_weights import fold_weights
from edgecnn.quantize.graph.folding import fold_shapes
from edgecnn.quantize.graph.names import Names, replace_value
from edgecnn.quantize.graph.opsets import TYPED_OPSET, at_typed_opset
from edgecnn.quantize.graph.sessions import complete_types, open_session
from edgecnn.quantize.graph.widen import widen

__all__ = ["TYPED_OPSET", "add_initializer", "canonical", "constant", "opset", "runnable"]


def canonical(path: Path) -> ir.Model:
    """Read, check and canonicalize an ONNX file.

    Raises:
        EdgeError: see `check_onnx`; or the opset is below 13 and onnx cannot raise it; or onnxruntime refuses the file.
        InternalError: onnxruntime takes the file, and edgecnn does not.
    """
    loaded = load_checked(path)
    try:
        return _canonical(loaded, path)
    except (EdgeError, MemoryError, RecursionError):
        raise
    except Exception as error:  # the passes trust a graph that onnx's checker let through: whose fault is it?
        open_session(runnable(path))
        raise InternalError(f"edgecnn cannot bring `{path.name}` into its own form: {error}") from error


def _canonical(loaded: onnx.ModelProto, path: Path) -> ir.Model:
    proto = at_typed_opset(_without_bfloat(loaded) or loaded, path)
    del proto.graph.value_info[:]  # inferred again below; stale ones would contradict folded nodes
    model: ir.Model = ir.serde.deserialize_model(proto)
    passes.InlinePass()(model)
    _own_outputs(model.graph)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.RemoveInitializersFromInputsPass()(model)
    _drop_copies(model.graph)
    _write_axes(model.graph)
    _infer(model)
    if widen(model):
        _infer(model)
    while fold_shapes(model.graph) + take_branches(model):  # a folded padding decides the shapes after it
        _infer(model)
    if fold_weights(model):
        passes.RemoveUnusedNodesPass()(model)
        _infer(model)
    fold_layers(model.graph)
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
    complete_types(model)
    for value in model.graph.initializers.values():
        if value.const_value is not None:  # arrays of our own: protobuf's bytes are copied at every look
            value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
    for node in model.graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            progress.current().note(f"{node.op_type} `{node.name}` holds a subgraph: its contents stay float")
    return model


def _write_axes(graph: ir.Graph) -> None:
    """A Slice that leaves out its axes means the first ones; TensorRT's parser wants them written."""
    for node in graph:
        if node.op_type != "Slice" or (len(node.inputs) > 3 and node.inputs[3] is not None):
            continue
        starts = constant(node.inputs[1])
        if starts is not None and len(node.inputs) > 2:
            axes = add_initializer(graph, f"{node.name}.axes", np.arange(starts.size, dtype=np.int64), Names(graph))
            node.resize_inputs(max(4, len(node.inputs)))
            node.replace_input_with(3, axes)


def runnable(path: Path) -> Path | onnx.ModelProto:
    """The file as onnxruntime's CPU can run it: itself, or a BF16 file in FP32."""
    proto = onnx.load(str(path), load_external_data=False)
    return _without_bfloat(onnx.load(str(path))) or path if _has_bfloat(proto) else path


def _has_bfloat(proto: onnx.ModelProto) -> bool:
    kinds = {tensor.data_type for tensor in proto.graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)}
    kinds |= {a.t.data_type for node in proto.graph.node if node.op_type == "Constant" for a in node.attribute}
    return onnx.TensorProto.BFLOAT16 in kinds


def _without_bfloat(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """A BF16 model in FP32, None of another: onnx's converter knows no older operators that take BF16."""
    if not _has_bfloat(proto):
        return None
    model: ir.Model = ir.serde.deserialize_model(proto)
    passes.InlinePass()(model)
    _infer(model)
    widen(model)
    return ir.serde.serialize_model(model)


def opset(model: ir.Model) -> int:
    """The model's opset of ai.onnx."""
    return int(model.opset_imports.get("", 0))


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


def _own_outputs(graph: ir.Graph) -> None:
    """An output that is a constant becomes a copy of it: a weight may change its form or go."""
    for position, value in enumerate(list(graph.outputs)):
        producer = value.producer()
        weight = value.is_initializer() if producer is None else producer.op_type == "Constant"
        if not weight or value.name is None:
            continue
        names = Names(graph)
        name, value.name = value.name, names.free(f"{value.name}.value")
        copy = names.give(ir.node("Identity", [value]), f"{name}.copy")
        output = copy.outputs[0]
        output.name, output.type, output.shape = name, value.type, value.shape
        graph.append(copy)
        graph.outputs[position] = output


def _drop_copies(graph: ir.Graph) -> None:
    """Identity, and Dropout outside training, do nothing; what is in subgraphs stays, their outputs need it."""
    for node in list(graph):
        if node.domain not in ("", "ai.onnx") or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
            continue
        source = node.inputs[0] if node.inputs else None
        if source is None or not (node.op_type == "Identity" or (node.op_type == "Dropout" and not in_training(node))):
            continue
        output = node.outputs[0]
        if output.is_graph_output() and (source.producer() is None or source.is_graph_output()):
            if node.op_type == "Dropout":
                _replace(graph, node, ir.node("Identity", [source], name=node.name))
            continue
        replace_value(graph, output, source)
        graph.remove(node, safe=True)


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Put `new` where `old` was; its output takes the old one's name, type and uses."""
    name, shape, kind = old.outputs[0].name, old.outputs[0].shape, old.outputs[0].type
    graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(old.outputs[0], new.outputs[0], replace_graph_outputs=True)
    graph.remove(old, safe=True)
    new.outputs[0].name, new.outputs[0].shape, new.outputs[0].type = name, shape, kind


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
