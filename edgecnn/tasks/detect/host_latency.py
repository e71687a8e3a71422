"""What a detector costs beside its engine, measured where it is scored: letterbox before it, suppression behind it.

One thread of this host, one image at a time. Suppression is timed on the model's real answers, at the confidence that
an application would ask (`CONFIDENCE`), not at the metric's, which keeps every trace of a box. The letterbox is timed
on images of the scored originals' sizes: a resize takes as long whatever it shows, and decoding is not in it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgecnn.backends.cpu import read_cpu
from edgecnn.data.letterbox import Letterbox
from edgecnn.data.pixels import fit_image
from edgecnn.recipe.io_contract import IoContract
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.tasks.detect.boxes import Boxes
from edgecnn.tasks.detect.detect import detect

CONFIDENCE = 0.25
MOST = 200  # images
SECONDS = 2.0  # of the letterbox: images of 8,000 pixels take long


@dataclass
class HostTimes:
    """Milliseconds of suppression, image by image."""

    nms_ms: list[float] = field(default_factory=list)

    def suppress(self, boxes: Any, scores: Any, box: Letterbox, spec: ScoreSpec) -> None:
        """Time it on one image's answers: boxes (A, 4) and scores (A, C) to boxes on the original image."""
        if len(self.nms_ms) < MOST:
            start = time.perf_counter_ns()
            detect(boxes, scores, box, confidence=CONFIDENCE, iou=spec.iou, max_detections=spec.max_detections)
            self.nms_ms.append((time.perf_counter_ns() - start) / 1e6)

    def document(self, contract: IoContract, truth: Boxes) -> dict[str, Any]:
        """What score.json keeps: medians and 90th percentiles in milliseconds, and their conditions."""
        before = _letterbox_ms(contract, truth)
        found: dict[str, Any] = {"hardware": read_cpu().name, "preprocess": _percentiles(before)}
        if self.nms_ms:
            found["nms"] = {**_percentiles(self.nms_ms), "confidence": CONFIDENCE}
        return found


def _letterbox_ms(contract: IoContract, truth: Boxes) -> list[float]:
    """Times from a decoded image to the model's input: letterbox, then layout, type and range."""
    random, channels = np.random.default_rng(0), contract.input.channels
    found: list[float] = []
    begun = time.perf_counter()
    for height, width in truth.sizes[:MOST].tolist():
        image = random.integers(0, 256, (height, width, channels), np.uint8)
        start = time.perf_counter_ns()
        contract.feed(fit_image(image, contract.input.size, "letterbox")[None])
        found.append((time.perf_counter_ns() - start) / 1e6)
        if time.perf_counter() - begun > SECONDS:
            break
    return found


def _percentiles(ms: list[float]) -> dict[str, Any]:
    return {"images": len(ms), **{f"p{part}_ms": float(np.percentile(ms, part)) for part in (50, 90)}}
