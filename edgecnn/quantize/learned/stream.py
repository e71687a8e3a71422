"""What blocks read and should answer: tensors of the float and the quantized graph, by onnxruntime, a block at a time.

Only the tensors alive between two blocks are held, of the sampled images, so memory is bounded by how many those are.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from edgecnn.quantize.calibrate import Feeder
from edgecnn.quantize.names import Names
from edgecnn.quantize.sessions import open_session, run_each

Tensors = dict[str, np.ndarray]


def between(model: ir.Model, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """The part of a graph that computes the tensors `outputs` from the tensors `inputs`."""
    proto = ir.serde.serialize_model(model)
    makers = {name: number for number, node in enumerate(proto.graph.node) for name in node.output}
    needed: set[int] = set()
    constants: set[str] = set()
    waiting = [name for name in outputs if name not in inputs]
    while waiting:
        name = waiting.pop()
        number = makers.get(name)
        if number is None:
            constants.add(name)
        elif number not in needed:
            needed.add(number)
            waiting += [each for each in proto.graph.node[number].input if each and each not in inputs]
    types = {value.name: value.type.tensor_type.elem_type for value in (*proto.graph.value_info, *proto.graph.input)}
    kept = [node for number, node in enumerate(proto.graph.node) if number in needed]
    same, own = [name for name in outputs if name in inputs], Names(model.graph).prefix("edgecnn.same")
    kept += [onnx.helper.make_node("Identity", [name], [f"{own}.{name}"]) for name in same]
    used = {name for node in kept for name in node.input}
    graph = onnx.helper.make_graph(
        kept, "part",
        [onnx.helper.make_tensor_value_info(name, types.get(name, onnx.TensorProto.FLOAT), None)
         for name in inputs if name in used],
        [onnx.ValueInfoProto(name=f"{own}.{name}" if name in same else name) for name in outputs],
        [array for array in proto.graph.initializer if array.name in constants],
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=list(proto.opset_import), ir_version=proto.ir_version)


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
