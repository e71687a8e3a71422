"""The raw output of a detector that others exported → boxes and scores, so that the same suppression and mAP judge it.

One output in one of three layouts, of a head without anchor boxes at strides 8, 16 and 32 (A cells in all, level by
level, row by row); C classes, pixels are the model input's:

    yolox          (N, A, 5 + C): x, y offsets in cells, log width and height in strides, objectness, class scores. What
                   Megvii's YOLOX exports by default (yolox/models/yolo_head.py, `decode_outputs`).
    yolox-pixels   the same with boxes decoded already: centre x, y, width, height (`decode_in_inference`).
    yolov8         (N, 4 + C, A): centre x, y, width, height, class scores. Ultralytics' export of YOLOv8, v9, 11, 12.

Scores are after the sigmoid. YOLOX takes an anchor for its best class alone, objectness times class score, as its own
post-processing does; YOLOv8 for every class.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from edgecnn.process.errors import EdgeError

Decoder = Literal["yolox", "yolox-pixels", "yolov8"]
STRIDES = (8, 16, 32)


def cells(size: tuple[int, int]) -> int:
    """How many cells a head has for images of (height, width)."""
    return sum((size[0] // stride) * (size[1] // stride) for stride in STRIDES)


def layout(decoder: str, classes: int, size: tuple[int, int]) -> tuple[int, int]:
    """What an image's output measures in this layout."""
    return (4 + classes, cells(size)) if decoder == "yolov8" else (cells(size), 5 + classes)


def decode(decoder: str, output: Any, classes: int, size: tuple[int, int]) -> tuple[Any, Any]:
    """Boxes (A, 4), x1 y1 x2 y2 in pixels of the model's input, and scores (A, C), float32, of one image.

    Args:
        output: of one image. size: (height, width) of the model's input.

    Raises:
        EdgeError: it has not this layout.
    """
    values = np.asarray(output, np.float32)
    wanted = layout(decoder, classes, size)
    if values.shape != wanted:
        raise EdgeError(
            f"an output of {values.shape} is not of layout `{decoder}`, which for {classes} classes and images of"
            f" {size[0]}x{size[1]} is {wanted}",
            "give the --decode of the model's layout, and data that names the model's classes in its order",
        )
    if decoder == "yolov8":
        centres, sides, scores = values[:2].T, values[2:4].T, values[4:].T
    else:
        centres, sides = values[:, :2], values[:, 2:4]
        scores = values[:, 4:5] * values[:, 5:]
        # One class an anchor; written so that NaN stays, to be refused.
        scores = np.where(scores < scores.max(axis=1, keepdims=True), np.float32(0), scores)
    if decoder == "yolox":
        places, strides = _grid(size)
        centres = (centres + places) * strides
        # As FP32 overflows at e^89 the sides are held below what any image has; NaN goes on, to be refused.
        sides = np.exp(np.minimum(sides, np.float32(20))) * strides
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    return np.ascontiguousarray(boxes), np.ascontiguousarray(scores)


def _grid(size: tuple[int, int]) -> tuple[Any, Any]:
    """(A, 2) column and row of every cell, and (A, 1) its stride."""
    places, strides = [], []
    for stride in STRIDES:
        rows, columns = np.mgrid[: size[0] // stride, : size[1] // stride]
        places.append(np.stack([columns, rows], axis=-1).reshape(-1, 2))
        strides.append(np.full((len(places[-1]), 1), stride))
    return np.concatenate(places).astype(np.float32), np.concatenate(strides).astype(np.float32)
