"""The checks of accuracy: paired drops, a least accuracy, and whether the scored images prove anything at all."""

from __future__ import annotations

import numpy as np

from edgecnn.measure import stats
from edgecnn.report import Check, State
from edgecnn.report.evidence import Array, BoxScores, Classified, Detected, Scores
from edgecnn.report.figures import discordant
from edgecnn.report.wording import metric_text
from edgecnn.tasks.detect.average_precision import Matches, map_bounds, map_drop

MIN_IMAGES = 200  # below it the bounds of a paired difference are too coarse for any verdict
MIN_BOX_IMAGES = 50  # of a detector: an image holds many boxes, and mAP moves in small steps
TOP = {"top1": 1, "top5": 5}  # answers that an image may have
LEAST_MAP = 0.01  # of a detector that has found anything


def accuracy_check(answers: Classified | Detected, limit: float) -> Check:
    """The budget `max_accuracy_drop`; undecided where the float model leaves nothing to lose."""
    name, reference, after = "max_accuracy_drop", answers.reference, answers.after
    if isinstance(answers, Detected):
        check = map_check(name, answers.reference.matches, answers.after.matches, after.file.metric, limit)
    else:
        check = drop_check(name, *discordant(answers.reference, answers.after), reference.file.n, limit)
    nothing = _proves_nothing(answers.reference, sure=True)
    if nothing and check.state == "pass":
        check = check.model_copy(update={"state": "not-enough-evidence", "detail": f"{nothing}; {check.detail}"})
    return check


def least_check(answers: Classified | Detected, limit: float) -> Check:
    """The budget `min_accuracy`: FP32 and INT8 must both reach it, by one-sided 95 % bounds on the scored images."""
    found = [_bounds(scores) for scores in (answers.reference, answers.after)]
    n, detect = answers.after.file.n, isinstance(answers, Detected)
    least = MIN_BOX_IMAGES if detect else MIN_IMAGES
    states: list[State] = [
        "pass" if bounds.lower >= limit else "fail" if bounds.upper < limit else "not-enough-evidence"
        for bounds in found
    ]
    if n < least:
        states = ["not-enough-evidence"]
    state = next(state for state in ("fail", "not-enough-evidence", "pass") if state in states)
    worse = min(found, key=lambda bounds: bounds.value)
    few = f"{n} images decide nothing, at least {least} are needed; " if n < least else ""
    how = "bootstrap over images" if detect else "Wilson bounds"
    return Check(
        name="min_accuracy", state=state, measured=100 * worse.value, lower=100 * worse.lower, upper=100 * worse.upper,
        limit=100 * limit, unit="%",
        detail=f"{few}the lower of FP32 {100 * found[0].value:.2f} and INT8 {100 * found[1].value:.2f} %"
        f" {metric_text(answers.after.file.metric)} on {n:,} scored images, {how}",
    )  # fmt: skip


def nothing_proved(answers: Classified | Detected) -> list[Check]:
    """A check `accuracy` where the scored images prove nothing, or INT8 knows nothing any more; else none."""
    if nothing := _proves_nothing(answers.reference):
        return [Check(name="accuracy", state="not-enough-evidence", detail=f"FP32: {nothing}")]
    if lost := _proves_nothing(answers.after):
        return [Check(name="accuracy", state="fail", detail=f"INT8: {lost}")]
    return []


def told_simulated(check: Check, answers: Classified | Detected) -> Check:
    """The check, saying so where INT8 was scored in float simulation."""
    scored = answers.after.file
    if not scored.simulated:
        return check
    return check.model_copy(update={"detail": f"simulated ({scored.how}); {check.detail}"})


def no_better_than_constant(label: Array, outcome: Array, metric: str, *, sure: bool = False) -> str:
    """Why right and wrong answers (N,) prove nothing: a constant answer is right as often; '' where they do.

    Args:
        metric: `top5` counts a constant answer of the five most frequent classes.
        sure: the lower bound (one-sided 95 %, Wilson) must be above the constant answer's too, not the value alone.
    """
    n, right = len(label), int(np.sum(outcome > 0.5))
    constant = int(np.sort(np.unique(label, return_counts=True)[1])[-TOP[metric] :].sum())
    if right > constant and (not sure or stats.wilson_interval(right, n, 0.90)[0] > constant / n):
        return ""
    return (
        f"right on {right:,} of {n:,} images, no better than one constant answer ({constant:,}): that proves nothing;"
        " is the model trained, and do labels and preprocessing fit it?"
    )


def nothing_found(matches: Matches, metric: str) -> str:
    """Why a detector's matches prove nothing: no labelled box, or hardly one found; '' where they do."""
    boxes = sum(int(kind.truths.sum()) for kind in matches.classes)
    if not boxes:
        return f"the {matches.images:,} images have no labelled box: that proves nothing"
    value = float(matches.mean_ap(metric)[0])
    if value >= LEAST_MAP:
        return ""
    return (
        f"{metric_text(metric)} is {100 * value:.2f} % of {boxes:,} labelled boxes: that proves nothing; is the model"
        " trained, and do classes and preprocessing fit it?"
    )


def _proves_nothing(scores: Scores | BoxScores, *, sure: bool = False) -> str:
    if isinstance(scores, BoxScores):
        return nothing_found(scores.matches, scores.file.metric)
    return no_better_than_constant(scores.label, scores.outcome, scores.file.metric, sure=sure)


def _bounds(scores: Scores | BoxScores) -> stats.Bounds:
    """The metric with one-sided 95 % bounds."""
    if isinstance(scores, BoxScores):
        return map_bounds(scores.matches, scores.file.metric)
    right, n = int(scores.right.sum()), len(scores.label)
    return stats.Bounds(right / n, *stats.wilson_interval(right, n, 0.90))


def drop_check(name: str, b: int, c: int, n: int, limit: float, *, first: str = "float", second: str = "INT8") -> Check:
    """Non-inferiority by one-sided 95 % Tango bounds: PASS upper <= limit, FAIL lower > limit, else undecided.

    Args:
        b: images that only `first` gets right; c: only `second`; n: all of them. limit: fraction of 1.
    """
    lower, upper = stats.tango_bounds(b, c, n)
    drop = (b - c) / n
    detail = (
        f"{b} images right only with {first}, {c} only with {second}, of {n:,};"
        f" McNemar mid-p {stats.mcnemar_mid_p(b, c):.3g} (for information)"
    )
    needed = stats.images_needed((b + c) / n, limit, drop)
    state = drop_state(n, lower, upper, limit)
    if n < MIN_IMAGES:
        detail = f"{n} images decide nothing, at least {max(MIN_IMAGES, needed or 0):,} are needed; {detail}"
    elif state == "not-enough-evidence":
        # Bounds that just miss can meet the formula, which promises 80 %, not certainty.
        more = f"about {max(needed, n + 1):,} images would decide" if needed else "the drop sits on the limit"
        detail = f"the bounds reach both sides of the limit, {more}; {detail}"
    return Check(
        name=name, state=state, measured=100 * drop, lower=100 * lower, upper=100 * upper, limit=100 * limit,
        unit="points", detail=detail,
    )  # fmt: skip


def map_check(name: str, first: Matches, second: Matches, metric: str, limit: float) -> Check:
    """As `drop_check`, for a detector's metric: one-sided 95 % bounds of a paired bootstrap over images."""
    drop, n = map_drop(first, second, metric), first.images
    state = drop_state(n, drop.lower, drop.upper, limit, least=MIN_BOX_IMAGES)
    detail = f"{metric_text(metric)}, paired bootstrap over {n:,} images, 1,000 resamples"
    if state == "not-enough-evidence":
        room = limit - drop.point
        needed = stats.images_for_bounds(n, drop.upper - drop.point, room) if room > 0 else None
        decided = f"about {max(needed or 0, MIN_BOX_IMAGES, n + 1):,} images would decide"
        more = "the drop is above it" if needed is None else decided
        few = f"{n} images decide nothing" if n < MIN_BOX_IMAGES else "the bounds reach both sides of the limit"
        detail = f"{few}, {more}; {detail}"
    return Check(
        name=name, state=state, measured=100 * drop.point, lower=100 * drop.lower, upper=100 * drop.upper,
        limit=100 * limit, unit="points", detail=detail,
    )  # fmt: skip


def drop_state(n: int, lower: float, upper: float, limit: float, *, least: int = MIN_IMAGES) -> State:
    """The rule itself: n images, one-sided bounds of the drop and its limit, fractions of 1."""
    if n < least:
        return "not-enough-evidence"
    if upper <= limit:
        return "pass"
    return "fail" if lower > limit else "not-enough-evidence"
