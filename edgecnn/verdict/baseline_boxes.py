"""The baseline rule for detectors: detections of both runs on the same images, matched anew with the same boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecnn.report import Check, Figure
from edgecnn.report.wording import metric_text
from edgecnn.tasks.detect.average_precision import Matches, match
from edgecnn.tasks.detect.boxes import Boxes
from edgecnn.tasks.detect.detect import Detections
from edgecnn.verdict.accuracy_checks import map_check, nothing_found

Outcomes = dict[str, NDArray[Any]]
TRUTH = ("offsets", "boxes", "classes", "crowd", "sizes")
FOUND = ("offsets", "boxes", "scores", "classes")
MOST_CLASSES = 100_000  # matches are counted for each class up to the highest
NEEDED = (*(f"truth_{key}" for key in TRUTH), *(f"int8_{key}" for key in FOUND))


def is_detector(outcomes: Outcomes) -> bool:
    """Whether these outcomes hold boxes and not classes."""
    return "truth_offsets" in outcomes


def fault(outcomes: Outcomes) -> str:
    """What keeps the arrays from being boxes and detections of the same images; '' when nothing does."""
    missing = [name for name in NEEDED if name not in outcomes]
    if missing:
        return f"it lacks {', '.join(missing)}"
    if any(values.dtype.kind not in "fiub" for values in outcomes.values()):
        return "its arrays are not numbers"
    if not all(np.isfinite(values).all() for values in outcomes.values()):
        return "its arrays hold NaN or infinity"
    images = len(outcomes["truth_sizes"])
    for prefix, keys in (("truth", TRUTH), ("int8", FOUND)):
        offsets = outcomes[f"{prefix}_offsets"]
        rows = len(outcomes[f"{prefix}_classes"])
        whole = offsets.shape == (images + 1,) and images > 0 and offsets[0] == 0 and offsets[-1] == rows
        if not whole or (np.diff(offsets) < 0).any() or outcomes[f"{prefix}_boxes"].shape != (rows, 4):
            return "its boxes are not of these images"
        if any(outcomes[f"{prefix}_{key}"].shape != (rows,) for key in keys if key in ("scores", "classes", "crowd")):
            return "its boxes are not of these images"
        if offsets.dtype.kind not in "iu":
            return "its offsets are not whole numbers"
        kinds = outcomes[f"{prefix}_classes"]
        if kinds.dtype.kind not in "iu" or not ((kinds >= 0) & (kinds < MOST_CLASSES)).all():
            return "its classes are not class numbers"
    if outcomes["truth_crowd"].dtype != bool or outcomes["truth_sizes"].shape != (images, 2):
        return "its boxes are not of these images"
    return ""


def same_truth(first: Outcomes, second: Outcomes) -> bool:
    """Whether the labelled boxes are the same."""
    return all(np.array_equal(first[f"truth_{key}"], second[f"truth_{key}"]) for key in TRUTH)


def accuracy_check(before: Outcomes, after: Outcomes, metric: str, max_regression: float) -> Check:
    """The non-inferiority rule on the runs' metric, INT8 against INT8."""
    return map_check("max_regression", _matches(before), _matches(after), metric, max_regression)


def nothing_proved(outcomes: Outcomes, metric: str) -> str:
    """Why these detections prove nothing; '' where they do."""
    return nothing_found(_matches(outcomes), metric)


def accuracy_figures(before: Outcomes, after: Outcomes, metric: str, accuracy: Check) -> tuple[Figure, ...]:
    """Both mAPs and the drop."""
    images, shown = len(before["truth_sizes"]), metric_text(metric)

    def value(name: str, title: str, outcomes: Outcomes) -> Figure:
        found = 100 * float(_matches(outcomes).mean_ap(metric)[0])
        return Figure(name=name, title=title, group="accuracy", value=found, unit="%", conditions=f"{images:,} images")

    return (
        value("baseline_accuracy", f"{shown}, baseline INT8", before),
        value("int8_accuracy", f"{shown}, candidate INT8", after),
        Figure(
            name="accuracy_drop", title=f"{shown} drop", group="accuracy", value=accuracy.measured,
            lower=accuracy.lower, upper=accuracy.upper, unit="points",
            conditions=f"baseline against candidate, the same {images:,} images · 95 % bounds, paired bootstrap",
        ),
    )  # fmt: skip


def _matches(outcomes: Outcomes) -> Matches:
    truth = Boxes(*(outcomes[f"truth_{key}"] for key in TRUTH))
    found = Detections(*(outcomes[f"int8_{key}"] for key in FOUND))
    classes = 1 + max([int(part.max()) for part in (truth.classes, found.classes) if len(part)], default=0)
    return match(found, truth, classes)
