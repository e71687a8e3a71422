"""THE PAGE: the stages of a build, in order. A stage that is not on this page does not exist."""

from __future__ import annotations

import re
from pathlib import Path

from edgecnn.families.export import export
from edgecnn.needs import check_calibration
from edgecnn.process.errors import EdgeError
from edgecnn.quantize import quantize, suppress, typed_float
from edgecnn.recipe.device import kernels
from edgecnn.recipe.load import load_device
from edgecnn.recipe.recipe import Recipe
from edgecnn.report import CompiledFor, Report, read_report
from edgecnn.store.stage import Artifact, Store
from edgecnn.targets.hosts import HERE
from edgecnn.targets.score import score_reference
from edgecnn.targets.target import Target, connect
from edgecnn.tasks.prepare import prepare, watch
from edgecnn.training import train
from edgecnn.verdict.evidence import Evidence
from edgecnn.verdict.gate import verdict


def float_model(recipe: Recipe, store: Store) -> tuple[Artifact, Artifact, Artifact]:
    """Labelled images → (data, trained network, float ONNX). Nothing here depends on a device."""
    data = store.stage("data", prepare, recipe.data, recipe.model.image_size, watch(recipe.data))
    check_calibration(recipe.quantize, data)
    teacher = store.stage("teacher", train, recipe.teacher, recipe.data, data, None) if recipe.teacher else None
    model = store.stage("train", train, recipe.student, recipe.data, data, teacher)
    plain = store.stage("export", export, recipe.graph, recipe.model, model)
    return data, model, plain


def int8_model(
    recipe: Recipe, target: Target, store: Store, data: Artifact, model: Artifact, plain: Artifact, *, at: str = ""
) -> Artifact:
    """Float ONNX → INT8 for one device: the quantizer and its recovery ladder; suppressing where the recipe asks."""
    int8 = store.stage(
        "quantize" + at, quantize, recipe.quantize, recipe.promise, target.scheme, kernels(target.scheme, target.facts),
        recipe.student, recipe.data, plain, model, data,
    )  # fmt: skip
    return store.stage("nms-int8" + at, suppress, recipe.suppression, int8) if recipe.suppression else int8


def build(recipe: Recipe, target: Target, store: Store) -> tuple[Report, Evidence]:
    """Take one recipe from labelled images to a verdict on one device."""
    data, model, plain = float_model(recipe, store)
    int8 = int8_model(recipe, target, store, data, model, plain)
    typed = store.stage("float", typed_float, target.scheme, plain, data)  # FP16-typed for TensorRT
    floats = store.stage("nms-float", suppress, recipe.suppression, typed) if recipe.suppression else typed
    base = store.stage("compile-float", target.compile, target.profile, target.facts, floats)
    engine = store.stage("compile-int8", target.compile, target.profile, target.facts, int8)
    reference = store.stage("score-reference", score_reference, recipe.score, plain, data)  # FP32, onnxruntime, here
    before = store.stage("score-float", target.score, recipe.score, target.facts, base, data)
    after = store.stage("score-int8", target.score, recipe.score, target.facts, engine, data)
    speed = store.measure("speed", target.time_pairs, recipe.bench, target.facts, base, engine)
    evidence = Evidence(data, plain, int8, base, engine, reference, before, after, speed)
    report = store.stage("verdict", verdict, recipe, target.profile, target.facts, *evidence.artifacts())
    return read_report(report.path), evidence


def compile_beside(recipe: Recipe, name: str, store: Store) -> tuple[CompiledFor, Artifact | None]:
    """Make the INT8 engine of a further device, or check it where it can't be made; no verdict. Failure is a result."""
    profile = load_device(name)
    name, at = profile.name, f"@{profile.name}"  # a device file may have been given by its path
    data, model, plain = float_model(recipe, store)
    try:
        target = connect(profile, HERE.of(profile))
        int8 = int8_model(recipe, target, store, data, model, plain, at=at)
        engine = store.stage("compile-int8" + at, target.compile, target.profile, target.facts, int8)
    except EdgeError as error:
        return CompiledFor.failed(name, str(error)), None
    return CompiledFor.from_engine(engine.path, int8.path), engine


def stage_names() -> tuple[str, ...]:
    """The names that `--until` takes, as they stand on this page."""
    return tuple(dict.fromkeys(re.findall(r'store\.(?:stage|measure)\(\s*"([^"]+)"', Path(__file__).read_text())))
