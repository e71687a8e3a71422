"""Baselines: what a run delivered, kept in one file, and whether a later run is as good."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgecnn import __version__
from edgecnn.measure import stats
from edgecnn.measure.latency_rule import AS_FAST, SLOWER, latency_state
from edgecnn.process.errors import EdgeError
from edgecnn.report import Check, Figure, Report, State, now, read_report
from edgecnn.report.evidence import collect_outcomes
from edgecnn.report.figures import distribution, timing_text
from edgecnn.report.stage_files import SpeedFile
from edgecnn.verdict import baseline_boxes
from edgecnn.verdict.accuracy_checks import drop_check, no_better_than_constant
from edgecnn.verdict.baseline_file import Baseline, Outcomes, read_baseline, read_outcomes, write_baseline

__all__ = ["check", "collect_outcomes", "latency_state", "update"]

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
    outcomes = read_outcomes(_bytes(run / "outcomes.npz"), str(run / "outcomes.npz"))
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
    outcomes = read_outcomes(_bytes(run / "outcomes.npz"), str(run / "outcomes.npz"))
    why = _not_comparable(candidate, outcomes, baseline)
    times = None
    if why:
        accuracy = Check(
            name="max_regression", state="not-comparable", limit=100 * max_regression, unit="points", detail=why
        )
        latency = Check(name="latency", state="not-comparable", unit="x", detail=why)
    else:
        identical = baseline.int8_model is not None and baseline.int8_model == _bytes(run / "model.int8.onnx")
        accuracy = _accuracy(baseline.outcomes, outcomes, candidate.metric, max_regression, identical=identical)
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
            "figures": () if why else _figures(baseline.outcomes, outcomes, candidate.metric, accuracy, latency),
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


def _not_comparable(candidate: Report, outcomes: Outcomes, baseline: Baseline) -> str:
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
    if baseline_boxes.is_detector(outcomes):
        same = baseline_boxes.same_truth(outcomes, baseline.outcomes)
    else:
        same = np.array_equal(outcomes["label"], baseline.outcomes["label"])
    if not same:
        return "not comparable: the labels of the scored images differ"
    return ""


def _accuracy(before: Outcomes, after: Outcomes, metric: str, max_regression: float, *, identical: bool) -> Check:
    """The rule; what is the baseline's own model with its own answers needs no further images."""
    if baseline_boxes.is_detector(before):
        check = baseline_boxes.accuracy_check(before, after, metric, max_regression)
        nothing = baseline_boxes.nothing_proved(before, metric)
    else:
        check = _classified(before, after, max_regression)
        nothing = no_better_than_constant(before["label"], before["int8_outcome"], metric, sure=True)
    if nothing and check.state == "pass":
        detail = f"the baseline's INT8: {nothing}; {check.detail}"
        return check.model_copy(update={"state": "not-enough-evidence", "detail": detail})
    same = all(np.array_equal(before[name], after[name]) for name in after if name.startswith("int8_"))
    if identical and same and check.state == "not-enough-evidence" and not nothing:
        detail = f"the baseline's own INT8 model and answers; {check.detail}"
        return check.model_copy(update={"state": "pass", "detail": detail})
    return check


def _classified(before: Outcomes, after: Outcomes, max_regression: float) -> Check:
    first, second = before["int8_outcome"] > 0.5, after["int8_outcome"] > 0.5
    b, c = int(np.sum(first & ~second)), int(np.sum(~first & second))
    return drop_check("max_regression", b, c, len(first), max_regression, first="the baseline", second="the candidate")


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


def _figures(before: Outcomes, after: Outcomes, metric: str, accuracy: Check, latency: Check) -> tuple[Figure, ...]:
    ratio = Figure(
        name="latency_ratio", title="Latency, candidate / baseline", group="latency", value=latency.measured,
        lower=latency.lower, upper=latency.upper, unit="x", conditions=latency.detail,
    )  # fmt: skip
    if baseline_boxes.is_detector(before):
        return (*baseline_boxes.accuracy_figures(before, after, metric, accuracy), ratio)
    n = len(before["label"])

    def proportion(name: str, title: str, outcome: NDArray[Any]) -> Figure:
        right = int(np.sum(outcome > 0.5))
        low, high = (100 * bound for bound in stats.wilson_interval(right, n))
        conditions = f"{n:,} images · 95 % Wilson interval"
        return Figure(
            name=name, title=title, group="accuracy", value=100 * right / n, lower=low, upper=high, unit="%",
            conditions=conditions,
        )  # fmt: skip

    drop = Figure(
        name="accuracy_drop", title="Accuracy drop", group="accuracy", value=accuracy.measured,
        lower=accuracy.lower, upper=accuracy.upper, unit="points",
        conditions=f"baseline against candidate, the same {n:,} images · one-sided 95 % Tango bounds",
    )  # fmt: skip
    agreement = Figure(
        name="agreement", title="Same answer as the baseline", group="accuracy", unit="%",
        value=100 * float(np.mean(before["int8_predicted"] == after["int8_predicted"])),
        conditions=f"the same {n:,} images",
    )  # fmt: skip
    return (
        proportion("baseline_accuracy", "Baseline INT8", before["int8_outcome"]),
        proportion("int8_accuracy", "Candidate INT8", after["int8_outcome"]),
        drop,
        agreement,
        ratio,
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EdgeError(f"cannot read `{path}`: {error.strerror}", "RUN is a folder left by `edgecnn build`") from error
