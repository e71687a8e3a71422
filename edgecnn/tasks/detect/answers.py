"""A detector's outputs → boxes on the original image, whoever suppresses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgecnn.data.letterbox import Letterbox
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.io_contract import IoContract
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.tasks.detect.decode import decode
from edgecnn.tasks.detect.detect import detect


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
            f"the model gives boxes {boxes.shape} and scores {scores.shape} for {len(contract.classes)} classes"
        )
    _require_finite(boxes, scores)
    return boxes, scores


def _suppressed(outputs: Mapping[str, Any], contract: IoContract, number: int, box: Letterbox) -> tuple[Any, Any, Any]:
    """The rows of image `number` that the graph's own suppression filled."""
    count = int(np.asarray(outputs["num_detections"][number]).reshape(-1)[0])
    boxes, scores = (np.asarray(outputs[f"detection_{part}"][number], np.float32) for part in ("boxes", "scores"))
    classes = np.asarray(outputs["detection_classes"][number], np.int64)
    if boxes.shape != (len(scores), 4) or not 0 <= count <= len(scores):
        raise EdgeError(f"the model gives {count} detections in boxes {boxes.shape} and scores {scores.shape}")
    boxes, scores, classes = boxes[:count], scores[:count], classes[:count]
    if count and not (classes.min() >= 0 and classes.max() < len(contract.classes)):
        raise EdgeError(f"the model gives class {classes.max()}, and has {len(contract.classes)} classes")
    _require_finite(boxes, scores)
    return box.to_image(boxes), scores, classes


def _require_finite(boxes: Any, scores: Any) -> None:
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise EdgeError(
            "the model's boxes or scores are not finite",
            "a NaN or infinity is in the weights, or a scale or an FP16 part overflows",
        )
