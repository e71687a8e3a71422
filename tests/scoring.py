"""Scores made by hand: a Runner judged in this process, a score stage's folder, classifiers that differ by counts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.recipe.io_contract import IoContract
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.report import Check
from edgecnn.tasks import load_task
from edgecnn.tasks.classify.outcomes import Classified
from edgecnn.tasks.detect.boxes import Boxes
from edgecnn.tasks.detect.coco_eval import coco_figures
from edgecnn.tasks.detect.detect import Detections
from edgecnn.tasks.score import judged
from edgecnn.verdict.accuracy_checks import drop_check

CLASSIFY, DETECT = load_task("classify"), load_task("detect")


def score_runner(runner: Any, contract: IoContract, images: Any, targets: Any, spec: ScoreSpec) -> Any:
    """The outcomes of a Runner on images."""
    return judged(runner, load_task(contract.task), contract, images, targets, spec)[1]


def score_detector(runner: Any, contract: IoContract, images: Any, truth: Boxes, spec: ScoreSpec) -> Detections:
    """What a Runner detects on images."""
    found: Detections = score_runner(runner, contract, images, truth, spec).found
    return found


def write_detections(
    out: Path, found: Detections, truth: Boxes, classes: tuple[str, ...], metric: str, *, how: str = "x",
    host: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """The folder that a score stage leaves of these detections."""
    np.savez(out / "outcomes.npz", **vars(found))
    coco = asdict(coco_figures(found, truth, classes, metric))
    content = {
        "metric": metric, "value": coco[metric], "unit": "fraction", "coco": coco, "host": host, "n": len(found),
        "how": how, "simulated": False, "seconds": 1.0,
    }  # fmt: skip
    (out / "score.json").write_text(json.dumps(content))


def classified(b: int, c: int, n: int) -> tuple[Classified, Classified]:
    """Two classifiers on n images: b only the first gets right, c only the second, the others both."""
    label, predicted = np.zeros(n, np.int64), np.zeros(n, np.int64)
    first, second = np.ones(n, np.float32), np.ones(n, np.float32)
    second[:b], first[n - c :] = 0.0, 0.0
    return Classified(label, predicted, first), Classified(label, predicted, second)


def counted_check(name: str, b: int, c: int, n: int, limit: float) -> Check:
    """The check of a drop between two such classifiers."""
    return drop_check(name, CLASSIFY, *classified(b, c, n), "top1", limit)
