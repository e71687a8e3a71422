"""Rung `bias`: what INT8 adds to the mean of a layer's outputs is taken from its bias (Nagel et al., ICCV 2019).

analytic   in one pass over the float graph: the mean difference that each layer makes of its own quantized input and
           weight, before anything else is quantized.
empirical  layer by layer through the INT8 graph in float simulation, every layer measured with those before it already
           corrected: what earlier layers, clipping and saturation do to the mean is in it too.

Both are tried where the effort pays for both, else the empirical, on images that do not decide; what is better by the
model's outputs on the others is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir

from edgecnn.process import progress
from edgecnn.process.progress import track
from edgecnn.quantize.graph.canonical import constant, opset
from edgecnn.quantize.graph.names import Names
from edgecnn.quantize.graph.sessions import Feeds, expose, open_session, run_each
from edgecnn.quantize.ladder.candidate import Candidate, Tools
from edgecnn.quantize.ladder.effort import affordable, sample_images, share
from edgecnn.quantize.ladder.quality import better, split
from edgecnn.quantize.noise.split import integer_weights
from edgecnn.quantize.place.placement import Graph
from edgecnn.quantize.rungs.learned.blocks import Block, alive, cut
from edgecnn.quantize.rungs.learned.stream import Tensors, between, evaluate, fed
from edgecnn.quantize.rungs.matrix import unfolded
from edgecnn.quantize.rungs.moments import input_moments, mean_of
from edgecnn.quantize.rungs.spread import add_reduction
from edgecnn.quantize.write.rewrite import BIAS, Overrides
from edgecnn.recipe.device import Scheme

NAME = "bias"
_IMAGES = 64
_EFFORT = 1e11  # multiply-accumulates for the empirical correction
_PASSES = 4  # that it makes through the graph with every image, about
_STAGES = 2  # of a block
_LEAST = 8  # images
_HELD_BYTES = 400 << 20  # of tensors between blocks


def bias(candidate: Candidate, tools: Tools) -> Candidate:
    """The candidate with corrected biases, or unchanged where that measures no better."""
    targets = _targets(candidate)
    if not targets:
        return _refused(candidate, "no INT8 layer has a constant bias")
    tried = {"empirical": _empirical(candidate, tools, targets)}
    if share(tools) >= 1:
        tried["analytic"] = _analytic(candidate, tools, targets)
    which, qualities = better(tools, candidate, list(tried.values()), split(tools)[1], doubts=0.5)
    if which < 0:
        return _refused(candidate, "no correction measures better")
    method = list(tried)[which]
    progress.current().note(f"bias: {method} correction, {qualities[which + 1] - qualities[0]:+.2f} dB")
    return replace(tried[method], rungs=(*candidate.rungs, NAME))


def _refused(candidate: Candidate, why: str) -> Candidate:
    return replace(candidate, notes=(*candidate.notes, f"bias: {why}"))


def _targets(candidate: Candidate) -> dict[str, str]:
    """The tensor behind the bias, by the name of the node that has it, in the graph's order."""
    int8 = candidate.placement.int8_layers
    found = {}
    for node in candidate.model.graph:
        name = node.name or ""
        if name not in int8:
            continue
        if node.op_type == "MatMul":
            uses = node.outputs[0].uses()
            add = uses[0].node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None
            if add is not None and add.op_type == "Add" and _bias_of(add, candidate.overrides) is not None:
                found[add.name or ""] = add.outputs[0].name or ""
        elif node.op_type != "Gemm" or _bias_of(node, candidate.overrides) is not None:
            value = node.inputs[BIAS] if len(node.inputs) > BIAS else None
            if value is None or constant(value) is not None:
                found[name] = node.outputs[0].name or ""
    return found


def _bias_of(node: ir.Node, overrides: Overrides) -> np.ndarray | None:
    """The layer's present bias (1-D, or one number); None where it has none or one that is not a vector."""
    if node.name in overrides.biases:
        return overrides.biases[node.name]
    values = [v for v in node.inputs if constant(v) is not None] if node.op_type == "Add" else list(node.inputs[BIAS:])
    array = constant(values[0]) if values else None
    if array is None or (array.ndim and array.size != array.shape[-1]) or (node.op_type == "Gemm" and not _plain(node)):
        return None
    if node.op_type == "Add" and array.ndim > max(
        (len(v.shape or ()) for v in node.inputs if constant(v) is None), default=0
    ):
        return None  # it gives the sum more dimensions
    return array.reshape(-1).astype(np.float32)


def _plain(node: ir.Node) -> bool:
    beta = node.attributes.get("beta")
    return beta is None or float(beta.value) == 1.0


def _corrected(candidate: Candidate, changes: dict[str, np.ndarray]) -> Candidate:
    nodes = {node.name or "": node for node in candidate.model.graph}
    biases = dict(candidate.overrides.biases)
    for name, change in changes.items():
        old = _bias_of(nodes[name], candidate.overrides)
        biases[name] = (change if old is None else old + change).astype(np.float32)
    return replace(candidate, overrides=replace(candidate.overrides, biases=biases))


def _analytic(candidate: Candidate, tools: Tools, targets: dict[str, str]) -> Candidate:
    """Mean of each layer's input times the error of its weight."""
    nodes = {node.name or "": node for node in candidate.model.graph}
    layers = {_layer(nodes[name]).name or "": nodes[name] for name in targets}
    feeder = tools.feeder_of(candidate.model)
    wanted = [nodes[name] for name in layers]
    moments = input_moments(feeder, tools.graph, wanted, sample_images(tools, _IMAGES), means_only=True)
    integers = integer_weights(candidate, tools.scheme)
    bare = replace(candidate, overrides=replace(candidate.overrides, biases={}))
    changes = {}
    for name, holder in layers.items():
        weight = nodes[name].inputs[1]
        array = constant(weight)
        if not moments.get(name) or array is None or weight is None:
            continue
        error = unfolded(nodes[name], integers[weight.name or ""].restored()) - unfolded(nodes[name], array)
        mean = mean_of(moments[name])
        flat = error.reshape(*error.shape[:2], -1)
        changes[holder.name or ""] = -np.einsum("gok,gk->go", flat, mean).reshape(-1).astype(np.float32)
    return _corrected(bare, changes)


def _layer(holder: ir.Node) -> ir.Node:
    """The layer whose bias a node holds: itself, or the MatMul before an Add."""
    if holder.op_type != "Add":
        return holder
    found = next(v.producer() for v in holder.inputs if v is not None and constant(v) is None)
    assert found is not None
    return found


def _empirical(candidate: Candidate, tools: Tools, targets: dict[str, str]) -> Candidate:
    """Layer by layer, block after block: only what lives between two blocks is held, so that nothing runs twice."""
    graph = Graph(candidate.model, tools.graph.shapes)
    parts = cut(graph, candidate.placement, tools.feeder.batch)
    sample = _sample(tools, graph, parts)
    if not sample:
        return candidate
    feeder = tools.feeder_of(candidate.model)
    names = list(targets)
    float_graph = expose(candidate.model, [])
    exact = _means(float_graph, graph, candidate.model, targets, names, feeder.feeds(sample), simulate=False)
    none = {name: np.zeros(values.shape[1]) for name, values in exact.items()}
    given, corrected = fed(feeder, sample), _corrected(candidate, none)
    model = corrected.quantized(tools.scheme)
    for number, part in enumerate(track(parts, "bias", len(parts))):
        inside = [name for name in part.nodes if name in targets]
        for stage in np.array_split(np.arange(len(inside)), min(len(inside), _STAGES) or 1):
            chosen = [inside[int(n)] for n in stage]
            if chosen:
                got = _streamed(model, graph, targets, chosen, given, tools.feeder.batch)
                corrected = _corrected(corrected, {name: _certain(exact[name] - got[name]) for name in chosen})
                model = _moved(model, corrected, tools.scheme, chosen)
        if inside and number + 1 < len(parts):
            given = evaluate(model, given, alive(graph, parts, number + 1), tools.feeder.batch, simulate=True)
    return corrected


def _moved(model: ir.Model, corrected: Candidate, scheme: Scheme, names: list[str]) -> ir.Model:
    """The candidate's Q/DQ graph: with float biases `model` itself, where only those of the nodes `names` change."""
    if scheme.bias == "int32":  # in steps that the weight's scales decide, and these grow with the bias
        return corrected.quantized(scheme)
    nodes = {node.name: node for node in model.graph}
    for name in names:
        value = next(value for value in reversed(nodes[name].inputs) if constant(value) is not None)
        assert value is not None
        value.const_value = ir.Tensor(corrected.overrides.biases[name], name=value.name)
    return model


def _sample(tools: Tools, graph: Graph, parts: list[Block]) -> list[int]:
    """Images that the effort and the memory for what lives between blocks pay for; whole batches."""
    batch = tools.feeder.batch
    living = [sum(int(np.prod(graph.shapes.get(n, (1,)))) for n in alive(graph, parts, k)) for k in range(len(parts))]
    fit = _HELD_BYTES * batch // (8 * max(1, *living))
    most = max(_LEAST, min(_IMAGES, affordable(tools, _EFFORT) // _PASSES, fit))
    chosen = sample_images(tools, most)
    return chosen[: len(chosen) // batch * batch]


def _certain(differences: np.ndarray) -> np.ndarray:
    """The mean over images (images, channels), less what the few images leave uncertain of it."""
    mean = differences.mean(axis=0)
    doubt = differences.var(axis=0, ddof=1) / len(differences) if len(differences) > 1 else np.zeros_like(mean)
    return np.asarray(mean * np.clip(1.0 - doubt / np.maximum(np.square(mean), 1e-30), 0.0, 1.0), np.float32)


def _streamed(
    model: ir.Model, graph: Graph, targets: dict[str, str], names: list[str], given: Tensors, batch: int
) -> dict[str, np.ndarray]:
    """As `_means`, of the INT8 graph from the tensors of a cut on."""
    part = between(model, list(given), [targets[name] for name in names])
    del part.graph.output[:]
    read = [value.name for value in part.graph.input]
    count = len(next(iter(given.values())))
    feeds = ({name: given[name][start : start + batch] for name in read} for start in range(0, count, batch))
    return _means(part, graph, model, targets, names, feeds, simulate=True)


def _means(
    proto: onnx.ModelProto, graph: Graph, model: ir.Model, targets: dict[str, str], names: list[str],
    feeds: Iterable[Feeds], *, simulate: bool,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Mean output of each channel per inference, (inferences, channels), by node name; `proto` has no outputs yet."""
    operators, own = {node.name or "": node.op_type for node in model.graph}, Names(model.graph).prefix("edgecnn.mean")
    for number, name in enumerate(names):
        rank = len(graph.shapes[targets[name]])
        channel = 1 if operators[name] in ("Conv", "ConvTranspose") else rank - 1
        axes = [axis for axis in range(rank) if axis != channel]
        add_reduction(proto, "ReduceMean", targets[name], f"{own}.{number}", axes, opset(model))
    session = open_session(proto, simulate=simulate)
    rows = [[np.asarray(value, np.float64).reshape(-1) for value in values] for values in run_each(session, feeds)]
    return {name: np.stack([row[number] for row in rows]) for number, name in enumerate(names)}
