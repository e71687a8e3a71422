"""Does every node of a file read what is there? A missing tensor and a cycle, told by name before onnx's checker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from edgecnn.process.errors import EdgeError


def check_wiring(model: onnx.ModelProto, path: Path) -> None:
    """Refuse tensors that nothing makes, cycles, and outputs without a shape.

    Raises:
        EdgeError: always then; it names the node and the tensor.
    """
    graph = model.graph
    _check_nodes(model, path)
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    makers = {name: node for node in graph.node for name in node.output if name}
    for node in graph.node:
        for name in _reads(node):
            if name not in given and name not in makers:
                raise EdgeError(
                    f"node {_label(node)} of `{path}` reads `{name}`, which is not an input, an initializer or an "
                    "output of a node",
                    "its initializer was lost: export the model again",
                )
    if cycle := _cycle(graph, makers):
        raise EdgeError(f"`{path}` has a cycle: {' → '.join(cycle)}", "a graph must run from its inputs to its outputs")
    for value in graph.output:
        if value.name not in makers and value.name not in given:
            raise EdgeError(f"output `{value.name}` of `{path}` is not made by any node", "export the model again")
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and not kind.HasField("shape"):
            raise EdgeError(
                f"output `{value.name}` of `{path}` has no shape",
                "save it once with onnx.shape_inference.infer_shapes, or export with shapes for the outputs",
            )


def _check_nodes(model: onnx.ModelProto, path: Path) -> None:
    """Every node does something, no two initializers share a name, and no local function calls itself."""
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        if not node.op_type or not any(node.output):
            what = f"`{node.name}` ({node.op_type or 'of no operator'})"
            raise EdgeError(f"node {what} of `{path}` has no operator or no output", "export the model again")
    names = [tensor.name for tensor in model.graph.initializer]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise EdgeError(f"`{path}` has two initializers called `{twice}`", "export the model again")
    calls = {(one.domain, one.name): {(node.domain, node.op_type) for node in one.node} for one in model.functions}
    while ends := [name for name, called in calls.items() if not called & calls.keys()]:
        for name in ends:
            del calls[name]
    if calls:
        domain, name = next(iter(calls))
        raise EdgeError(f"function `{domain}.{name}` of `{path}` calls itself", "a function must end: export again")


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Tensors that a node needs; what its subgraphs read of their own is left to onnx's checker."""
    yield from (name for name in node.input if name)


def _label(node: onnx.NodeProto) -> str:
    return f"`{node.name}` ({node.op_type})" if node.name else f"{node.op_type} (it makes `{node.output[0]}`)"


def _cycle(graph: onnx.GraphProto, makers: dict[str, onnx.NodeProto]) -> list[str]:
    """The nodes of one cycle, the first once more at its end; [] where there is none."""
    done: set[int] = set()
    for start in graph.node:
        trail: list[onnx.NodeProto] = []
        on_trail: set[int] = set()
        waiting: list[tuple[onnx.NodeProto, bool]] = [(start, True)]
        while waiting:
            node, entering = waiting.pop()
            if not entering:
                on_trail.discard(id(trail.pop()))
                done.add(id(node))
                continue
            if id(node) in on_trail:
                first = next(index for index, other in enumerate(trail) if other is node)
                return [_label(other) for other in (*reversed(trail[first:]), trail[-1])]
            if id(node) in done:
                continue
            trail.append(node)
            on_trail.add(id(node))
            waiting.append((node, False))
            waiting.extend((makers[name], True) for name in _reads(node) if name in makers)
    return []
