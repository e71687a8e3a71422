"""The checks of accuracy: paired drops, a least accuracy, and whether the scored images prove anything at all."""

from __future__ import annotations

from edgecnn.measure import stats
from edgecnn.report import Check, State
from edgecnn.report.wording import metric_text
from edgecnn.tasks import Drop, Outcomes, Task
from edgecnn.verdict.evidence import Measured


def accuracy_check(measured: Measured, limit: float) -> Check:
    """The budget `max_accuracy_drop`; undecided where the float model leaves nothing to lose."""
    task, compared, metric = measured.task, measured.compared, measured.metric
    before, after = compared.reference.outcomes, compared.after.outcomes
    check = drop_check("max_accuracy_drop", task, before, after, metric, limit)
    nothing = task.nothing_proved(before, metric, sure=True)
    if nothing and check.state == "pass":
        check = check.model_copy(update={"state": "not-enough-evidence", "detail": f"{nothing}; {check.detail}"})
    return check


def least_check(measured: Measured, limit: float) -> Check:
    """The budget `min_accuracy`: FP32 and INT8 must both reach it, by one-sided 95 % bounds on the scored images."""
    task, compared, n = measured.task, measured.compared, measured.compared.after.file.n
    found = [task.bounds(scores.outcomes, measured.metric) for scores in (compared.reference, compared.after)]
    states: list[State] = [
        "pass" if bounds.lower >= limit else "fail" if bounds.upper < limit else "not-enough-evidence"
        for bounds in found
    ]
    few = ""
    if n < task.LEAST_IMAGES:
        states = ["not-enough-evidence"]
        few = f"{n} images decide nothing, at least {task.LEAST_IMAGES} are needed; "
    state = next(state for state in ("fail", "not-enough-evidence", "pass") if state in states)
    worse = min(found, key=lambda bounds: bounds.value)
    return Check(
        name="min_accuracy", state=state, measured=100 * worse.value, lower=100 * worse.lower, upper=100 * worse.upper,
        limit=100 * limit, unit="%",
        detail=f"{few}the lower of FP32 {100 * found[0].value:.2f} and INT8 {100 * found[1].value:.2f} %"
        f" {metric_text(measured.metric)} on {n:,} scored images, {task.BOUNDS_BY}",
    )  # fmt: skip


def nothing_proved(measured: Measured) -> list[Check]:
    """A check `accuracy` where the scored images prove nothing, or INT8 knows nothing any more; else none."""
    compared, why_nothing = measured.compared, measured.task.nothing_proved
    if nothing := why_nothing(compared.reference.outcomes, measured.metric):
        return [Check(name="accuracy", state="not-enough-evidence", detail=f"FP32: {nothing}")]
    if lost := why_nothing(compared.after.outcomes, measured.metric):
        return [Check(name="accuracy", state="fail", detail=f"INT8: {lost}")]
    return []


def mark_simulated(check: Check, measured: Measured) -> Check:
    """The check, saying so where INT8 was scored in float simulation."""
    scored = measured.compared.after.file
    if not scored.simulated:
        return check
    return check.model_copy(update={"detail": f"simulated ({scored.how}); {check.detail}"})


def drop_check(
    name: str, task: Task, first: Outcomes, second: Outcomes, metric: str, limit: float, *,
    names: tuple[str, str] = ("float", "INT8"),
) -> Check:  # fmt: skip
    """Non-inferiority by the task's one-sided 95 % bounds: PASS upper <= limit, FAIL lower > limit, else undecided.

    Args:
        names: of the two models. limit: fraction of 1.
    """
    drop, least = task.drop(first, second, metric), task.LEAST_IMAGES
    state = drop_state(drop.images, drop.lower, drop.upper, limit, least=least)
    detail = task.drop_text(first, second, metric, names)
    if state == "not-enough-evidence":
        detail = f"{undecided(drop, limit, least)}; {detail}"
    return Check(
        name=name, state=state, measured=100 * drop.point, lower=100 * drop.lower, upper=100 * drop.upper,
        limit=100 * limit, unit="points", detail=detail,
    )  # fmt: skip


def drop_state(n: int, lower: float, upper: float, limit: float, *, least: int) -> State:
    """The rule itself: n images, one-sided bounds of the drop and its limit, fractions of 1."""
    if n < least:
        return "not-enough-evidence"
    if upper <= limit:
        return "pass"
    return "fail" if lower > limit else "not-enough-evidence"


def undecided(drop: Drop, limit: float, least: int) -> str:
    """Why a drop's bounds decide nothing, and how many images would."""
    needed = images_needed(drop, limit)
    if drop.images < least:
        return f"{drop.images} images decide nothing, at least {max(least, needed or 0):,} are needed"
    # Bounds that just miss can meet the formula, which promises 80 %, not certainty.
    more = f"about {max(needed, least, drop.images + 1):,} images would decide" if needed else "the drop sits on it"
    return f"the bounds reach both sides of the limit, {more}"


def images_needed(drop: Drop, limit: float) -> int | None:
    """About how many images would decide; None: no number would."""
    if drop.disc is not None:
        return stats.images_needed(drop.disc, limit, drop.point)
    room = limit - drop.point
    return stats.images_for_bounds(drop.images, drop.upper - drop.point, room) if room > 0 else None
