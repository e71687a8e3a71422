"""One model through the quantizer: canonical graph, placement, calibration, ranges, rewrite, what it cost."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgecnn import __version__, progress
from edgecnn.device import Scheme
from edgecnn.io_contract import IoContract
from edgecnn.quantize.auto import Chosen, automatic, by_method
from edgecnn.quantize.calibrate import Calibration, Feeder, ImageSource, calibrate
from edgecnn.quantize.canonical import TYPED_OPSET, canonical, constant, opset
from edgecnn.quantize.coverage import coverage, macs
from edgecnn.quantize.layers import IMAGES as LAYER_IMAGES
from edgecnn.quantize.layers import Errors, layer_errors
from edgecnn.quantize.placement import LAYERS, Graph, Placement, place
from edgecnn.quantize.rewrite import Grids, rewrite, serialized
from edgecnn.quantize.sessions import observe
from edgecnn.quantize.typed import typed
from edgecnn.quantize.weights import require_finite
from edgecnn.recipe import QuantizeSpec

_OBSERVED = 2  # images for shapes and for the extremes of tensors that calibration does not count


def quantize_file(
    out: Path, spec: QuantizeSpec, scheme: Scheme, model: Path, images: ImageSource, contract: IoContract
) -> None:
    """Write model.onnx, typed.onnx (with FP16 islands) and quantize.json under `out`; see `quantize_model`."""
    spec.require_images(len(images))
    float_model = canonical(model)
    feeder = Feeder(float_model, contract, images, spec.images)
    sample = feeder.sample(LAYER_IMAGES)
    shapes, bounds = observe(float_model, list(feeder.feeds(sample[:_OBSERVED])))
    graph = Graph(float_model, shapes)
    placement = place(graph, scheme, spec.keep_float)
    for weight in placement.weights:
        require_finite(weight.tensor, float_model.graph.initializers[weight.tensor].const_value.numpy())
    calibration = calibrate(feeder, [activation.tensor for activation in placement.counted])
    if spec.ranges == "auto":
        chosen = automatic(feeder, placement, calibration, scheme)
    else:
        chosen = by_method(spec.ranges, placement, calibration, scheme)
    grids = chosen.grids(placement, scheme)
    quantized = rewrite(float_model, placement, grids, scheme)
    tensors = _tensors(placement, chosen, grids)
    metadata = json.dumps(
        {
            "version": 1,
            "edgecnn": __version__,
            "scheme": scheme.model_dump(),
            "ranges": spec.ranges,
            "calibration": {"images": calibration.images, "digest": calibration.digest},
            "tensors": tensors,
        },
        sort_keys=True,
    )
    (out / "model.onnx").write_bytes(serialized(quantized, metadata))
    islands: list[str] = []
    if scheme.islands == "float16" and opset(float_model) >= TYPED_OPSET:
        for histogram_name, histogram in calibration.histograms.items():
            bounds[histogram_name] = max(bounds.get(histogram_name, 0.0), histogram.bound)
        halves, islands = typed(quantized, bounds)
        (out / "typed.onnx").write_bytes(serialized(halves, metadata))
        for island in islands:
            progress.current().note(f"stays FP32: {island}")
    errors = layer_errors(feeder, graph, quantized, sample)
    report = _report(spec, scheme, graph, placement, calibration, quantized, errors, tensors)
    report["float_islands"] = islands
    (out / "quantize.json").write_text(json.dumps(report, indent=1))


def typed_file(out: Path, scheme: Scheme, model: Path) -> None:
    """Write model.onnx (a copy) and, with FP16 islands, typed.onnx without Q/DQ under `out`."""
    (out / "model.onnx").write_bytes(model.read_bytes())
    if scheme.islands == "float16":
        halves, islands = typed(canonical(model), {})
        (out / "typed.onnx").write_bytes(serialized(halves))
        for island in islands:
            progress.current().note(f"stays FP32: {island}")


def _tensors(placement: Placement, chosen: Chosen, grids: Grids) -> list[dict[str, Any]]:
    return [
        {
            "name": activation.tensor,
            "method": chosen.methods[activation.group],
            "low": chosen.ranges[activation.group][0],
            "high": chosen.ranges[activation.group][1],
            "scale": grids[activation.tensor].scale,
            "zero_point": grids[activation.tensor].zero_point,
        }
        for activation in placement.activations
    ]


def _report(
    spec: QuantizeSpec, scheme: Scheme, graph: Graph, placement: Placement, calibration: Calibration,
    quantized: ir.Model, errors: Errors, tensors: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    counts = {"QuantizeLinear": 0, "DequantizeLinear": 0}
    for node in quantized.graph:
        if node.op_type in counts:
            counts[node.op_type] += 1
    layers = []
    for node in graph.nodes():
        if node.op_type not in LAYERS:
            continue
        name = node.name or ""
        layers.append({
            "name": name,
            "op": node.op_type,
            "weight": node.inputs[1].name if constant(node.inputs[1]) is not None else None,
            "macs": macs(node, graph) // calibration.batch,
            "int8": name in placement.int8_layers,
            "why_float": placement.why_float.get(name),
            "sqnr_db": errors.layers.get(name),
        })  # fmt: skip
    return {
        "scheme": scheme.model_dump(),
        "ranges": spec.ranges,
        "calibration": {
            "images": calibration.images,
            "digest": calibration.digest,
            "batch": calibration.batch,
            "seconds": round(calibration.seconds, 3),
        },
        "coverage": asdict(coverage(graph, placement)),
        "qdq": {"quantize_linear": counts["QuantizeLinear"], "dequantize_linear": counts["DequantizeLinear"]},
        "layers": layers,
        "tensors": tensors,
        "sqnr_db": errors.outputs,
        "agreement": errors.agreement,
        "compared_images": min(LAYER_IMAGES, calibration.images),
    }
