"""Which operators that could run in INT8 under onnxruntime are worth it on a kind of CPU; see `costs` and `cut`."""

from __future__ import annotations

import math
from collections import defaultdict

import onnx_ir as ir

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.place.costs import BLOCKED, FUSING, Table, node_costs
from edgecnn.quantize.place.cut import Choice, Crossing, fastest
from edgecnn.quantize.place.placement import Graph

_FREE = frozenset({"Shape", "Size"})  # read no values


def find_paying_layers(graph: Graph, able: frozenset[str], inside: dict[str, str], table: Table) -> frozenset[str]:
    """The operators that INT8 makes the whole graph fastest with.

    Counted beside the kernels: a Q for each tensor that float writes and INT8 reads, a DQ for each float reader of
    what INT8 writes, their change of layout (INT8 wants channels last, float NCHWc or NCHW), reorders between float
    operators in and out of NCHWc, and activations that fuse into a float Conv but stand alone behind an INT8 one.

    Args:
        able: names of the operators that may be INT8.
        inside: ReLUs and Clips that are part of another operator when it is INT8: their name → its name.
    """
    nodes = {node.name or "": node for node in graph.nodes()}
    nodes = {name: node for name, node in nodes.items() if name not in inside and node.op_type not in _FREE}
    costs = {name: node_costs(node, graph, table) for name, node in nodes.items()}
    # In float these are part of the Conv before them, and cost what they cost only behind INT8.
    extras = {name: costs[name][0] for name, node in nodes.items() if _fuses(node)}
    blocked = {name for name, node in nodes.items() if node.op_type in BLOCKED or name in extras or _is_silu(node)}
    layout: dict[str, float] = defaultdict(float)  # what float costs an operator beyond its kernel
    crossings = []
    for value, maker in _tensors(graph, inside):
        readers = {inside.get(reader.name or "", reader.name or "") for reader, _ in value.uses()} & nodes.keys()
        readers -= {maker or ""}
        image = len(graph.shape(value)) > 2
        size = math.prod(graph.shape(value))
        to_int8, to_float, transpose, out, into = (
            line.at(0, size)
            for line in (table.to_int8, table.to_float, table.transpose, table.out_of_blocks, table.into_blocks)
        )
        if image:
            to_int8, to_float = to_int8 + transpose, to_float + transpose
            if maker in blocked and maker is not None:
                if readers <= blocked:
                    to_int8 += out
                else:  # some reader takes it out of the blocks anyway
                    layout[maker] += out
                to_float += into if readers & blocked else 0.0
            elif maker is not None:
                for reader in readers & blocked:
                    layout[reader] += into / len(readers & blocked)
        # onnxruntime gives every float reader a DequantizeLinear of its own.
        pairs = tuple((reader, to_float + extras.get(reader, 0.0)) for reader in sorted(readers))
        crossings.append(Crossing(maker, pairs, to_int8, to_float if not readers else 0.0, value.is_graph_output()))
    choices = [
        Choice(name, (0.0 if name in extras else in_float) + layout[name], in_int8 if name in able else None)
        for name, (in_float, in_int8) in costs.items()
    ]
    return fastest(choices, crossings) & able


def _tensors(graph: Graph, inside: dict[str, str]) -> list[tuple[ir.Value, str | None]]:
    """Float tensors that are stored, with the operator that makes each."""
    found: list[tuple[ir.Value, str | None]] = [(value, None) for value in graph.model.graph.inputs]
    for node in graph.nodes():
        maker = inside.get(node.name or "", node.name or "")
        for value in node.outputs:
            readers = [reader.name for reader, _ in value.uses()]
            stays_inside = any(reader in inside and inside[reader] == maker for reader in readers)
            if value.dtype == ir.DataType.FLOAT and not stays_inside and node.op_type not in _FREE:
                found.append((value, maker))
    return found


def _is_silu(node: ir.Node) -> bool:
    """The Mul of x · sigmoid(x), which onnxruntime computes as one in any layout."""
    makers = [value.producer() for value in node.inputs if value is not None]
    return node.op_type == "Mul" and any(maker is not None and maker.op_type == "Sigmoid" for maker in makers)


def _fuses(node: ir.Node) -> bool:
    """An activation, or an Add, that onnxruntime makes part of the float Conv before it."""
    if node.op_type not in FUSING and node.op_type != "Add":
        return False
    for value in node.inputs:
        maker = value.producer() if value is not None and constant(value) is None else None
        if maker is not None and maker.op_type == "Conv" and len(value.uses()) == 1:
            return True
    return False
