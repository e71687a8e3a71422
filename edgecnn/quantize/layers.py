"""Quantization error per layer, in one pass over a few calibration images: float against float-simulated INT8."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgecnn.progress import track
from edgecnn.quantize.auto import decibel
from edgecnn.quantize.calibrate import Feeder
from edgecnn.quantize.placement import LAYERS, Graph
from edgecnn.quantize.sessions import expose, open_session, run_each

IMAGES = 8


@dataclass(frozen=True)
class Errors:
    """SQNR in dB of each MAC layer's output by node name, and of the model's outputs; share of equal answers."""

    layers: dict[str, float]
    outputs: float
    agreement: float


def layer_errors(feeder: Feeder, graph: Graph, quantized: ir.Model, sample: list[int]) -> Errors:
    """Compare every MAC layer's output and the model's outputs, with all quantization before them in place."""
    watched = {node.name or "": node.outputs[0].name or "" for node in graph.nodes() if node.op_type in LAYERS}
    present = {value.name for node in quantized.graph for value in node.outputs}
    watched = {node: tensor for node, tensor in watched.items() if tensor in present}
    outputs = [value.name or "" for value in graph.model.graph.outputs]
    names = list(dict.fromkeys([*watched.values(), *outputs]))
    exact_session = open_session(expose(graph.model, names))
    session = open_session(expose(quantized, names), simulate=True)
    signal: dict[str, list[float]] = {name: [] for name in names}
    noise: dict[str, list[float]] = {name: [] for name in names}
    equal: list[bool] = []
    feeds = list(feeder.feeds(sample))
    pairs = zip(run_each(exact_session, feeds), run_each(session, feeds), strict=True)
    for wanted, got in track(pairs, "layer errors", len(feeds)):
        for name, a, b in zip(names, wanted, got, strict=True):
            signal[name].append(_power(a))
            noise[name].append(_power(a - b))
            if name == outputs[0]:
                equal.extend((a.reshape(len(a), -1).argmax(1) == b.reshape(len(b), -1).argmax(1)).tolist())
    found = {name: decibel(math.fsum(signal[name]), math.fsum(noise[name])) for name in names}
    whole_signal = math.fsum(x for name in outputs for x in signal[name])
    whole_noise = math.fsum(x for name in outputs for x in noise[name])
    return Errors(
        {node: found[tensor] for node, tensor in watched.items()},
        decibel(whole_signal, whole_noise),
        float(np.mean(equal)),
    )


def _power(values: np.ndarray) -> float:
    flat = values.reshape(-1)
    return float(np.vdot(flat, flat))
