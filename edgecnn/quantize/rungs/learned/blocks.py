"""The canonical graph cut into blocks: pieces whose result is one tensor, such as a residual block or a C2f.

Source: BRECQ (Li et al. 2021), which reconstructs residual blocks as wholes; here they are found in the graph itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.place.coverage import macs
from edgecnn.quantize.place.placement import LAYERS, Graph, Placement

# A tensor that so many layers later is still to be read is a long connection (a detector's neck, a U-Net's skip): it
# does not keep the blocks under it together.
_LONG = 9
_MOST_LAYERS = 12  # a block of more INT8 layers is learned layer by layer
_FEW_LAYERS = 3  # so many neighbouring single layers are one block: expand, depthwise and project of a MobileNet
_LARGE = 8  # from so many layers on a block may also end where up to _ENDS tensors go on
_ENDS = 3
_FLOATS = (ir.DataType.FLOAT,)
# What comes behind a layer belongs to it: its error counts as the next layer sees it.
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid"})


@dataclass(frozen=True)
class Block:
    """Consecutive nodes of the graph.

    Attributes:
        nodes: names, in the graph's order.
        inputs: tensors that it reads and does not make.
        outputs: tensors that it makes and others read or the graph answers.
        layers: names of its INT8 layers.
    """

    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...]


def cut(graph: Graph, placement: Placement, batch: int = 1) -> list[Block]:
    """Blocks in the graph's order, together all of its nodes; each holds an INT8 layer, but for the last.

    A cut needs every tensor alive there to be float with the batch in front. It is made where one tensor alone, made or
    read since the last cut, is still to be read; long connections do not count. Neighbouring single layers become one
    block.
    """
    nodes = graph.nodes()
    last, made = _lifetimes(graph)
    int8 = placement.int8_layers
    depth = _depths(nodes)
    activated = {node.inputs[0].name for node in nodes if node.op_type in _ACTIVATIONS and node.inputs[0] is not None}
    pieces: list[list[ir.Node]] = []
    since: list[ir.Node] = []
    for position, node in enumerate(nodes[:-1]):
        since.append(node)
        if not any(each.name in int8 for each in since) or not _cuttable(graph, position, last, made, batch):
            continue
        near = {value.name for each in since for value in (*each.inputs, *each.outputs)
                if value is not None and value.name in made and last[value.name] > position}  # fmt: skip
        own = {value.name for each in since for value in each.outputs}
        short = {name for name in near if name in own or depth[last[name]] - depth[max(made[name], 0)] < _LONG}
        after = any(each.name in int8 for each in nodes[position + 1 :])
        layers = sum(each.name in int8 for each in since)
        ends = (len(short) == 1 and short <= own) or (layers >= _LARGE and len(short) <= _ENDS)
        if ends and after and not short & activated:
            pieces.append(since)
            since = []
    since.append(nodes[-1])
    pieces.append(since)
    merged: list[list[ir.Node]] = []
    singles = 0
    for piece in pieces:
        single = sum(node.name in int8 for node in piece) == 1
        if single and 0 < singles < _FEW_LAYERS:
            merged[-1] = [*merged[-1], *piece]
        else:
            merged.append(piece)
            singles = 0
        singles = singles + 1 if single else 0
    position, blocks = -1, []
    for piece in merged:
        position += len(piece)
        blocks.append(_block(piece, int8, last, position))
    return blocks


def single_layers(block: Block, graph: Graph) -> list[Block]:
    """A block of many layers, or with nodes that torch has no function for: one block for each INT8 layer."""
    nodes = {node.name: node for node in graph.nodes()}
    found = []
    for name in block.layers:
        node = nodes[name]
        data = tuple(value.name or "" for value in node.inputs[:1] if value is not None)
        found.append(Block((name,), data, (node.outputs[0].name or "",), (name,)))
    return found


def too_many_layers(block: Block) -> bool:
    """Whether to learn it layer by layer."""
    return len(block.layers) > _MOST_LAYERS


def cost(block: Block, graph: Graph) -> int:
    """About how much one image costs in it: MACs, and 30 for each value written, for what memory bounds."""
    total = 0
    for node in graph.nodes():
        if node.name in block.nodes:
            total += macs(node, graph) if node.op_type in LAYERS else 0
            total += 30 * sum(math.prod(graph.shape(value)) for value in node.outputs)
    return max(total, 1)


def alive(graph: Graph, blocks: list[Block], number: int) -> list[str]:
    """Tensors that block `number` or a later one reads and an earlier one, or the graph's input, gives."""
    later = {name for block in blocks[number:] for name in block.inputs}
    inside = {name for block in blocks[number:] for name in block.outputs}
    return sorted(later - inside)


def _lifetimes(graph: Graph) -> tuple[dict[str | None, int], dict[str | None, int]]:
    """Position of each tensor's last reader (graph outputs: past the end) and of its maker (graph inputs: -1)."""
    made: dict[str | None, int] = {value.name: -1 for value in graph.model.graph.inputs}
    last: dict[str | None, int] = {}
    for position, node in enumerate(graph.nodes()):
        for value in node.outputs:
            made[value.name] = position
            last.setdefault(value.name, position)
        for value in node.inputs:
            if value is not None and constant(value) is None:
                last[value.name] = position
    for value in graph.model.graph.outputs:
        last[value.name] = len(graph.nodes())
    return last, made


def _depths(nodes: list[ir.Node]) -> list[int]:
    """Layers up to each position, and one more past the end."""
    count, found = 0, []
    for node in nodes:
        count += node.op_type in LAYERS
        found.append(count)
    return [*found, count]


def _cuttable(
    graph: Graph, position: int, last: dict[str | None, int], made: dict[str | None, int], batch: int
) -> bool:
    types = {value.name: value.dtype for node in graph.nodes() for value in node.outputs}
    for name, start in made.items():
        if 0 <= start <= position < last.get(name, -1) and name is not None and last[name] < len(graph.nodes()):
            shape = graph.shapes.get(name, ())
            if types.get(name) not in _FLOATS or len(shape) < 2 or shape[0] != batch:
                return False
    return True


def _block(nodes: list[ir.Node], int8: frozenset[str], last: dict[str | None, int], position: int) -> Block:
    own = [value.name or "" for node in nodes for value in node.outputs]
    known = set(own)
    read = [
        value.name or "" for node in nodes for value in node.inputs if value is not None and constant(value) is None
    ]
    inputs = tuple(name for name in dict.fromkeys(read) if name not in known)
    outputs = tuple(name for name in own if last.get(name, -1) > position)
    names = tuple(node.name or "" for node in nodes)
    return Block(names, inputs, outputs, tuple(name for name in names if name in int8))
