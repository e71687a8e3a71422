"""The figures of a detector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgecnn.data.index import read_index
from edgecnn.data.walk import readable
from edgecnn.records import HostPart, SpeedFile
from edgecnn.report import Check, ClassAccuracy, Figure
from edgecnn.report.wording import metric_text
from edgecnn.tasks.compared import Compared
from edgecnn.tasks.detect.average_precision import THRESHOLDS, map_drop
from edgecnn.tasks.detect.changes import changed_images, precision_recall
from edgecnn.tasks.detect.outcomes import Detected

NOTED = 0.003  # of the metric: how far the float engine may be from FP32


def figures(compared: Compared, coverage: str, float_name: str) -> Iterator[Figure]:
    """See Task: the metric, mAP50-95 and mAP50, by size, and the paired drop; percent and points."""
    metric = compared.after.file.metric
    shown = metric_text(metric)
    after = compared.after
    for name, title, scores, how in compared.titled(float_name):
        coco = scores.file.coco
        assert coco is not None  # every detector's score has it
        conditions = f"{how} · {coverage}" if scores is after else how
        yield _percent(name, f"{shown}, {title}", scores.file.value, conditions)
        for other in ("map50_95", "map50"):
            if other != metric:
                yield _percent(f"{name}_{other}", f"{metric_text(other)}, {title}", getattr(coco, other), conditions)
    paired = compared.paired
    drop = map_drop(compared.reference.outcomes.matches, after.outcomes.matches, metric)
    yield Figure(
        name="accuracy_drop", title=f"{shown} drop", group="accuracy", value=100 * drop.point, lower=100 * drop.lower,
        upper=100 * drop.upper, unit="points",
        conditions=f"{paired} · one-sided 95 % bounds, paired bootstrap over images",
    )  # fmt: skip
    first, second = compared.reference.file.coco, after.file.coco
    assert first is not None
    assert second is not None
    for size in first.by_size:
        before, now = first.by_size[size], second.by_size[size]
        if before is not None and now is not None:
            conditions = f"{paired} · {100 * before:.1f} → {100 * now:.1f} %"
            yield Figure(
                name=f"drop_{size}", title=f"{shown} drop, {size} boxes", group="accuracy",
                value=100 * (before - now), unit="points", conditions=conditions,
            )  # fmt: skip
    yield _agreement(compared.reference.outcomes, after.outcomes, paired)


def paired_figures(first: Detected, second: Detected, metric: str, accuracy: Check) -> Iterator[Figure]:
    """See Task: both mAPs and the drop."""
    images, shown = len(first), metric_text(metric)
    for name, title, outcomes in (
        ("baseline_accuracy", "baseline INT8", first), ("int8_accuracy", "candidate INT8", second),
    ):  # fmt: skip
        found = float(outcomes.matches.mean_ap(metric)[0])
        yield _percent(name, f"{shown}, {title}", found, f"{images:,} images")
    yield Figure(
        name="accuracy_drop", title=f"{shown} drop", group="accuracy", value=accuracy.measured,
        lower=accuracy.lower, upper=accuracy.upper, unit="points",
        conditions=f"baseline against candidate, the same {images:,} images · 95 % bounds, paired bootstrap",
    )  # fmt: skip


def _percent(name: str, title: str, value: float, conditions: str) -> Figure:
    return Figure(name=name, title=title, group="accuracy", value=100 * value, unit="%", conditions=conditions)


def _agreement(first: Detected, second: Detected, paired: str) -> Figure:
    """Share of right detections at IoU 0.5 that both models have: labelled boxes found by both over found by either."""
    at = int(np.flatnonzero(THRESHOLDS == 0.5)[0])
    counts = [sum(int(kind.right[at].sum()) for kind in one.matches.classes) for one in (first, second)]
    return Figure(
        name="found_boxes", title="Labelled boxes found by INT8 against FP32", group="accuracy",
        value=100 * counts[1] / counts[0] if counts[0] else None, unit="%",
        conditions=f"{paired} · IoU 0.5, any score · {counts[0]:,} → {counts[1]:,} boxes",
    )  # fmt: skip


def class_figures(compared: Compared, classes: tuple[str, ...]) -> tuple[ClassAccuracy, ...]:
    """Average precision of every class that has labelled boxes, reference beside INT8; `images` show it."""
    before, now = compared.reference.file.coco, compared.after.file.coco
    assert before is not None
    assert now is not None
    found = []
    for number, name in enumerate(classes):
        first, second = before.by_class.get(name), now.by_class.get(name)
        if first is not None and second is not None:
            images = int((compared.reference.outcomes.matches.classes[number].truths > 0).sum())
            found.append(
                ClassAccuracy(name=name, images=images, float_accuracy=100 * first, int8_accuracy=100 * second)
            )
    return tuple(found)


def parts(compared: Compared, classes: tuple[str, ...]) -> dict[str, Any]:
    """The curves, and the images that changed most."""
    first, second = compared.reference.outcomes, compared.after.outcomes
    index = read_index(compared.data)
    names = tuple(readable(index.files[number] or f"image {number}") for number in index.splits["scored"])
    return {
        "curve": precision_recall(first.matches, second.matches),
        "changed": changed_images(first.found, second.found, first.truth, classes, names),
    }


def float_note(compared: Compared) -> str:
    """See Task."""
    distance = abs(compared.before.file.value - compared.reference.file.value)
    return f"the device's float engine is {100 * distance:.1f} points of mAP away from FP32" if distance > NOTED else ""


def host_figures(compared: Compared, speed: SpeedFile, float_ms: Any, int8_ms: Any) -> Iterator[Figure]:
    """Where the time of one image goes: the letterbox and suppression on the host, and what they make with the engine.

    The sum is of medians that were taken one after the other, and only where all of them are of one machine.
    """
    host = compared.after.file.host
    if host is None:
        return
    sizes = f"{host.preprocess.images:,} images of the scored ones' sizes"
    yield _milliseconds(
        "preprocess_p50_ms", "Letterbox p50", host.preprocess.p50_ms,
        f"decoded image to model input, {sizes}, without decoding · one image at a time, one thread · {host.hardware}",
    )  # fmt: skip
    if host.nms is None:
        yield _milliseconds("nms_p50_ms", "NMS p50", None, "inside the engine's graph (`export.nms`): in its time")
    else:
        yield _milliseconds(
            "nms_p50_ms", "NMS p50", host.nms.p50_ms,
            f"numpy, on INT8's answers to {host.nms.images:,} images, confidence {host.nms.confidence:g} · one image at"
            f" a time, one thread · {host.hardware}",
        )  # fmt: skip
    if speed.measured and speed.batch == 1 and speed.hardware == host.hardware:
        for key, scores, ms in (("float", compared.before, float_ms), ("int8", compared.after, int8_ms)):
            own = scores.file.host or host
            total = host.preprocess.p50_ms + float(np.median(ms)) + (own.nms.p50_ms if own.nms else 0.0)
            yield _whole(key, host, total)


def _whole(key: str, host: HostPart, total: float) -> Figure:
    title = f"{'INT8' if key == 'int8' else 'Float'}, letterbox to boxes"
    return _milliseconds(
        f"{key}_image_ms", title, total, f"sum of the medians of letterbox, engine and NMS · {host.hardware}"
    )


def _milliseconds(name: str, title: str, value: float | None, conditions: str) -> Figure:
    return Figure(name=name, title=title, group="latency", value=value, unit="ms", conditions=conditions)
