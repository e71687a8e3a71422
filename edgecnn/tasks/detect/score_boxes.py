"""Detectors: a Runner over letterboxed images → boxes on the original images, and COCO's figures of them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn.data.letterbox import Letterbox
from edgecnn.measure.feeding import answered_batches
from edgecnn.measure.io_contract import IoContract
from edgecnn.process.errors import EdgeError
from edgecnn.process.versions import install_command
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.tasks.detect.average_precision import AVERAGED
from edgecnn.tasks.detect.boxes import Boxes
from edgecnn.tasks.detect.decode import decode
from edgecnn.tasks.detect.detect import Detections, detect

if TYPE_CHECKING:
    from edgecnn.backends import Runner
    from edgecnn.measure.feeding import ImageBatches
    from edgecnn.tasks.detect.host_latency import HostTimes


@dataclass(frozen=True)
class CocoFigures:
    """Fractions of 1; NaN-free: None where no box of the kind is labelled. By class and size it is the metric's own."""

    map50_95: float
    map50: float
    by_class: dict[str, float | None]
    by_size: dict[str, float | None]  # small: area below 32², medium: below 96², large; in pixels of the original image


def score_detector(
    runner: Runner, contract: IoContract, images: ImageBatches, truth: Boxes, spec: ScoreSpec,
    times: HostTimes | None = None,
) -> Detections:  # fmt: skip
    """Run every image, suppress, and bring the boxes back to the original images.

    Args:
        runner: answers the contract's outputs: boxes (N, A, 4) x1 y1 x2 y2 in model pixels and scores (N, A, C), or
            detections where the graph suppresses.
        images: uint8 NHWC, letterboxed. truth: gives the original sizes.
        times: takes how long suppression lasts, where it is not the graph's own.

    Raises:
        EdgeError: images and labels differ in number, outputs of another shape, or values that aren't finite.
    """
    count = len(images)
    if count == 0 or count != len(truth):
        raise EdgeError(f"the scored split has {count} images and boxes of {len(truth)}", "prepare the data again")
    found = []
    for numbers, answers in answered_batches(runner, contract.feed, images, spec.batch):
        for row, number in enumerate(numbers):
            height, width = (int(side) for side in truth.sizes[number])
            box = Letterbox(height, width, contract.input.size)
            found.append(answered(answers, contract, row, box, spec))
            if times is not None and contract.nms is None:
                times.suppress(*raw_outputs(answers, contract, row), box, spec)
    return Detections.joined(found)


def answered(
    answers: Mapping[str, Any], contract: IoContract, number: int, box: Letterbox, spec: ScoreSpec
) -> tuple[Any, Any, Any]:
    """(boxes in original pixels, scores, classes) of image `number` of a batch.

    Where the graph suppresses itself its detections are taken as they are, by its own thresholds.

    Raises:
        EdgeError: outputs of another shape, or values that aren't finite.
    """
    if contract.nms is not None:
        outputs = {output.meaning: answers[output.name] for output in contract.outputs}
        return _suppressed(outputs, contract, number, box)
    boxes, scores = raw_outputs(answers, contract, number)
    return detect(
        boxes, scores, box, confidence=spec.confidence, iou=spec.iou, max_detections=spec.max_detections
    )  # fmt: skip


def raw_outputs(answers: Mapping[str, Any], contract: IoContract, number: int) -> tuple[Any, Any]:
    """Boxes (A, 4) in pixels of the model's input and scores (A, C), float32, of image `number` of a batch.

    Raises:
        EdgeError: outputs of another shape, or values that aren't finite.
    """
    by_meaning = {output.meaning: answers[output.name] for output in contract.outputs}
    if "boxes" not in by_meaning:  # a detector of others: its one output, by the layout that its meaning names
        ((meaning, output),) = by_meaning.items()
        boxes, scores = decode(meaning, output[number], len(contract.classes), contract.input.size)
        _require_finite(boxes, scores)
        return boxes, scores
    boxes, scores = (np.asarray(by_meaning[part][number], np.float32) for part in ("boxes", "scores"))
    if boxes.shape != (len(scores), 4) or scores.shape[1] != len(contract.classes):
        raise EdgeError(
            f"the model answers boxes {boxes.shape} and scores {scores.shape} for {len(contract.classes)} classes"
        )
    _require_finite(boxes, scores)
    return boxes, scores


def _suppressed(outputs: Mapping[str, Any], contract: IoContract, number: int, box: Letterbox) -> tuple[Any, Any, Any]:
    """The rows of image `number` that the graph's own suppression filled."""
    count = int(np.asarray(outputs["num_detections"][number]).reshape(-1)[0])
    boxes, scores = (np.asarray(outputs[f"detection_{part}"][number], np.float32) for part in ("boxes", "scores"))
    classes = np.asarray(outputs["detection_classes"][number], np.int64)
    if boxes.shape != (len(scores), 4) or not 0 <= count <= len(scores):
        raise EdgeError(f"the model answers {count} detections in boxes {boxes.shape} and scores {scores.shape}")
    boxes, scores, classes = boxes[:count], scores[:count], classes[:count]
    if count and not (classes.min() >= 0 and classes.max() < len(contract.classes)):
        raise EdgeError(f"the model answers class {classes.max()}, and has {len(contract.classes)} classes")
    _require_finite(boxes, scores)
    return box.to_image(boxes), scores, classes


def _require_finite(boxes: Any, scores: Any) -> None:
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise EdgeError(
            "the model's boxes or scores are not finite",
            "a NaN or infinity is in the weights, or a scale or an FP16 part overflows",
        )


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


def write_detections(
    out: Path, found: Detections, truth: Boxes, classes: tuple[str, ...], spec: ScoreSpec, *, how: str,
    simulated: bool, seconds: float, host: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write outcomes.npz (detections of every image) and score.json; `host` is a `HostTimes.document`."""
    np.savez(out / "outcomes.npz", offsets=found.offsets, boxes=found.boxes, scores=found.scores, classes=found.classes)
    figures = asdict(coco_figures(found, truth, classes, spec.metric))
    content = {
        "metric": spec.metric, "value": figures[spec.metric], "unit": "fraction", "n": len(found), "how": how,
        "simulated": simulated, "seconds": round(seconds, 3), "coco": figures, "host": host,
    }  # fmt: skip
    (out / "score.json").write_text(json.dumps(content, indent=1))


def read_detections(path: Path) -> Detections:
    """The detections of a score stage's outcomes.npz."""
    with np.load(path, allow_pickle=False) as file:
        return Detections(*(file[name] for name in ("offsets", "boxes", "scores", "classes")))
