"""What blocks read and should answer: tensors of the float and the quantized graph, by onnxruntime, a block at a time.

Only the tensors alive between two blocks are held, of the sampled images, so memory is bounded by how many those are.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.names import Names
from edgecnn.quantize.graph.sessions import open_session, run_each

Tensors = dict[str, np.ndarray]


def between(model: ir.Model, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """The part of a graph that computes the tensors `outputs` from the tensors `inputs`."""
    values = {value.name or "": value for value in model.graph.inputs}
    values |= {value.name or "": value for node in model.graph for value in node.outputs}
    needed: set[ir.Node] = set()
    constants: dict[str, ir.Value] = {}
    waiting = [values[name] for name in outputs if name not in inputs]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None:
            constants[value.name or ""] = value
        elif node not in needed:
            needed.add(node)
            waiting += [each for each in node.inputs if each is not None and each.name not in inputs]
    kept = [ir.serde.serialize_node(node) for node in model.graph if node in needed]
    same, own = [name for name in outputs if name in inputs], "edgecnn.same"
    if same:
        own = Names(model.graph).prefix(own)
    kept += [onnx.helper.make_node("Identity", [name], [f"{own}.{name}"]) for name in same]
    used = {name for node in kept for name in node.input}
    types = {name: values[name].dtype or ir.DataType.FLOAT for name in inputs}
    graph = onnx.helper.make_graph(
        kept, "part",
        [onnx.helper.make_tensor_value_info(name, types[name].value, None) for name in inputs if name in used],
        [onnx.ValueInfoProto(name=f"{own}.{name}" if name in same else name) for name in outputs],
        [ir.serde.serialize_tensor(value.const_value) for value in constants.values() if value.const_value is not None],
    )  # fmt: skip
    versions = [onnx.helper.make_opsetid(*each) for each in model.opset_imports.items()]
    return onnx.helper.make_model(graph, opset_imports=versions, ir_version=model.ir_version)


def evaluate(model: ir.Model, given: Tensors, outputs: list[str], batch: int, *, simulate: bool) -> Tensors:
    """The tensors `outputs` for all images, batch by batch; `given` and the answer have the images in front."""
    proto = between(model, list(given), outputs)
    session = open_session(proto, simulate=simulate)
    read = [value.name for value in session.get_inputs()]
    count = len(next(iter(given.values())))
    feeds = ({name: given[name][start : start + batch] for name in read} for start in range(0, count, batch))
    found: Tensors = {}
    for number, answers in enumerate(run_each(session, feeds)):
        for name, answer in zip(outputs, answers, strict=True):
            if name not in found:
                found[name] = np.empty((count, *answer.shape[1:]), answer.dtype)
            found[name][number * batch : (number + 1) * batch] = answer
    return found


def fed(feeder: Feeder, sample: list[int]) -> Tensors:
    """The sampled images as the graph's input; their number is a multiple of the graph's batch."""
    feeds = list(feeder.feeds(sample))
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
