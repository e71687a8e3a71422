"""COCO's own figures of detections, by faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

from edgecnn.process.errors import EdgeError
from edgecnn.process.versions import install_command
from edgecnn.tasks.detect.average_precision import AVERAGED
from edgecnn.tasks.detect.boxes import Boxes
from edgecnn.tasks.detect.detect import Detections


@dataclass(frozen=True)
class CocoFigures:
    """Fractions of 1; NaN-free: None where no box of the kind is labelled. By class and size it is the metric's own."""

    map50_95: float
    map50: float
    by_class: dict[str, float | None]
    by_size: dict[str, float | None]  # small: area below 32², medium: below 96², large; in pixels of the original image


def coco_figures(found: Detections, truth: Boxes, classes: tuple[str, ...], metric: str) -> CocoFigures:
    """COCO's average precisions by faster-coco-eval: all areas, at most 100 detections of a class on an image.

    Args:
        metric: what is averaged by class and by size.

    Raises:
        EdgeError: the library is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ModuleNotFoundError as error:
        raise EdgeError("scoring a detector needs faster-coco-eval", install_command("yolo")) from error
    if not len(found.scores) or not len(truth.classes):
        return CocoFigures(0.0, 0.0, dict.fromkeys(classes), dict.fromkeys(("small", "medium", "large")))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints tables
        reference = COCO(_as_coco(truth, classes))
        judged = COCOeval_faster(reference, reference.loadRes(_answers(found)), "bbox")
        judged.evaluate()
        judged.accumulate()
    precision = judged.eval["precision"][..., -1]  # (thresholds, recalls, classes, areas)
    own = precision[AVERAGED[metric]]
    means = {name: _mean(own[:, :, number, 0]) for number, name in enumerate(classes)}
    sizes = {name: _mean(own[..., area]) for area, name in enumerate(("small", "medium", "large"), 1)}
    return CocoFigures(_mean(precision[..., 0]) or 0.0, _mean(precision[:1, :, :, 0]) or 0.0, means, sizes)


def _mean(precision: Any) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def _wide(box: Any) -> list[float]:
    x1, y1, x2, y2 = (float(side) for side in box)
    return [x1, y1, x2 - x1, y2 - y1]


def _as_coco(truth: Boxes, classes: tuple[str, ...]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image in range(len(truth)):
        for box, kind, crowd in zip(*truth.of(image), strict=True):
            sides = _wide(box)
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": int(kind), "bbox": sides,
                "area": sides[2] * sides[3], "iscrowd": int(crowd),
            })  # fmt: skip
    return {
        "images": [{"id": n, "height": int(h), "width": int(w)} for n, (h, w) in enumerate(truth.sizes)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes)],
        "annotations": annotations,
    }  # fmt: skip


def _answers(found: Detections) -> list[dict[str, Any]]:
    return [
        {"image_id": image, "category_id": int(kind), "bbox": _wide(box), "score": float(score)}
        for image in range(len(found))
        for box, score, kind in zip(*found.of(image), strict=True)
    ]
