"""Weights that the graph computes from constants become constants: standardized convolutions, split or scaled kernels.

onnxruntime computes them, once; a value that is larger than what it comes from (Expand, Tile) stays computed.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgecnn.process.errors import EdgeError
from edgecnn.quantize.graph.names import Names
from edgecnn.quantize.graph.sessions import expose, open_session, run

_NOT = frozenset({
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "If", "Loop",
    "Scan", "Constant", "QuantizeLinear", "DequantizeLinear",
})  # fmt: skip
_LARGEST = 2**24  # the same, of what is computed on the way
_FREE = 1024  # elements more than its sources that a value may have


def fold_weights(model: ir.Model) -> int:
    """Replace, in place, the values that only constants decide and that other nodes read; how many."""
    graph = model.graph
    decided: dict[ir.Value, int] = {
        value: value.const_value.size
        for value in graph.initializers.values()
        if value.const_value is not None and not value.is_graph_input()
    }
    nodes: list[ir.Node] = []
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if not inputs or node.op_type in _NOT or node.domain not in ("", "ai.onnx"):
            continue
        if any(value not in decided for value in inputs):
            continue
        sources = sum(decided[one] for one in inputs)
        if any(value.name and not _size(value) <= sources + _LARGEST for value in node.outputs):
            continue  # it would take memory that nothing bounds
        nodes.append(node)
        for value in node.outputs:
            decided[value] = sources
    made = set(nodes)
    wanted = [
        value
        for node in nodes
        for value in node.outputs
        if any(use[0] not in made for use in value.uses()) and not value.is_graph_output() and value.name
    ]
    if not wanted:
        return 0
    arrays, names = _computed(model, nodes, wanted), Names(graph)
    folded = 0
    for value, array in zip(wanted, arrays, strict=True):
        if array is None or array.size > decided[value] + _FREE:
            continue
        name = value.name
        tensor = ir.tensor(np.array(array, order="C"), name=name)
        known = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        ir.convenience.replace_all_uses_with(value, known)
        value.name = names.free(f"{name}.computed")
        graph.register_initializer(known)
        folded += 1
    return folded


def _size(value: ir.Value) -> float:
    """Elements of a tensor; infinitely many where a size is not known."""
    sizes = list(value.shape) if value.shape is not None else [None]
    return math.prod(float(size) if isinstance(size, int) else math.inf for size in sizes)


def _computed(model: ir.Model, nodes: list[ir.Node], wanted: list[ir.Value]) -> list[np.ndarray | None]:
    """The values, by one run of the nodes that make them; None each where onnxruntime cannot run those."""
    copy = model.clone()
    kept = {node.outputs[0].name for node in nodes}
    for node in reversed(list(copy.graph)):
        if node.outputs[0].name not in kept:
            copy.graph.remove(node)
    copy.graph.inputs.clear()
    copy.graph.outputs.clear()
    names = [value.name or "" for value in wanted]
    try:
        return list(run(open_session(expose(copy, names), simulate=True), {}))
    except EdgeError:
        return [None] * len(wanted)
