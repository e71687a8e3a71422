"""Budgets into verdicts: each check passes or fails only where the bounds support it."""

from __future__ import annotations

from pathlib import Path

from edgecnn import __version__
from edgecnn.measure import stats
from edgecnn.measure.latency_rule import MIN_PAIRS
from edgecnn.process.disk import write_file
from edgecnn.recipe.device import DeviceFacts, DeviceProfile
from edgecnn.recipe.recipe import Budgets, Recipe
from edgecnn.report import Check, Conditions, Report, State, as_json, now
from edgecnn.store.stage import Artifact
from edgecnn.verdict.accuracy_checks import accuracy_check, least_check, mark_simulated, nothing_proved
from edgecnn.verdict.board_figures import board_notes, boards_text
from edgecnn.verdict.evidence import Evidence, Measured, read_evidence
from edgecnn.verdict.figures import all_figures, distribution, ladder, timing_text

MIN_P99_QUERIES = 1024
NOISY = 0.05  # distance of the undisturbed runs' speed-up from that of the median pair


def judge(recipe: Recipe, profile: DeviceProfile, facts: DeviceFacts, evidence: Evidence, *, run: str = "") -> Report:
    """Decide a build's budgets from its evidence.

    Raises:
        EdgeError: an artifact is damaged, or the scores are not of the same images.
    """
    measured = read_evidence(evidence)
    float_name = "FP16" if profile.scheme.islands == "float16" else "FP32"
    figures = all_figures(measured, float_name)
    return Report(
        recipe=recipe.name,
        run=run,
        device=profile.name,
        when=now(),
        edgecnn=__version__,
        metric=recipe.score.metric,
        data_digest=measured.data_digest,
        conditions=_conditions(recipe, facts, measured),
        checks=(_engine(measured), *nothing_proved(measured), *_budgets(recipe.budgets, measured)),
        figures=figures,
        classes=measured.task.class_figures(measured.compared, measured.classes),
        layers=measured.layers,
        ladder=ladder(measured.quantize),
        distribution=distribution(measured.float_ms, measured.int8_ms, float_name, "INT8"),
        warnings=measured.quantize.warnings,
        notes=_notes(profile, facts, measured, {figure.name: figure.value for figure in figures}),
        **measured.task.parts(measured.compared, measured.classes),
    )


def verdict(
    out: Path, recipe: Recipe, profile: DeviceProfile, facts: DeviceFacts, *evidence: Artifact
) -> None:  # fmt: skip
    """Stage: `judge` as report.json; `evidence` in the order of Evidence's fields."""
    write_file(out / "report.json", as_json(judge(recipe, profile, facts, Evidence(*evidence))).encode())


def _engine(measured: Measured) -> Check:
    engine = measured.engine
    refused = [check for check in engine.checks if check.passed is False]
    if refused:
        detail = "; ".join(f"{check.name}: {check.detail}" for check in refused)
        return Check(name="engine", state="fail", detail=detail)
    if engine.built and engine.runnable:
        return Check(name="engine", state="pass", detail=_engine_note(measured))
    done = [f"{check.name}: {'passed' if check.passed else check.detail}" for check in engine.checks]
    return Check(name="engine", state="incomplete", detail="; ".join([_engine_note(measured), *done]))


def _engine_note(measured: Measured) -> str:
    """What became of the INT8 engine, in the words of its stage where it has any."""
    engine = measured.engine
    if engine.note:
        return engine.note.removeprefix("engine: ")
    if engine.built:
        return "built and run on the device" if engine.runnable else "built, not run (no device)"
    return "not built (no board)"


def _budgets(budgets: Budgets, measured: Measured) -> list[Check]:
    checks = []
    if budgets.max_accuracy_drop is not None:
        check = mark_simulated(accuracy_check(measured, budgets.max_accuracy_drop), measured)
        checks.append(check)
        if (missed := _recovery(measured, budgets.max_accuracy_drop, check.state)) is not None:
            checks.append(missed)
    if budgets.min_accuracy is not None:
        checks.append(mark_simulated(least_check(measured, budgets.min_accuracy), measured))
    if budgets.min_speedup is not None:
        checks.append(_speedup(budgets.min_speedup, measured))
    if budgets.max_p99_ms is not None:
        checks.append(_p99(budgets.max_p99_ms, measured))
    if budgets.max_size_mb is not None:
        megabytes = measured.int8_bytes / 1e6
        state: State = "pass" if megabytes <= budgets.max_size_mb else "fail"
        size = Check(
            name="max_size_mb", state=state, measured=megabytes, limit=budgets.max_size_mb, unit="MB",
            detail="INT8 ONNX file, 10^6 bytes",
        )  # fmt: skip
        checks.append(size)
    return checks


def _recovery(measured: Measured, limit: float, scored: State) -> Check | None:
    """A failed check where no rung of the ladder came below the budget on select; a proof on scored stands above it."""
    recovery, rungs = measured.quantize.recovery, measured.quantize.ladder
    best = next((rung for rung in rungs if rung.rung == recovery.best and rung.kept), None)
    if recovery.state != "missed" or scored == "pass" or best is None:
        return None
    assert best.drop is not None
    assert best.lower is not None
    assert best.upper is not None
    return Check(
        name="recovery", state="fail", measured=100 * best.drop, lower=100 * best.lower, upper=100 * best.upper,
        limit=100 * limit, unit="points",
        detail=f"no rung up to `{rungs[-1].rung}` holds the accuracy budget on {best.images:,} select images; the best"
        f" is `{best.rung}`, and it is what was built",
    )  # fmt: skip


def _speedup(limit: float, measured: Measured) -> Check:
    conditions = timing_text(measured.speed)
    if not measured.speed.measured:
        return Check(name="min_speedup", state="incomplete", limit=limit, unit="x", detail=conditions)
    ratio = stats.pair_ratio(measured.int8_ms, measured.float_ms)
    state: State
    if not measured.speed.valid:
        state, why = "not-enough-evidence", f"not a valid run: {measured.speed.invalid_why}; "
    elif len(measured.int8_ms) < MIN_PAIRS:
        state, why = "not-enough-evidence", f"fewer than {MIN_PAIRS} pairs decide nothing; "
    elif ratio.lower >= limit:
        state, why = "pass", ""
    elif ratio.upper < limit:
        state, why = "fail", ""
    else:
        state, why = "not-enough-evidence", "the bounds reach both sides of the limit; "
    return Check(
        name="min_speedup", state=state, measured=ratio.median, lower=ratio.lower, upper=ratio.upper, limit=limit,
        unit="x", detail=f"{why}median of per-pair ratios · {conditions}",
    )  # fmt: skip


def _p99(limit: float, measured: Measured) -> Check:
    conditions, speed, ms = timing_text(measured.speed), measured.speed, measured.int8_ms
    if not speed.measured:
        return Check(name="max_p99_ms", state="incomplete", limit=limit, unit="ms", detail=conditions)
    bounds = stats.p99_bounds(ms)
    state: State
    if not speed.p99_valid:
        state, why = (
            "not-enough-evidence",
            f"not a valid run for p99: {speed.p99_invalid_why or 'no reason recorded'}; ",
        )
    elif len(ms) < MIN_P99_QUERIES:
        state, why = "not-enough-evidence", f"{len(ms):,} queries, p99 needs {MIN_P99_QUERIES:,}; "
    elif bounds.upper <= limit:
        state, why = "pass", ""
    elif bounds.lower > limit:
        state, why = "fail", ""
    else:
        state, why = "not-enough-evidence", "the bounds reach both sides of the limit; "
    return Check(
        name="max_p99_ms", state=state, measured=bounds.value, lower=bounds.lower, upper=bounds.upper, limit=limit,
        unit="ms", detail=f"{why}INT8 p99 · {conditions}",
    )  # fmt: skip


def _conditions(recipe: Recipe, facts: DeviceFacts, measured: Measured) -> Conditions:
    quantize, after = measured.quantize, measured.compared.after.file
    scheme = quantize.scheme
    model, data, train = recipe.model, recipe.data, recipe.train
    weights = "" if model.weights is None else f", weights {getattr(model.weights, 'name', model.weights)}"
    epochs = f"{train.epochs} epochs" if train.epochs != 1 else "1 epoch"
    taught = f", taught by {recipe.teacher.name} ({recipe.teacher.family})" if recipe.teacher else ""
    return Conditions(
        model=f"{model.name} ({model.family}{weights})",
        input=f"{model.image_size} x {model.image_size} px, {'gray' if data.color == 'gray' else 'RGB'}, {data.fit}",
        data=" ".join(filter(None, [data.format, data.root.name if data.root else ""])),
        classes=len(measured.classes),
        training=f"{epochs}{taught}" if train.epochs else "none, weights as given",
        images=after.n,
        hardware=facts.hardware,
        backend=facts.backend_version,
        driver=facts.driver,
        power_mode=measured.speed.power_mode or facts.power_mode,
        boards=boards_text(after, measured.speed),
        simulated=after.simulated,
        scoring=after.how,
        reference=measured.compared.reference.file.how,
        calibration_images=quantize.calibration.images,
        calibration_digest=quantize.calibration.digest,
        layer_images=quantize.layer_images,
        ranges=quantize.ranges,
        rungs=", ".join(rung.rung for rung in quantize.ladder if rung.kept),
        scheme=(
            f"activations {scheme.activations}, weights {scheme.weights}, bias {scheme.bias},"
            f" islands {scheme.islands}, placement {scheme.placement}"
        ),
        latency=timing_text(measured.speed),
    )


def _notes(
    profile: DeviceProfile, facts: DeviceFacts, measured: Measured, values: dict[str, float | None]
) -> tuple[str, ...]:
    notes = list(measured.quantize.recovery.notes)
    if not (measured.engine.built and measured.engine.runnable):
        notes.append(f"engine: {_engine_note(measured)}")
    if measured.compared.after.file.simulated:
        notes.append("INT8 accuracy is simulated: the graph evaluated in float, until the engine itself was scored")
    if measured.quantize.scheme.weights == "int8-per-channel-7bit":
        notes.append("weights have 7 bits: this CPU has no VNNI, and 8-bit products would saturate its 16-bit sums")
    if "int8" in profile.unverified:
        notes.append(f"INT8 on {profile.name} is unverified: built and parsed, never given a speed until measured")
    pairs, calm = values.get("speedup"), values.get("p5_speedup")
    if pairs and calm and abs(calm / pairs - 1) > NOISY:
        notes.append(
            f"the machine was noisy: speed-up {calm:.2f}x by 5th percentiles, {pairs:.2f}x by the median of pairs;"
            " not comparable with other runs"
        )
    if note := measured.task.float_note(measured.compared):
        notes.append(note)
    notes += board_notes(measured.speed)
    if facts.reachable and measured.speed.measured and not measured.speed.clocks_locked:
        notes.append("clocks were not locked: absolute times belong to this run, the ratio is what compares")
    return tuple(dict.fromkeys(notes))
