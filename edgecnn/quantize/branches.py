"""If nodes whose condition is already decided become the branch that is taken: exporters write them for shapes."""

from __future__ import annotations

import onnx_ir as ir


def take_branches(model: ir.Model) -> int:
    """Replace, in place, every If of the main graph whose condition is a constant; how many."""
    graph = model.graph
    taken = 0
    for node in list(graph):
        if node.op_type != "If" or node.domain not in ("", "ai.onnx") or node.inputs[0] is None:
            continue
        condition = node.inputs[0]
        if condition.const_value is None or condition.is_graph_input():
            continue
        chosen = "then_branch" if bool(condition.const_value.numpy().reshape(-1)[0]) else "else_branch"
        _inline(graph, node, node.attributes[chosen].as_graph())
        taken += 1
    return taken


def _inline(graph: ir.Graph, node: ir.Node, branch: ir.Graph) -> None:
    """The branch's nodes in place of the If, under names that the graph does not have."""
    names = {value.name for one in graph for value in one.outputs} | set(graph.initializers)
    names |= {value.name for value in graph.inputs}
    results = list(branch.outputs)
    weights = list(branch.initializers.values())
    branch.outputs.clear()
    branch.initializers.clear()
    for value in weights:
        value.name = _free(value.name, names)
        graph.register_initializer(value)
    inner = list(branch)
    branch.remove(inner)
    for one in inner:
        for value in one.outputs:
            value.name = _free(value.name, names)
    graph.insert_before(node, inner)
    for outside, inside in zip(list(node.outputs), results, strict=True):
        name = outside.name
        ends = outside.is_graph_output()
        ir.convenience.replace_all_uses_with(outside, inside, replace_graph_outputs=True)
        outside.name = None
        if ends:
            inside.name = name
    graph.remove(node, safe=True)


def _free(name: str | None, names: set[str | None]) -> str:
    """The name, numbered where it is taken; it is taken from then on."""
    found, number = name or "value", 1
    while found in names:
        found, number = f"{name}.{number}", number + 1
    names.add(found)
    return found
