"""What the quantizer tells: the metadata in the delivered graph, and quantize.json beside it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import onnx_ir as ir

from edgecnn import __version__
from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.graph.macs import layers_in
from edgecnn.quantize.ladder.candidate import Candidate, Tools
from edgecnn.quantize.ladder.ladder import Climb
from edgecnn.quantize.noise.layers import IMAGES as LAYER_IMAGES
from edgecnn.quantize.noise.outputs import Told
from edgecnn.quantize.place.coverage import coverage
from edgecnn.quantize.place.placement import LAYERS
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.recipe import RungName


def metadata(tools: Tools, climbed: Climb) -> str:
    """The JSON under `edgecnn.quantize` in the ONNX file: scheme, calibration, rungs, and every tensor's range."""
    counted = climbed.counted
    return json.dumps(
        {
            "version": 1,
            "edgecnn": __version__,
            "scheme": tools.scheme.model_dump(),
            "ranges": tools.ranges,
            "rungs": climbed.candidate.rungs,
            "calibration": {"images": counted.images, "digest": counted.digest},
            "tensors": tensors(climbed.candidate, tools.scheme),
        },
        sort_keys=True,
    )


def tensors(candidate: Candidate, scheme: Scheme) -> list[dict[str, Any]]:
    """Range, scale and zero-point of every activation, in the order of the placement."""
    grids = candidate.grids(scheme)
    return [
        {
            "name": activation.tensor,
            "method": candidate.methods[activation.tensor],
            "low": candidate.ranges[activation.tensor][0],
            "high": candidate.ranges[activation.tensor][1],
            "scale": grids[activation.tensor].scale,
            "zero_point": grids[activation.tensor].zero_point,
        }
        for activation in candidate.placement.activations
    ]


def report(
    tools: Tools, climbed: Climb, stop_at: RungName, quantized: ir.Model, layer_db: dict[str, float], told: Told
) -> dict[str, Any]:
    """quantize.json; `layer_db`: SQNR of each layer's output by node name."""
    candidate, counted, graph = climbed.candidate, climbed.counted, tools.graph
    counts = {"QuantizeLinear": 0, "DequantizeLinear": 0}
    for node in quantized.graph:
        if node.op_type in counts:
            counts[node.op_type] += 1
    layers = []
    for layer in (layer for node in graph.nodes() for layer in layers_in(node, graph.shape)):
        weight = layer.outer.inputs[1] if layer.op in LAYERS and not layer.inside else None
        layers.append({
            "name": layer.name,
            "op": layer.op,
            "weight": weight.name if weight is not None and constant(weight) is not None else None,
            "macs": layer.macs // counted.batch,
            "int8": layer.name in candidate.placement.int8_layers,
            "why_float": candidate.placement.why_float.get(layer.name),
            "sqnr_db": layer_db.get(layer.name),
        })  # fmt: skip
    return {
        "scheme": tools.scheme.model_dump(),
        "ranges": tools.ranges,
        "calibration": {
            "images": counted.images,
            "digest": counted.digest,
            "batch": counted.batch,
            "seconds": round(counted.seconds, 3),
        },
        "coverage": asdict(coverage(graph, candidate.placement)),
        "qdq": {"quantize_linear": counts["QuantizeLinear"], "dequantize_linear": counts["DequantizeLinear"]},
        "ladder": [step.as_json() for step in climbed.rungs],
        "recovery": {
            "budget": tools.budget,
            "state": climbed.state,
            "best": climbed.best.rung,
            "stop_at": stop_at,
            "judged": tools.judge.how if tools.judge else "",
            "notes": [*climbed.notes, *candidate.notes],
        },
        "layers": layers,
        "tensors": tensors(candidate, tools.scheme),
        "layer_images": min(LAYER_IMAGES, counted.images),
        **told.as_json(),
    }
