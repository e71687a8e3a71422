"""If nodes whose condition is already decided become the branch that is taken: exporters write them for shapes."""

from __future__ import annotations

import onnx_ir as ir

from edgecnn.quantize.graph.names import Names, replace_value


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
    """The branch's nodes in place of the If, under names that the graph does not have; outputs keep theirs."""
    results = list(branch.outputs)
    weights = list(branch.initializers.values())
    branch.outputs.clear()
    branch.initializers.clear()
    inner = list(branch)
    branch.remove(inner)
    node.attributes.clear()  # the branches' names are free now
    names = Names(graph)
    for value in weights:
        value.name = names.free(value.name or "value")
        graph.register_initializer(value)
    for one in inner:
        for value in one.outputs:
            value.name = names.free(value.name or "value")
    graph.insert_before(node, inner)
    for outside, inside in zip(list(node.outputs), results, strict=True):
        replace_value(graph, outside, inside, names)
    graph.remove(node, safe=True)
