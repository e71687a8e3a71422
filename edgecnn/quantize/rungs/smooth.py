"""Channels made equal behind an activation that no factor passes through: SiLU, HardSwish, a gated map.

Cross-layer equalization moves factors through ReLU and linear links only. Behind SiLU(x) = x·sigmoid(x) the factors
need an operator of their own: one Mul by a constant per channel, whose inverse the readers' weights take (as for the
activations of transformers: Xiao et al., "SmoothQuant", ICML 2023, arXiv:2211.10438). It stands next to the
activation's own Mul, and TensorRT merges adjacent elementwise operators (developer guide, "PointWise Fusion"). The
tensor behind it keeps the activation's name, so placement stays what it is. A depthwise convolution profits most: it
reads each channel by itself, but TensorRT has one scale for all of them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.canonical import add_initializer, constant
from edgecnn.quantize.graph.names import Names
from edgecnn.quantize.place.placement import Graph, Placement
from edgecnn.quantize.rungs import channels
from edgecnn.quantize.rungs.links import balanced, equalized
from edgecnn.quantize.rungs.spread import Spread

_GATES = frozenset({"Mul", "HardSwish", "Gelu", "Mish", "Elu", "Celu", "Selu", "Softplus", "Swish"})
WORTH = 4.0  # the largest factor over the smallest that is worth an operator


def smoothed(
    graph: Graph, placement: Placement, feeder: Feeder, sample: list[int], known: dict[str, Spread] | None = None
) -> ir.Model | None:
    """The graph with channels rescaled, also behind activations that are not homogeneous; None: nothing to gain.

    Tensors keep their names; each new node is a Mul `<node>.smooth` whose output has the name of the tensor before it.
    `known`: see `balanced`.
    """
    known = {} if known is None else known
    opened, added = _opened(graph, None)
    first = balanced(opened, placement, replace(feeder, model=opened.model), sample, known) if added else None
    worth = frozenset(node.name or "" for node in _identities(first, added) if _spread(node) >= WORTH)
    # What the first look finds worth an operator, the second balances alone.
    opened, added = _opened(graph, worth)
    found = equalized(opened, placement, replace(feeder, model=opened.model), sample, known) if added else None
    for node in _identities(found, added):
        _closed(node)
    return found


def _identities(model: ir.Model | None, names: list[str]) -> list[ir.Node]:
    return [node for node in model.graph if node.name in names] if model is not None else []


def _spread(identity: ir.Node) -> float:
    factors = constant(identity.inputs[1])
    assert factors is not None
    return float(factors.max() / factors.min())


def _opened(graph: Graph, wanted: frozenset[str] | None) -> tuple[Graph, list[str]]:
    """A copy with a depthwise 1x1 identity where factors shall begin: a layer that takes any of them up."""
    found = channels.find(graph)
    model, shapes, added = graph.model.clone(), dict(graph.shapes), []
    names = Names(model.graph)
    for node in list(model.graph):
        value = node.outputs[0]
        shape = shapes.get(value.name or "", ())
        if node.op_type not in _GATES or len(shape) != 4 or value.is_graph_output() or shape[2:] == (1, 1):
            continue
        if any(constant(v) is not None for v in node.inputs) or value.name not in found.group:
            continue
        if found.free[found.group[value.name]].all() or not value.uses():
            continue
        if wanted is not None and f"{node.name}.smooth" not in wanted:
            continue
        name, count = value.name, shape[1]
        value.name = names.free(f"{name}.plain")
        weight = add_initializer(model.graph, f"{name}.factors", np.ones((count, 1, 1, 1), np.float32), names)
        identity = ir.node(
            "Conv", [value, weight], {"group": count, "kernel_shape": [1, 1]}, name=f"{node.name}.smooth"
        )
        output = identity.outputs[0]
        output.name, output.type, output.shape = name, value.type, value.shape
        model.graph.insert_after(node, identity)
        for user, index in value.uses():
            if user is not identity:
                user.replace_input_with(index, output)
        shapes[value.name] = shape
        added.append(identity.name or "")
    return Graph(model, shapes), added


def _closed(identity: ir.Node) -> None:
    """The depthwise convolution as a Mul."""
    factors = constant(identity.inputs[1])
    assert factors is not None
    before, after, graph = identity.inputs[0], identity.outputs[0], identity.graph
    assert before is not None
    assert isinstance(graph, ir.Graph)
    name = after.name
    shaped = add_initializer(graph, f"{name}.smooth", factors.reshape(1, -1, 1, 1))
    product = ir.node("Mul", [before, shaped], name=identity.name)
    product.outputs[0].type, product.outputs[0].shape = after.type, after.shape
    graph.insert_before(identity, product)
    ir.convenience.replace_all_uses_with(after, product.outputs[0])
    graph.remove(identity, safe=True)
    product.outputs[0].name = name
