"""What one part of a model's quantization does to the model's outputs, everything else left in float.

Errors of different layers hardly interact: their powers at the output add up (the first-order model that HAWQ-V2 and
most mixed-precision searches rest on; Dong et al., NeurIPS 2020). So the noise of a part alone ranks the parts. Weights
enter as the float values of their integers, so the graph runs with every optimization and no INT8 kernel decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgecnn.process.progress import track
from edgecnn.quantize.calibration.auto import signal_and_noise
from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.canonical import add_initializer
from edgecnn.quantize.graph.sessions import open_session, run_each
from edgecnn.quantize.ladder.candidate import Candidate
from edgecnn.quantize.place.placement import Activation, Edge, Placement
from edgecnn.quantize.write.rewrite import rewrite
from edgecnn.quantize.write.weights import IntegerWeight
from edgecnn.recipe.device import Scheme

_IMAGES = 8  # at 224 x 224; of smaller images as many more, which cost the same
_LEAST, _MOST = 4, 256


@dataclass(frozen=True)
class Noise:
    """Error of a graph's outputs on the sampled images.

    Attributes:
        ratios: noise over signal by floating output, powers; of another shape than float's: 1, all is lost.
        answers: int64 (images,): the largest entry of the first output.
    """

    ratios: dict[str, float]
    answers: np.ndarray

    @property
    def mean(self) -> float:
        """Over the outputs, each against its own power."""
        return math.fsum(self.ratios.values()) / max(1, len(self.ratios))


class Reference:
    """The float outputs of a few calibration images, chosen by content, and what other graphs make of them.

    Args:
        feeder: of the float graph.
        most: of images; None: 8 at 224 x 224, as many more of smaller ones up to 256, 4 at least.
    """

    def __init__(self, feeder: Feeder, most: int | None = None) -> None:
        self.sample = feeder.sample(most or min(_MOST, max(_LEAST, round(_IMAGES * 224 * 224 / feeder.pixels))))
        self.feeds = list(feeder.feeds(self.sample))
        self.names = [value.name or "" for value in feeder.model.graph.outputs]
        self.exact = list(run_each(open_session(feeder.model), self.feeds))
        floats = [place for place, values in enumerate(self.exact[0]) if values.dtype.kind == "f"]
        self.floats = {place: self.names[place] for place in floats}
        self.answers = self._answers(self.exact)

    def noise(self, model: ir.Model, *, simulate: bool = False) -> Noise:
        """Of a graph with the same outputs; `simulate` as `open_session` has it."""
        signals: dict[str, list[float]] = {name: [] for name in self.floats.values()}
        noises: dict[str, list[float]] = {name: [] for name in self.floats.values()}
        outputs = []
        for wanted, got in zip(self.exact, run_each(open_session(model, simulate=simulate), self.feeds), strict=True):
            for place, name in self.floats.items():
                signal, noise = signal_and_noise(wanted[place], got[place])
                signals[name].append(signal)
                noises[name].append(noise)
            outputs.append(got)
        powers = {name: math.fsum(each) for name, each in signals.items()}
        ratios = {name: math.fsum(noises[name]) / power if power > 0.0 else 0.0 for name, power in powers.items()}
        return Noise(ratios, self._answers(outputs))

    def _answers(self, outputs: list[list[np.ndarray]]) -> np.ndarray:
        each = [_largest(got[0], len(next(iter(feed.values())))) for got, feed in zip(outputs, self.feeds, strict=True)]
        return np.concatenate(each or [np.zeros(0, np.int64)])[: len(self.sample)]


def _largest(output: np.ndarray, batch: int) -> np.ndarray:
    """(batch,) where each image's largest entry is; of an output without the batch in front, one place for all."""
    rows = output.reshape(batch, -1) if output.shape[:1] == (batch,) else output.reshape(1, -1)
    return np.broadcast_to(rows.argmax(1) if rows.size else np.asarray([-1]), (batch,))


@dataclass(frozen=True)
class Part:
    """Some of a placement: edges that go through Q/DQ, and INT8 weights."""

    activations: tuple[Activation, ...]
    weights: tuple[str, ...]  # node names


def difference(whole: Placement, less: Placement) -> Part:
    """What `whole` quantizes and `less` does not."""
    kept = {edge for activation in less.activations for edge in activation.edges}
    tensors = {activation.tensor for activation in less.activations}
    activations = []
    for activation in whole.activations:
        edges = tuple(edge for edge in activation.edges if edge not in kept)
        if edges or (not activation.edges and activation.tensor not in tensors):
            activations.append(replace(activation, edges=edges))
    return Part(tuple(activations), tuple(sorted(whole.int8_layers - less.int8_layers)))


def of_edges(placement: Placement, edges: Iterable[Edge], weights: Iterable[str] = ()) -> Part:
    """The part of these edges and of these nodes' weights."""
    wanted = set(edges)
    activations = []
    for activation in placement.activations:
        chosen = tuple(edge for edge in activation.edges if edge in wanted)
        if chosen:
            activations.append(replace(activation, edges=chosen))
    return Part(tuple(activations), tuple(weights))


def partly(candidate: Candidate, scheme: Scheme, part: Part, integers: dict[str, IntegerWeight]) -> ir.Model:
    """The candidate's float graph with only this part quantized; biases are the graph's own.

    Args:
        integers: by weight tensor, as `noise_split.integer_weights` gives them.
    """
    copy = ir.serde.deserialize_model(ir.serde.serialize_model(candidate.model))
    nodes = {node.name: node for node in copy.graph}
    for weight in candidate.placement.weights:
        if weight.node in part.weights:
            restored = add_initializer(copy.graph, f"{weight.tensor}_restored", integers[weight.tensor].restored())
            nodes[weight.node].replace_input_with(weight.index, restored)
    return rewrite(copy, Placement(part.activations, ()), candidate.grids(scheme), scheme)


def noises(
    reference: Reference, candidate: Candidate, scheme: Scheme, parts: list[Part], integers: dict[str, IntegerWeight],
    name: str,
) -> list[Noise]:  # fmt: skip
    """The noise of each part alone; one pass over the few images each. An empty part has none."""
    return [reference.noise(partly(candidate, scheme, part, integers)) for part in track(parts, name)]
