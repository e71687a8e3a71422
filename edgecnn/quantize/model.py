"""One model through the quantizer: canonical graph, placement, calibration, the recovery ladder, what it cost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx_ir as ir

from edgecnn.process import progress
from edgecnn.process.errors import EdgeError
from edgecnn.quantize.calibration.arrays import NamedArrays
from edgecnn.quantize.calibration.calibrate import Feeder, ImageSource
from edgecnn.quantize.calibration.magnitudes import magnitudes
from edgecnn.quantize.graph.canonical import TYPED_OPSET, canonical, opset, runnable
from edgecnn.quantize.graph.ends import Ends
from edgecnn.quantize.graph.same import IMAGES as COMPARED
from edgecnn.quantize.graph.same import require_same
from edgecnn.quantize.graph.sessions import observe, open_session, run_each
from edgecnn.quantize.ladder.candidate import Judge, Network, Tools, bounds_of
from edgecnn.quantize.ladder.judge import Selected, SelectJudge
from edgecnn.quantize.ladder.ladder import Climb, climb
from edgecnn.quantize.ladder.record import metadata, report
from edgecnn.quantize.noise.layers import IMAGES as LAYER_IMAGES
from edgecnn.quantize.noise.layers import layer_errors
from edgecnn.quantize.noise.outputs import told as told_outputs
from edgecnn.quantize.place.placement import Graph, Shapes, place
from edgecnn.quantize.write.repeats import delivered
from edgecnn.quantize.write.rewrite import serialized
from edgecnn.quantize.write.typed_check import CLEAN_DB, CLEAN_FLOAT_DB, LEAST, PIXELS, Reference, TypedFile, checked
from edgecnn.quantize.write.typed_check import IMAGES as TYPED_IMAGES
from edgecnn.quantize.write.weights import require_finite
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.io_contract import IoContract
from edgecnn.recipe.recipe import Promise, QuantizeSpec

_OBSERVED = 4  # images for shapes and for the extremes of tensors that calibration does not count


def quantize_file(
    out: Path, spec: QuantizeSpec, scheme: Scheme, model: Path, images: ImageSource | NamedArrays,
    contract: IoContract | None, *,
    promise: Promise, selected: Selected | None, held: ImageSource | NamedArrays | None, kernels: str,
    network: Network | None, folder: Path,
) -> None:  # fmt: skip
    """Write model.onnx, typed.onnx (with FP16 islands) and quantize.json under `out`; see `quantize_model`."""
    spec = _settled(spec, len(images))
    if promise.max_accuracy_drop is not None and selected is None:
        raise EdgeError(
            "an accuracy budget needs labelled images beside the calibration images, and there are none",
            "give labels, or leave the budget out",
        )
    float_model, ends = canonical(model), Ends.of(model)
    feeder = Feeder(float_model, contract, images, spec.images)
    sample = feeder.sample(LAYER_IMAGES)
    require_same(model, float_model, list(feeder.feeds(sample[:COMPARED])))
    shapes, bounds = observe(float_model, list(feeder.feeds(sample[:_OBSERVED])))
    graph = Graph(float_model, shapes)
    placement = place(graph, scheme, spec.keep_float)
    for weight in placement.weights:
        require_finite(weight.tensor, float_model.graph.initializers[weight.tensor].const_value.numpy())
    judge: Judge | None = None
    if promise.max_accuracy_drop is not None and contract is None:
        raise EdgeError("an accuracy budget needs images, and the model is fed arrays", "leave the budget out")
    if promise.max_accuracy_drop is not None and selected is not None and contract is not None:
        judge = SelectJudge(
            float_model, contract, selected, promise.score, scheme, most=spec.select_images, kernels=kernels
        )
    tools = Tools(
        scheme, graph, feeder, spec.ranges, folder, judge=judge, budget=promise.max_accuracy_drop, network=network,
        effort=spec.effort,
    )  # fmt: skip
    climbed = climb(tools, placement, stop_at=spec.stop_at, asked=spec.recover != "auto")
    candidate = climbed.candidate
    quantized = candidate.quantized(scheme)
    told = metadata(tools, climbed)
    (out / "model.onnx").write_bytes(serialized(delivered(quantized, scheme), told, ends))
    half: TypedFile | None = None
    if scheme.islands == "float16" and opset(float_model) >= TYPED_OPSET:
        largest = _bounds(tools, climbed, bounds)
        half = _typed(out, model, quantized, tools.feeder_of(candidate.model), shapes, largest, CLEAN_DB, told)
    # Layers against the candidate's own float graph, whose tensors may be scaled; outputs against the given one.
    layer_db = layer_errors(feeder, Graph(candidate.model, graph.shapes), quantized, sample)
    outputs = told_outputs(feeder, held, quantized, classes=contract is None or contract.task == "classify")
    document = {
        **report(tools, climbed, spec.stop_at, quantized, layer_db, outputs),
        "float_islands": _told(half) if half else [],
        "typed": half.as_json() if half else None,
    }
    (out / "quantize.json").write_text(json.dumps(document, indent=1))
    shutil.rmtree(folder, ignore_errors=True)


def typed_file(out: Path, model: Path, images: ImageSource, contract: IoContract) -> None:
    """Write typed.onnx, a float file with FP16 islands, and typed.json under `out`."""
    graph = canonical(model)
    feeder = Feeder(graph, contract, images, len(images))
    shapes, largest = observe(graph, list(feeder.feeds(feeder.sample(TYPED_IMAGES))))
    half = _typed(out, model, graph, feeder, shapes, largest, CLEAN_FLOAT_DB)
    (out / "typed.json").write_text(json.dumps({**half.as_json(), "float_islands": _told(half)}, indent=1))


def _settled(spec: QuantizeSpec, have: int) -> QuantizeSpec:
    """The spec with as many images as there are, where their number is not typed; it is said where they are fewer."""
    settled = spec.with_images(have)
    if settled.images < spec.images:
        progress.current().note(
            f"quantize: {have} images calibrate, all that there are (up to {spec.images} by default)"
        )
    return settled


def _typed(
    out: Path, given: Path, graph: ir.Model, feeder: Feeder, shapes: Shapes, largest: dict[str, float],
    clean_db: float, metadata: str | None = None,
) -> TypedFile:  # fmt: skip
    """Write typed.onnx of a float or Q/DQ graph, proved in FP16 arithmetic on a few images.

    Args:
        given: the user's float file, which its outputs are held to.
        feeder: of the float graph whose tensors `shapes` and `largest` tell of.
    """
    chosen = feeder.sample(max(LEAST, min(TYPED_IMAGES, PIXELS // feeder.pixels)))
    feeds = list(feeder.feeds(chosen))
    names = [value.name or "" for value in graph.graph.outputs]
    try:
        exact = list(run_each(open_session(runnable(given)), feeds))
    except EdgeError:  # said before: onnxruntime can run only the canonical graph
        exact = list(run_each(open_session(feeder.model), feeds))
    single = list(run_each(open_session(graph, simulate=True), feeds))
    measured = magnitudes(feeder.model, feeds, largest, shapes)
    found = checked(graph, measured, Reference(feeds, len(chosen), names, exact, single, clean_db))
    (out / "typed.onnx").write_bytes(serialized(found.model, metadata, Ends.of(given)))
    for island in _told(found):
        progress.current().note(f"stays FP32: {island}")
    return found


def _told(half: TypedFile) -> list[str]:
    return [f"{name}: {why}" for name, why in half.islands.items()]


def _bounds(tools: Tools, climbed: Climb, observed: dict[str, float]) -> dict[str, float]:
    """Largest magnitude by tensor: what calibration counted, and of the other tensors what a few images showed."""
    model, counted = climbed.candidate.model, climbed.counted.bounds
    if model is not tools.graph.model:  # a rung scaled its tensors
        feeder = tools.feeder_of(model)
        _, observed = observe(model, list(feeder.feeds(feeder.sample(_OBSERVED))))
        counted = bounds_of(model, list(counted), tools)
    return {name: max(observed.get(name, 0.0), counted.get(name, 0.0)) for name in {*observed, *counted}}
