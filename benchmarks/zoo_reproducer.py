"""A few nodes that show a refusal: the refused node with as little around it as keeps the refusal."""

from __future__ import annotations

from pathlib import Path

import onnx

from edgecnn.backends.tensorrt.rules import check
from edgecnn.process.errors import EdgeError
from edgecnn.targets import jobs

_RINGS = 6  # how many rings of producers may be taken along


def reproduce(model: Path, refusal: dict[str, str], folder: Path) -> str:
    """Write the smallest cut around the refused node that is refused alike; its path, or why there is none."""
    proto = onnx.shape_inference.infer_shapes(onnx.load(str(model)), data_prop=True)
    for rings in range(_RINGS):
        path = folder / f"reproducer-{refusal['node'].replace('/', '_')}.onnx"
        onnx.save(cut(proto, refusal["node"], rings), str(path))
        if refused(path, refusal):
            return str(path)
        path.unlink()
    return f"the node is accepted with {_RINGS} rings of producers around it"


def cut(model: onnx.ModelProto, name: str, rings: int) -> onnx.ModelProto:
    """The node `name` (or the one that makes the tensor `name`) with `rings` rings of the nodes before it."""
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output if output}
    target = next(node for node in graph.node if name in (node.name, *node.output))
    kept = {id(target)}
    border = [target]
    for _ in range(rings):
        border = [makers[i] for node in border for i in node.input if i in makers and id(makers[i]) not in kept]
        kept |= {id(node) for node in border}
    nodes = [node for node in graph.node if id(node) in kept]
    made = {output for node in nodes for output in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    typed = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    read = list(dict.fromkeys(i for node in nodes for i in node.input if i and i not in made))
    small = onnx.helper.make_graph(
        nodes, "reproducer", [typed[i] for i in read if i not in weights],
        [typed[o] for o in target.output if o in typed], [weights[i] for i in read if i in weights],
    )  # fmt: skip
    return onnx.helper.make_model(small, opset_imports=model.opset_import, ir_version=model.ir_version)


def refused(path: Path, refusal: dict[str, str]) -> bool:
    """The same judge refuses the cut with the same words (a rule), or at all (the parser and compiler)."""
    if refusal["by"] == "TensorRT 10.3 rules":
        return any(found.node == refusal["node"] and found.words == refusal["words"] for found in check(path))
    try:
        jobs.parse(path.parent, "tensorrt-rtx", path)
    except EdgeError:
        return True
    return False
