"""Baselines: what a run delivered, kept in one file, and whether a later run is as good."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgecnn import __version__
from edgecnn.measure import stats
from edgecnn.measure.latency_rule import AS_FAST, SLOWER, latency_state
from edgecnn.process.errors import EdgeError
from edgecnn.records import SpeedFile
from edgecnn.report import Check, Figure, Report, State, now, read_report
from edgecnn.verdict.accuracy_checks import drop_check
from edgecnn.verdict.baseline_file import Baseline, Kept, read_baseline, read_outcomes, write_baseline
from edgecnn.verdict.figures import distribution, timing_text

MAX_REGRESSION = 0.0025
MODELS = ("model.onnx", "model.int8.onnx")


class Times(Protocol):
    """Interleaved timings of two models, milliseconds, (pairs,)."""

    @property
    def first_ms(self) -> NDArray[np.float64]: ...
    @property
    def second_ms(self) -> NDArray[np.float64]: ...
    @property
    def conditions(self) -> Mapping[str, Any]: ...


TimeFiles = Callable[[Path, Path], Times | None]


def update(run: Path, file: Path, *, model: bool = True) -> None:
    """Write the baseline of a run: the same run gives the same bytes.

    Args:
        model: keep both ONNX files, so that latency can be compared later.

    Raises:
        EdgeError: the run folder lacks a file, or `file` can't be written.
    """
    report = read_report(run)
    outcomes = _outcomes(report, run)
    models = {name: _bytes(run / name) for name in MODELS} if model else {}
    write_baseline(file, report, _bytes(run / "report.json"), outcomes, models)


def check(
    run: Path, file: Path, *, max_regression: float = MAX_REGRESSION, time_files: TimeFiles | None = None
) -> Report:
    """Compare a run with a baseline: INT8 against INT8, image by image, and side by side in time.

    Accuracy: the non-inferiority rule of the budgets with `max_regression` (fraction of 1) as the limit. Latency:
    REGRESSION if the lower 95 % bound of the ratio candidate/baseline is above 1.02, OK if the upper is below 1.05. A
    run of the baseline's own INT8 model on the same images passes both.

    Args:
        time_files: times (baseline model, candidate model) alternately; None where nothing can be timed here.

    Raises:
        EdgeError: bad tolerance, a run folder that lacks a file, a file that is not a baseline.
    """
    if not 0.0 <= max_regression < 0.5:
        raise EdgeError(
            f"max_regression is a fraction of 1 from 0 to below 0.5, got {max_regression}", "0.0025 is a quarter point"
        )
    candidate, baseline = read_report(run), read_baseline(file)
    outcomes = _outcomes(candidate, run)
    why = _not_comparable(candidate, outcomes, baseline)
    times = None
    if why:
        accuracy = Check(
            name="max_regression", state="not-comparable", limit=100 * max_regression, unit="points", detail=why
        )
        latency = Check(name="latency", state="not-comparable", unit="x", detail=why)
    else:
        identical = baseline.int8_model is not None and baseline.int8_model == _bytes(run / "model.int8.onnx")
        accuracy = _accuracy(baseline, outcomes, max_regression, identical=identical)
        if identical:
            same = "the baseline's own INT8 model, byte for byte: it is as fast as itself"
            latency = Check(name="latency", state="pass", unit="x", detail=same)
        else:
            latency, times = _latency(run, baseline, time_files)
    notes = [f"baseline: run {baseline.head.run or '?'} of {baseline.head.recipe}, edgecnn {baseline.head.edgecnn}"]
    if candidate.recipe != baseline.head.recipe:
        notes.append(f"the baseline is of recipe {baseline.head.recipe}, the run of {candidate.recipe}")
    return candidate.model_copy(
        update={
            "kind": "check",
            "when": now(),
            "edgecnn": __version__,
            "checks": (accuracy, latency),
            "figures": () if why else tuple(_figures(baseline, outcomes, accuracy, latency)),
            "classes": (),
            "layers": (),
            "compiled_for": (),
            "distribution": distribution(times.first_ms, times.second_ms, "baseline", "candidate") if times else None,
            "conditions": candidate.conditions.model_copy(
                update={"latency": latency.detail, "reference": "the baseline's INT8 outcomes"}
            ),
            "notes": tuple(notes),
        }
    )


def _not_comparable(candidate: Report, outcomes: Kept, baseline: Baseline) -> str:
    """Why the two can't be paired; empty when they can."""
    head = baseline.head
    if candidate.device != head.device:
        return f"not comparable: the baseline is of device {head.device}, the run of {candidate.device}"
    if candidate.metric != head.metric:
        return f"not comparable: the baseline was scored by {head.metric}, the run by {candidate.metric}"
    if candidate.data_digest != head.data_digest:
        return (
            f"not comparable: other scored images or another image size"
            f" (digest {candidate.data_digest[:12]}, baseline {head.data_digest[:12]});"
            " make the baseline again with --update"
        )
    if not outcomes.task.same_targets(outcomes.int8, baseline.outcomes.int8):
        return "not comparable: the labels of the scored images differ"
    return ""


def _accuracy(baseline: Baseline, after: Kept, max_regression: float, *, identical: bool) -> Check:
    """The rule; what is the baseline's own model with its own answers needs no further images."""
    before, metric, task = baseline.outcomes, baseline.head.metric, after.task
    names = ("the baseline", "the candidate")
    check = drop_check("max_regression", task, before.int8, after.int8, metric, max_regression, names=names)
    nothing = task.nothing_proved(before.int8, metric, sure=True)
    if nothing and check.state == "pass":
        detail = f"the baseline's INT8: {nothing}; {check.detail}"
        return check.model_copy(update={"state": "not-enough-evidence", "detail": detail})
    int8 = (name for name in after.arrays if name.startswith("int8_"))
    same = all(np.array_equal(before.arrays[name], after.arrays[name]) for name in int8)
    if identical and same and check.state == "not-enough-evidence" and not nothing:
        detail = f"the baseline's own INT8 model and answers; {check.detail}"
        return check.model_copy(update={"state": "pass", "detail": detail})
    return check


def _latency(run: Path, baseline: Baseline, time_files: TimeFiles | None) -> tuple[Check, Times | None]:
    def undecided(state: State, why: str) -> tuple[Check, None]:
        return Check(name="latency", state=state, limit=SLOWER, unit="x", detail=why), None

    if baseline.int8_model is None:
        return undecided("not-comparable", "not comparable: the baseline was made with --no-model")
    candidate = run / "model.int8.onnx"
    _bytes(candidate)  # named before anything is timed
    if time_files is None:
        return undecided("incomplete", "not measured: the device can't be timed from here")
    with tempfile.TemporaryDirectory(prefix="edgecnn-baseline-") as folder:
        stored = Path(folder, "baseline.int8.onnx")
        stored.write_bytes(baseline.int8_model)
        times = time_files(stored, candidate)
    if times is None:
        return undecided("incomplete", "not measured: the device can't be timed from here")
    ratio, pairs = stats.pair_ratio(times.first_ms, times.second_ms), len(times.first_ms)
    state = latency_state(ratio, pairs)
    conditions = timing_text(SpeedFile.model_validate({**times.conditions, "measured": True, "pairs": pairs}))
    words = {"fail": "REGRESSION", "pass": "OK"}.get(state, "inconclusive")
    detail = (
        f"{words}: candidate / baseline, median of per-pair ratios; regression above {SLOWER}x by the lower bound,"
        f" OK below {AS_FAST}x by the upper · {conditions}"
    )
    check = Check(
        name="latency", state=state, measured=ratio.median, lower=ratio.lower, upper=ratio.upper, limit=SLOWER,
        unit="x", detail=detail,
    )  # fmt: skip
    return check, times


def _figures(baseline: Baseline, after: Kept, accuracy: Check, latency: Check) -> Iterator[Figure]:
    yield from after.task.paired_figures(baseline.outcomes.int8, after.int8, baseline.head.metric, accuracy)
    yield Figure(
        name="latency_ratio", title="Latency, candidate / baseline", group="latency", value=latency.measured,
        lower=latency.lower, upper=latency.upper, unit="x", conditions=latency.detail,
    )  # fmt: skip


def _outcomes(report: Report, run: Path) -> Kept:
    return read_outcomes(report.metric, _bytes(run / "outcomes.npz"), str(run / "outcomes.npz"))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EdgeError(f"cannot read `{path}`: {error.strerror}", "RUN is a folder left by `edgecnn build`") from error
