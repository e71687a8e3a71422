"""Names that a graph does not have yet: a user's tensor or node may be called anything, also like ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir


class Names:
    """What is taken in a graph and its subgraphs, by tensors and nodes alike; what is handed out is taken from then on.

    Made once for a series of additions: whoever adds a name by other means makes another.
    """

    def __init__(self, graph: ir.Graph, also: Iterable[str] = ()) -> None:
        self.taken = {name for name in _names(graph) if name} | set(also)
        self.numbers: dict[str, int] = {}

    def free(self, wanted: str) -> str:
        """The name, with a number where it is taken."""
        found = wanted
        while found in self.taken:
            self.numbers[wanted] = number = self.numbers.get(wanted, 0) + 1
            found = f"{wanted}.{number}"
        self.taken.add(found)
        return found

    def prefix(self, wanted: str) -> str:
        """What no name that is taken begins with, for names that a protobuf is given."""
        while any(name.startswith(wanted) for name in self.taken):
            wanted += "_"
        return wanted

    def give(self, node: ir.Node, wanted: str) -> ir.Node:
        """The node and its outputs under free names."""
        node.name = self.free(wanted)
        for value in node.outputs:
            value.name = self.free(wanted)
        return node


def replace_value(graph: ir.Graph, old: ir.Value, new: ir.Value, names: Names | None = None) -> None:
    """Every reading of `old` reads `new`. If `old` is an output of the graph, so is `new`, under the output's name.

    What has an end's or a weight's name of its own keeps it: there an Identity stands for the output.
    """
    if not old.is_graph_output():
        ir.convenience.replace_all_uses_with(old, new)
        return
    names = names or Names(graph)
    name, position = old.name or "", next(index for index, value in enumerate(graph.outputs) if value is old)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    old.name = names.free(f"{name}.replaced")
    if new.producer() is None or list(graph.outputs).count(new) > 1:
        identity = names.give(ir.node("Identity", [new]), f"{name}.copy")
        identity.outputs[0].type, identity.outputs[0].shape = new.type, new.shape
        graph.append(identity)
        graph.outputs[position] = new = identity.outputs[0]
    new.name = name


def _names(graph: ir.Graph) -> Iterator[str | None]:
    for one in (graph, *graph.subgraphs()):
        yield from (value.name for value in one.inputs)
        yield from one.initializers
        for node in one:
            yield node.name
            yield from (value.name for value in node.outputs)
