"""The accuracy figures of a classifier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgecnn.measure import stats
from edgecnn.records import SpeedFile
from edgecnn.report import Check, ClassAccuracy, Figure, Unit
from edgecnn.report.wording import metric_text
from edgecnn.tasks.classify.outcomes import Classified, discordant
from edgecnn.tasks.compared import Compared

NOTED = 0.005  # share of images that the float engine answers otherwise


def figures(compared: Compared, coverage: str, float_name: str) -> Iterator[Figure]:
    """See Task: each model's metric, the paired drop, and what changed beside it."""
    metric = metric_text(compared.after.file.metric)
    for name, title, scores, conditions in compared.titled(float_name):
        with_coverage = f"{conditions} · {coverage}" if scores is compared.after else conditions
        yield _proportion(name, f"{metric}, {title}", scores.outcomes, with_coverage)
    first, second, paired = compared.reference.outcomes, compared.after.outcomes, compared.paired
    (b, c), n = discordant(first, second), len(first)
    low, high = stats.tango_bounds(b, c, n)
    yield Figure(
        name="accuracy_drop", title="Accuracy drop", group="accuracy", value=100 * (b - c) / n, lower=100 * low,
        upper=100 * high, unit="points", conditions=f"{paired} · one-sided 95 % Tango bounds",
    )  # fmt: skip
    told = "for information, never decides"
    sqnr = stats.sqnr(*stats.powers(first.logits, second.logits))
    rows: tuple[tuple[str, str, float | None, Unit, str], ...] = (
        ("discordant", "Exactly one is right (disc)", 100 * (b + c) / n, "%", paired),
        ("only_float_right", "Only float is right (b)", b, "images", paired),
        ("only_int8_right", "Only INT8 is right (c)", c, "images", paired),
        ("mcnemar_mid_p", "McNemar mid-p", stats.mcnemar_mid_p(b, c), "p", f"{paired} · {told}"),
        ("agreement", "Same answer as FP32", _same(first, second), "%", paired),
        ("logits_sqnr_median", "SQNR of the logits, median image", sqnr.median, "dB", paired),
        ("logits_sqnr", "SQNR of the logits, pooled", sqnr.pooled, "dB", paired),
    )
    for name, title, value, unit, conditions in rows:
        yield Figure(name=name, title=title, group="accuracy", value=value, unit=unit, conditions=conditions)


def paired_figures(first: Classified, second: Classified, metric: str, accuracy: Check) -> Iterator[Figure]:
    """See Task."""
    n = len(first)
    for name, title, outcomes in (
        ("baseline_accuracy", "Baseline INT8", first), ("int8_accuracy", "Candidate INT8", second),
    ):  # fmt: skip
        yield _proportion(name, title, outcomes, f"{n:,} images")
    yield Figure(
        name="accuracy_drop", title="Accuracy drop", group="accuracy", value=accuracy.measured, lower=accuracy.lower,
        upper=accuracy.upper, unit="points",
        conditions=f"baseline against candidate, the same {n:,} images · one-sided 95 % Tango bounds",
    )  # fmt: skip
    yield Figure(
        name="agreement", title="Same answer as the baseline", group="accuracy", value=_same(first, second), unit="%",
        conditions=f"the same {n:,} images",
    )  # fmt: skip


def _proportion(name: str, title: str, outcomes: Classified, conditions: str) -> Figure:
    right, n = int(outcomes.right.sum()), len(outcomes)
    low, high = stats.wilson_interval(right, n)
    return Figure(
        name=name, title=title, group="accuracy", value=100 * right / n, lower=100 * low, upper=100 * high, unit="%",
        conditions=f"{conditions} · 95 % Wilson interval",
    )  # fmt: skip


def _same(first: Classified, second: Classified) -> float:
    return 100 * float(np.mean(first.predicted == second.predicted))


def host_figures(compared: Compared, speed: SpeedFile, float_ms: Any, int8_ms: Any) -> Iterator[Figure]:
    """A classifier's answer needs no further step."""
    return iter(())


def class_figures(compared: Compared, classes: tuple[str, ...]) -> tuple[ClassAccuracy, ...]:
    """Accuracy of every class that has scored images."""
    found = []
    first, second = compared.reference.outcomes, compared.after.outcomes
    for number, name in enumerate(classes):
        of_class = first.label == number
        if images := int(of_class.sum()):
            plain, int8 = (100 * float(part.right[of_class].mean()) for part in (first, second))
            found.append(ClassAccuracy(name=name, images=images, float_accuracy=plain, int8_accuracy=int8))
    return tuple(found)


def parts(compared: Compared, classes: tuple[str, ...]) -> dict[str, Any]:
    """None."""
    return {}


def float_note(compared: Compared) -> str:
    """See Task."""
    share = float(np.mean(compared.before.outcomes.predicted != compared.reference.outcomes.predicted))
    if share <= NOTED:
        return ""
    return f"the device's float engine answers {100 * share:.1f} % of the images differently from FP32"
