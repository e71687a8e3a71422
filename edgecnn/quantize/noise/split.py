"""How much of a candidate's output error comes from its weights, and how much from its activations.

Both parts are measured alone, in float simulation: weights restored from their integers in the float graph, and Q/DQ on
activations around float weights. Where the errors do not interact, their powers add up to that of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgecnn.measure.stats import decibel
from edgecnn.process.progress import track
from edgecnn.quantize.calibration.auto import signal_and_noise
from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.graph.sessions import open_session, run_each
from edgecnn.quantize.ladder.candidate import Candidate
from edgecnn.quantize.write.rewrite import Overrides, rewrite
from edgecnn.quantize.write.weights import IntegerWeight, integer_weight
from edgecnn.recipe.device import Scheme


@dataclass(frozen=True)
class Split:
    """SQNR in dB of the model's outputs with everything, only weights, and only activations quantized."""

    whole: float
    weights: float
    activations: float


def noise_split(candidate: Candidate, scheme: Scheme, reference: ir.Model, feeder: Feeder, sample: list[int]) -> Split:
    """Measure the three on the sampled images of `feeder`, against the float graph `reference`."""
    models = (candidate.quantized(scheme), only_weights(candidate, scheme), only_activations(candidate, scheme))
    return Split(*sqnr_of(models, reference, feeder, sample))


def sqnr_of(models: Sequence[ir.Model], reference: ir.Model, feeder: Feeder, sample: list[int]) -> list[float]:
    """Output SQNR in dB of float-simulated graphs against the float one, over the sampled images, all outputs."""
    feeds = list(feeder.feeds(sample))
    exact = list(run_each(open_session(reference), feeds))
    found = []
    for number, model in enumerate(models):
        signal, noise = [], []
        outputs = track(run_each(open_session(model, simulate=True), feeds), f"compare {number + 1}", len(feeds))
        for want, got in zip(exact, outputs, strict=True):
            for a, b in zip(want, got, strict=True):
                one, other = signal_and_noise(a, b)
                signal.append(one)
                noise.append(other)
        found.append(decibel(math.fsum(signal), math.fsum(noise)))
    return found


def only_weights(candidate: Candidate, scheme: Scheme) -> ir.Model:
    """The float graph with the weights that the INT8 layers compute with, and overridden biases."""
    copy = ir.serde.deserialize_model(ir.serde.serialize_model(candidate.model))
    bare = rewrite(copy, replace(candidate.placement, activations=(), weights=()), {}, scheme, candidate.overrides)
    integers = integer_weights(candidate, scheme)
    for name, integer in integers.items():
        value = bare.graph.initializers[name]
        value.const_value = ir.tensor(integer.restored(), name=name)
    return bare


def only_activations(candidate: Candidate, scheme: Scheme) -> ir.Model:
    """Q/DQ on activations, float weights; overridden biases belong to the weights and stay away."""
    placement = replace(candidate.placement, weights=())
    return rewrite(candidate.model, placement, candidate.grids(scheme), scheme, Overrides())


def integer_weights(candidate: Candidate, scheme: Scheme) -> dict[str, IntegerWeight]:
    """The integers of every INT8 weight by tensor name: overridden ones, else rounded to nearest as `rewrite` does."""
    nodes = {node.name: node for node in candidate.model.graph}
    inputs = {edge.node: a.tensor for a in candidate.placement.activations for edge in a.edges if edge.index == 0}
    grids = candidate.grids(scheme)
    found: dict[str, IntegerWeight] = {}
    for weight in candidate.placement.weights:
        if weight.tensor in found:
            continue
        integer = candidate.overrides.weights.get(weight.tensor)
        if integer is None:
            node = nodes[weight.node]
            array = constant(node.inputs[weight.index])
            assert array is not None
            bias = candidate.overrides.biases.get(weight.node)
            if bias is None and weight.bias is not None:
                bias = constant(node.inputs[weight.bias])
            integer = integer_weight(weight.tensor, array, weight.axis, scheme, bias, grids[inputs[weight.node]].scale)
        found[weight.tensor] = integer
    return found
