"""Non-maximum suppression as the last nodes of a detector's graph (`export.nms`), after all else is decided.

Quantizer, judge and FP16 typing work on the graph that ends in boxes and scores; here a tail goes behind it that
answers the detections themselves, in the four outputs of NVIDIA's plugin, whichever of the two tails it is:

    num_detections (N, 1) int32 · detection_boxes (N, M, 4) float32, x1 y1 x2 y2 in pixels of the model's input ·
    detection_scores (N, M) float32 · detection_classes (N, M) int32; best first, rows past num_detections mean nothing

`onnx` is made of NonMaxSuppression and TopK (ONNX opset 13 and up) and gives what `tasks.detect.detect` gives, up to
`PRE_NMS` candidates of an image: suppression within each class, then the best M of all classes (OpenVINO orders equal
scores otherwise). `tensorrt` is one node, the plugin EfficientNMS_TRT, version 1 (NVIDIA/TensorRT
plugin/efficientNMSPlugin/README.md): of each image it looks at the 4,096 best candidates only, and an engine alone can
run it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgecnn.process.errors import EdgeError
from edgecnn.quantize.graph.ends import Ends
from edgecnn.quantize.graph.names import Names
from edgecnn.quantize.write.rewrite import serialized
from edgecnn.recipe.io_contract import KEY, IoContract, OutputContract
from edgecnn.recipe.recipe import SuppressSpec

OUTPUTS = ("num_detections", "detection_boxes", "detection_scores", "detection_classes")
PLUGIN, DOMAIN = "EfficientNMS_TRT", "TRT"  # the domain under which exporters write it; the parser goes by the name


def suppressed(path: Path, spec: SuppressSpec) -> bytes:
    """A detector's ONNX file with the tail behind it; its contract says so.

    Raises:
        EdgeError: it has no contract, or one without boxes and scores.
    """
    given = Ends.of(path)
    model = ir.load(str(path))
    if KEY not in model.metadata_props:
        raise EdgeError(f"`{path}` has no `{KEY}` metadata", "export it with edgecnn")
    contract = IoContract.model_validate_json(model.metadata_props[KEY])
    names = {output.meaning: output.name for output in contract.outputs}
    values = {value.name: value for value in model.graph.outputs}
    if not {"boxes", "scores"} <= names.keys():
        raise EdgeError(f"`{path}` answers {', '.join(names)}, and suppression needs boxes and scores")
    boxes, scores = values[names["boxes"]], values[names["scores"]]
    most = min(spec.max_detections, _candidates(scores))
    _clear_names(model.graph)
    found = (_plugin if spec.by == "tensorrt" else _onnx)(model.graph, boxes, scores, spec, most)
    batch = scores.shape[0] if scores.shape is not None else None
    kinds = (ir.DataType.INT32, ir.DataType.FLOAT, ir.DataType.FLOAT, ir.DataType.INT32)
    shapes = ((batch, 1), (batch, most, 4), (batch, most), (batch, most))
    for value, name, kind, shape in zip(found, OUTPUTS, kinds, shapes, strict=True):
        value.name, value.type, value.shape = name, ir.TensorType(kind), ir.Shape(shape)
    model.graph.outputs[:] = found
    told = contract.model_copy(
        update={"outputs": tuple(OutputContract(name=name, meaning=name) for name in OUTPUTS), "nms": spec}
    )
    model.metadata_props[KEY] = told.model_dump_json()
    outputs = tuple(ir.serde.serialize_value(value) for value in model.graph.outputs)
    return serialized(model, ends=Ends(given.inputs, outputs))


def bare(path: Path) -> bytes | None:
    """The graph in front of its EfficientNMS_TRT, as what has no such plugin can read it; None where it has none."""
    model = ir.load(str(path))
    graph = model.graph
    plugin = next((node for node in graph if node.op_type == PLUGIN and node.domain == DOMAIN), None)
    contract = IoContract.model_validate_json(model.metadata_props[KEY]) if KEY in model.metadata_props else None
    if plugin is None or contract is None:
        return None
    ends = [value for value in plugin.inputs if value is not None]
    graph.outputs[:] = ends
    graph.remove(plugin, safe=True)
    del model.opset_imports[DOMAIN]
    outputs = tuple(
        OutputContract(name=str(value.name), meaning=meaning)
        for value, meaning in zip(ends, ("boxes", "scores"), strict=True)
    )
    model.metadata_props[KEY] = contract.model_copy(update={"outputs": outputs, "nms": None}).model_dump_json()
    return serialized(model)


def _clear_names(graph: ir.Graph) -> None:
    """What is called like the tail's tensors and nodes is called otherwise."""
    names = Names(graph)
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    for one in (*nodes, *graph.initializers.values(), *(value for node in nodes for value in node.outputs)):
        if one.name and (one.name in OUTPUTS or one.name.startswith("nms")):
            one.name = names.free(f"model.{one.name}")


def _candidates(scores: ir.Value) -> int:
    """Anchors times classes: no more can be found."""
    sides = list(scores.shape or ())
    if len(sides) != 3 or not all(isinstance(side, int) for side in sides[1:]):
        raise EdgeError(f"the shape of the scores `{scores.name}` is {sides}, not (N, anchors, classes)")
    return int(sides[1]) * int(sides[2])


def _plugin(graph: ir.Graph, boxes: ir.Value, scores: ir.Value, spec: SuppressSpec, most: int) -> list[ir.Value]:
    attributes = {
        "plugin_version": "1", "score_threshold": float(spec.confidence), "iou_threshold": float(spec.iou),
        "max_output_boxes": most, "background_class": -1, "score_activation": 0, "box_coding": 0,
    }  # fmt: skip
    node = ir.node(PLUGIN, [boxes, scores], attributes, domain=DOMAIN, num_outputs=4, name="nms")
    graph.append(node)
    graph.opset_imports[DOMAIN] = 1
    return list(node.outputs)


def _onnx(graph: ir.Graph, boxes: ir.Value, scores: ir.Value, spec: SuppressSpec, most: int) -> list[ir.Value]:
    """Suppression answers (image, class, anchor) of what is kept, unsorted over classes; TopK sorts and cuts.

    For it the kept scores go back to their places among zeros, anchor by anchor as `detect` orders equal ones.
    """
    assert scores.shape is not None
    classes = int(scores.shape[2])

    def constant(name: str, value: object, kind: type[np.generic] = np.int64) -> ir.Value:
        tensor = ir.tensor(np.asarray(value, kind), name=f"nms.{name}")
        made = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(made)
        return made

    def node(op: str, name: str, inputs: list[ir.Value], count: int = 1, **attributes: object) -> list[ir.Value]:
        made = ir.node(op, inputs, attributes, num_outputs=count, name=f"nms.{name}")
        for number, value in enumerate(made.outputs):
            value.name = f"nms.{name}.out{number or ''}"
        graph.append(made)
        return list(made.outputs)

    (by_class,) = node("Transpose", "by_class", [scores], perm=[0, 2, 1])
    limits = [
        constant("most", [most]), constant("iou", [spec.iou], np.float32),
        constant("confidence", [spec.confidence], np.float32),
    ]  # fmt: skip
    # x and y may be exchanged: an overlap is the same either way.
    (kept,) = node("NonMaxSuppression", "kept", [boxes, by_class, *limits], center_point_box=0)
    (places,) = node("Gather", "places", [kept, constant("order", [0, 2, 1])], axis=1)
    (values,) = node("GatherND", "values", [scores, places])
    (shape,) = node("Shape", "shape", [scores])
    (zeros,) = node("ConstantOfShape", "zeros", [shape], value=ir.tensor(np.zeros(1, np.float32)))
    (spread,) = node("ScatterND", "spread", [zeros, places, values])
    (flat,) = node("Reshape", "flat", [spread, constant("rows", [0, -1])])
    best, where = node("TopK", "best", [flat, constant("count", [most])], 2, axis=1, largest=1, sorted=1)
    (anchors,) = node("Div", "anchors", [where, constant("classes", classes)])
    (kinds,) = node("Mod", "kinds", [where, constant("modulus", classes)])
    (rows,) = node("Unsqueeze", "rows_of", [anchors, constant("last", [-1])])
    (found,) = node("GatherND", "found", [boxes, rows], batch_dims=1)
    (right,) = node("Greater", "right", [best, constant("nothing", 0, np.float32)])
    (ones,) = node("Cast", "ones", [right], to=int(ir.DataType.INT32))
    (count,) = node("ReduceSum", "num", [ones, constant("across", [1])], keepdims=1)
    (labels,) = node("Cast", "labels", [kinds], to=int(ir.DataType.INT32))
    return [count, found, best, labels]
