"""The accuracy figures of a detector."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgecnn.report import ClassAccuracy, Figure
from edgecnn.report.detection import ChangedImage, PrecisionRecall, changed_images, precision_recall
from edgecnn.report.evidence import Array, BoxScores, Classified, Detected
from edgecnn.report.stage_files import HostPart, SpeedFile
from edgecnn.report.wording import metric_text
from edgecnn.tasks.detect.average_precision import THRESHOLDS, map_drop


def box_figures(answers: Detected, coverage: str, float_name: str) -> Iterator[Figure]:
    """The metric, mAP50-95 and mAP50, by size, and the paired drop; percent and points."""
    metric = answers.after.file.metric
    shown = metric_text(metric)
    float_title = "float graph, no engine run" if answers.before.file.simulated else f"{float_name} engine"
    after = answers.after
    for name, title, scores in (
        ("reference_accuracy", "FP32 reference", answers.reference),
        ("float_accuracy", float_title, answers.before),
        ("int8_accuracy", f"INT8{', simulated' if after.file.simulated else ''}", after),
    ):
        coco = scores.file.coco
        assert coco is not None  # every detector's score has it
        conditions = f"{scores.file.n:,} images · {scores.file.how}{' · simulated' if scores.file.simulated else ''}"
        if scores is after:
            conditions += f" · {coverage}"
        yield _percent(name, f"{shown}, {title}", scores.file.value, conditions)
        for other in ("map50_95", "map50"):
            if other != metric:
                yield _percent(f"{name}_{other}", f"{metric_text(other)}, {title}", getattr(coco, other), conditions)
    paired = f"FP32 reference against INT8, the same {after.file.n:,} images"
    drop = map_drop(answers.reference.matches, after.matches, metric)
    yield Figure(
        name="accuracy_drop", title=f"{shown} drop", group="accuracy", value=100 * drop.point, lower=100 * drop.lower,
        upper=100 * drop.upper, unit="points",
        conditions=f"{paired} · one-sided 95 % bounds, paired bootstrap over images",
    )  # fmt: skip
    first, second = answers.reference.file.coco, after.file.coco
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
    yield _agreement(answers.reference, after, paired)


def _percent(name: str, title: str, value: float, conditions: str) -> Figure:
    return Figure(name=name, title=title, group="accuracy", value=100 * value, unit="%", conditions=conditions)


def _agreement(first: BoxScores, second: BoxScores, paired: str) -> Figure:
    """Share of right detections at IoU 0.5 that both models have: labelled boxes found by both over found by either."""
    at = int(np.flatnonzero(THRESHOLDS == 0.5)[0])
    counts = [
        sum(int(kind.right[at].sum()) for kind in scores.matches.classes) for scores in (first, second)
    ]  # fmt: skip
    return Figure(
        name="found_boxes", title="Labelled boxes found by INT8 against FP32", group="accuracy",
        value=100 * counts[1] / counts[0] if counts[0] else None, unit="%",
        conditions=f"{paired} · IoU 0.5, any score · {counts[0]:,} → {counts[1]:,} boxes",
    )  # fmt: skip


def class_precisions(answers: Detected, classes: tuple[str, ...]) -> tuple[ClassAccuracy, ...]:
    """Average precision of every class that has labelled boxes, in percent, reference beside INT8; `images` show it."""
    before, now = answers.reference.file.coco, answers.after.file.coco
    assert before is not None
    assert now is not None
    found = []
    for number, name in enumerate(classes):
        first, second = before.by_class.get(name), now.by_class.get(name)
        if first is not None and second is not None:
            images = int((answers.reference.matches.classes[number].truths > 0).sum())
            found.append(
                ClassAccuracy(name=name, images=images, float_accuracy=100 * first, int8_accuracy=100 * second)
            )
    return tuple(found)


def box_parts(
    answers: Classified | Detected, classes: tuple[str, ...]
) -> tuple[PrecisionRecall | None, tuple[ChangedImage, ...]]:
    """The curves of a detector and the images that changed most; nothing of a classifier."""
    if not isinstance(answers, Detected):
        return None, ()
    curve = precision_recall(answers.reference.matches, answers.after.matches)
    return curve, changed_images(answers.reference.found, answers.after.found, answers.truth, classes, answers.names)


def split_figures(answers: Detected, speed: SpeedFile, float_ms: Array, int8_ms: Array) -> Iterator[Figure]:
    """Where the time of one image goes: the letterbox and suppression on the host, and what they make with the engine.

    The sum is of medians that were taken one after the other, and only where all of them are of one machine.
    """
    host = answers.after.file.host
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
        for key, scores, ms in (("float", answers.before, float_ms), ("int8", answers.after, int8_ms)):
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
