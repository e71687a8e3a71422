"""Quantization error per layer, in one pass over a few calibration images: float against float-simulated INT8."""

from __future__ import annotations

import math

import onnx_ir as ir

from edgecnn.measure.stats import decibel
from edgecnn.process.progress import track
from edgecnn.quantize.calibration.auto import signal_and_noise
from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.sessions import expose, open_session, run_each
from edgecnn.quantize.place.placement import LAYERS, Graph

IMAGES = 8


def layer_errors(feeder: Feeder, graph: Graph, quantized: ir.Model, sample: list[int]) -> dict[str, float]:
    """SQNR in dB of each MAC layer's output by node name, with all quantization before it in place; powers summed."""
    watched = {node.name or "": node.outputs[0].name or "" for node in graph.nodes() if node.op_type in LAYERS}
    present = {value.name for node in quantized.graph for value in node.outputs}
    watched = {node: tensor for node, tensor in watched.items() if tensor in present}
    names = list(dict.fromkeys(watched.values()))
    if not names:
        return {}
    feeds = list(feeder.feeds(sample))
    exact = run_each(open_session(expose(graph.model, names)), feeds)
    simulated = run_each(open_session(expose(quantized, names), simulate=True), feeds)
    signal: dict[str, list[float]] = {name: [] for name in names}
    noise: dict[str, list[float]] = {name: [] for name in names}
    for wanted, got in track(zip(exact, simulated, strict=True), "layer errors", len(feeds)):
        for name, a, b in zip(names, wanted, got, strict=True):
            one, other = signal_and_noise(a, b)
            signal[name].append(one)
            noise[name].append(other)
    return {node: decibel(math.fsum(signal[tensor]), math.fsum(noise[tensor])) for node, tensor in watched.items()}
