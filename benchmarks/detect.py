"""What detectors need around the network: letterbox, decoding, non-maximum suppression, COCO's mAP, SQNR of the heads.

Two output layouts: `yolov8`, (1, 4 + classes, anchors) with boxes xywh in pixels and class scores; `yolox`,
(1, anchors, 5 + classes) with offsets of the grid, objectness and class scores. Scores are after the sigmoid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

GRAY = 114  # what both trainings fill the border with
LOWEST = 0.001  # score from which a box counts for mAP
MOST = 300  # boxes an image
_EDGE = 1e-7  # scores are held this far from 0 and 1 before they become logits


@dataclass(frozen=True)
class Fit:
    """How an image lies in the model's square: input pixel = original pixel × scale + (left, top)."""

    scale: float
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Truth:
    """Boxes of one image in its own pixels, xyxy float (N, 4), and classes (N,)."""

    boxes: np.ndarray
    classes: np.ndarray


def truth(text: str, fit: Fit) -> Truth:
    """A label file's boxes, `class cx cy w h` in shares of the image, a line each."""
    rows = np.array([[float(word) for word in line.split()] for line in text.splitlines() if line.strip()])
    rows = rows.reshape(-1, 5)
    centre, half = rows[:, 1:3], rows[:, 3:5] / 2
    scale = np.array([fit.width, fit.height] * 2)
    return Truth(np.concatenate([centre - half, centre + half], 1) * scale, rows[:, 0].astype(np.int64))


def letterbox(image: Image.Image, size: int, *, centred: bool) -> tuple[np.ndarray, Fit]:
    """Scale to fit, keep the aspect, fill with gray; centred (YOLOv8) or top left (YOLOX). uint8 (S, S, 3)."""
    scale = min(size / image.width, size / image.height)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = ((size - width) // 2, (size - height) // 2) if centred else (0, 0)
    canvas = np.full((size, size, 3), GRAY, np.uint8)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    canvas[top : top + height, left : left + width] = np.asarray(resized)
    return canvas, Fit(scale, left, top, image.width, image.height)


def parts(output: np.ndarray, layout: str) -> tuple[np.ndarray, np.ndarray]:
    """(boxes as the network gives them (anchors, 4), scores (anchors, 1 + classes or classes)) of one image."""
    if layout == "yolov8":
        return output[0, :4].T, output[0, 4:].T
    return output[0, :, :4], output[0, :, 4:]


def decoded(output: np.ndarray, layout: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes xyxy in input pixels, scores, classes of everything above LOWEST."""
    boxes, scores = parts(output, layout)
    if layout == "yolox":
        centres, strides = _grid(size)
        boxes = np.concatenate([(boxes[:, :2] + centres) * strides, np.exp(boxes[:, 2:]) * strides], axis=1)
        scores = scores[:, :1] * scores[:, 1:]
        scores = np.where(scores == scores.max(1, keepdims=True), scores, 0)  # YOLOX's own: one class an anchor
    anchors, classes = np.nonzero(scores > LOWEST)
    half = boxes[anchors, 2:] / 2
    corners = np.concatenate([boxes[anchors, :2] - half, boxes[anchors, :2] + half], axis=1)
    return corners, scores[anchors, classes], classes


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    centres, strides = [], []
    for stride in (8, 16, 32):
        cells = size // stride
        ys, xs = np.mgrid[:cells, :cells]
        centres.append(np.stack([xs, ys], -1).reshape(-1, 2))
        strides.append(np.full((cells * cells, 1), stride))
    return np.concatenate(centres).astype(np.float32), np.concatenate(strides).astype(np.float32)


def detections(output: np.ndarray, layout: str, fit: Fit, size: int, overlap: float) -> np.ndarray:
    """After class-wise non-maximum suppression: (N, 6) xyxy in the image's own pixels, score, class."""
    import torch
    from torchvision.ops import batched_nms

    boxes, scores, classes = decoded(output, layout, size)
    finite = np.isfinite(boxes).all(1) & np.isfinite(scores)
    boxes, scores, classes = boxes[finite], scores[finite], classes[finite]
    kept = batched_nms(
        torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(scores.astype(np.float32)),
        torch.from_numpy(classes), overlap,
    ).numpy()[:MOST]  # fmt: skip
    shift = np.array([fit.left, fit.top] * 2, np.float32)
    limits = np.array([fit.width, fit.height] * 2, np.float32)
    original = np.clip((boxes[kept] - shift) / fit.scale, 0, limits)
    return np.concatenate([original, scores[kept, None], classes[kept, None]], axis=1).astype(np.float64)


def mean_average_precision(found: list[np.ndarray], truths: list[Truth], fits: list[Fit]) -> float:
    """COCO's mAP50-95 over all images and the classes that appear, 0..1, by faster-coco-eval."""
    from faster_coco_eval import COCO, COCOeval_faster

    images, annotations, results = [], [], []
    for number, (detected, truth, fit) in enumerate(zip(found, truths, fits, strict=True)):
        images.append({"id": number, "width": fit.width, "height": fit.height})
        for box, category in zip(truth.boxes, truth.classes, strict=True):
            width, height = float(box[2] - box[0]), float(box[3] - box[1])
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": int(category), "iscrowd": 0,
                "bbox": [float(box[0]), float(box[1]), width, height], "area": width * height,
            })  # fmt: skip
        for row in detected:
            results.append({
                "image_id": number, "category_id": int(row[5]), "score": float(row[4]),
                "bbox": [float(row[0]), float(row[1]), float(row[2] - row[0]), float(row[3] - row[1])],
            })  # fmt: skip
    if not results:
        return 0.0
    categories = [{"id": category, "name": str(category)} for category in range(80)]
    truth = COCO({"images": images, "annotations": annotations, "categories": categories, "info": {}, "licenses": []})
    evaluation = COCOeval_faster(truth, truth.loadRes(results), iouType="bbox", print_function=lambda *_: None)
    evaluation.run()
    return float(evaluation.stats_as_dict["AP_all"])


def logits(scores: np.ndarray) -> np.ndarray:
    """The sigmoid undone, in float64."""
    held = np.clip(scores.astype(np.float64), _EDGE, 1 - _EDGE)
    return np.log(held / (1 - held))


def sqnr(exact: list[np.ndarray], got: list[np.ndarray]) -> float:
    """10 log10 of signal over error power, over all arrays."""
    signal = math.fsum(float(np.square(a.astype(np.float64)).sum()) for a in exact)
    noise = math.fsum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(exact, got, strict=True))
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else 200.0
