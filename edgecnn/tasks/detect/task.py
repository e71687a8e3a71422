"""Detection: labelled boxes an image; mean average precision, with bounds by a bootstrap over images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgecnn.data.index import read_index
from edgecnn.data.letterbox import Letterbox
from edgecnn.measure.stats import Bounds
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.io_contract import IoContract
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.report.wording import metric_text
from edgecnn.tasks import Arrays, Drop
from edgecnn.tasks.compared import Compared
from edgecnn.tasks.detect.answers import answered, raw_outputs
from edgecnn.tasks.detect.average_precision import map_bounds, map_drop, match
from edgecnn.tasks.detect.boxes import Boxes
from edgecnn.tasks.detect.boxes import boxes as read_boxes
from edgecnn.tasks.detect.coco_eval import coco_figures
from edgecnn.tasks.detect.detect import Detections
from edgecnn.tasks.detect.figures import (
    class_figures,
    figures,
    float_note,
    host_figures,
    paired_figures,
    parts,
)
from edgecnn.tasks.detect.host_latency import HostTimes
from edgecnn.tasks.detect.outcomes import Detected
from edgecnn.tasks.detect.prepare import prepare, watch

__all__ = [
    "BOUNDS_BY", "LEAST_IMAGES", "bounds", "class_figures", "content", "drop", "drop_text", "figures", "float_note",
    "host_figures", "keep", "kept", "nothing_proved", "paired_figures", "parts", "prepare", "read", "reader",
    "refuse_useless", "restore", "same_targets", "slim", "take", "targets", "watch", "write",
]  # fmt: skip

LEAST_IMAGES = 50  # an image holds many boxes, and mAP moves in small steps
BOUNDS_BY = "bootstrap over images"
LEAST_MAP = 0.01  # of a detector that has found anything
QUICK = 200  # resamples of the bootstrap while climbing: the bounds are told, the point decides
TRUTH = ("offsets", "boxes", "classes", "crowd", "sizes")
FOUND = ("offsets", "boxes", "scores", "classes")
MOST_CLASSES = 100_000  # matches are counted for each class up to the highest
_HINT = "train it further, give other weights, or leave the accuracy budget out"
_FOREIGN_HINT = (
    "check --input (range, color, mean, std) and --decode, and that the data names the model's classes in its order"
)


class BoxReader:
    """Suppresses, and brings the boxes back to the original images. See `Reader`.

    The model answers the contract's outputs: boxes (N, A, 4) x1 y1 x2 y2 in pixels of its input and scores (N, A, C),
    or detections where the graph suppresses, or one output in a layout of `decode`.
    """

    def __init__(self, contract: IoContract, spec: ScoreSpec, truth: Boxes, *, final: bool = False) -> None:
        self.contract, self.spec, self.truth = contract, spec, truth
        self.times = HostTimes() if final else None
        self.found: list[tuple[Any, Any, Any]] = []
        self.numbers: list[int] = []

    def take(self, answers: Mapping[str, Any], numbers: Sequence[int]) -> None:
        """See Reader."""
        for row, number in enumerate(numbers):
            height, width = (int(side) for side in self.truth.sizes[number])
            box = Letterbox(height, width, self.contract.input.size)
            self.found.append(answered(answers, self.contract, row, box, self.spec))
            if self.times is not None and self.contract.nms is None:
                self.times.suppress(*raw_outputs(answers, self.contract, row), box, self.spec)
        self.numbers += numbers

    def outcomes(self) -> Detected:
        """See Reader."""
        truth = self.truth.take(np.asarray(self.numbers, np.int64))
        found = Detections.joined(self.found)
        return Detected(found, truth, match(found, truth, len(self.contract.classes)))

    def figures(self, outcomes: Detected) -> dict[str, Any]:
        """See Reader; COCO's figures, and the times of the host's steps."""
        coco = asdict(coco_figures(outcomes.found, outcomes.truth, self.contract.classes, self.spec.metric))
        host = self.times.document(self.contract, self.truth) if self.times else None
        return {
            "metric": self.spec.metric, "value": coco[self.spec.metric], "unit": "fraction", "coco": coco, "host": host,
        }  # fmt: skip


reader = BoxReader


def targets(data: Path, split: Literal["select", "scored"]) -> Boxes:
    """See Task."""
    return read_boxes(data, split)


def take(targets: Boxes, numbers: NDArray[Any]) -> Boxes:
    """See Task."""
    return targets.take(np.asarray(numbers, np.int64))


def content(targets: Boxes) -> Iterator[bytes]:
    """See Task."""
    for part in (targets.offsets, targets.boxes, targets.classes, targets.crowd):
        yield part.tobytes()


def keep(contract: IoContract, spec: ScoreSpec) -> dict[str, Any]:
    """Of a detector's anchors only those that the metric looks at."""
    by_meaning = {output.meaning: output.name for output in contract.outputs}
    if contract.nms is not None or set(by_meaning) != {"boxes", "scores"}:
        return {}
    return {"rows": by_meaning["scores"], "above": spec.confidence}


def slim(outcomes: Detected) -> Detected:
    """Without the detections: their matches are enough."""
    return replace(outcomes, found=Detections.joined([]))


def refuse_useless(outcomes: Detected, contract: IoContract, spec: ScoreSpec) -> None:
    """See Task.

    Raises:
        EdgeError: next to nothing is found.
    """
    value = float(outcomes.matches.mean_ap(spec.metric)[0])
    if value < LEAST_MAP:
        own = {output.meaning for output in contract.outputs} == {"boxes", "scores"}
        raise EdgeError(
            f"the float model's {metric_text(spec.metric)} is {value:.3f} on {len(outcomes)} select images: an"
            " accuracy budget against it proves nothing",
            _HINT if own else _FOREIGN_HINT,
        )


def bounds(outcomes: Detected, metric: str) -> Bounds:
    """By a bootstrap over images."""
    return map_bounds(outcomes.matches, metric)


def drop(first: Detected, second: Detected, metric: str, *, quick: bool = False) -> Drop:
    """By a paired bootstrap over images."""
    more = {"resamples": QUICK} if quick else {}
    lost, value = map_drop(first.matches, second.matches, metric, **more), float(first.matches.mean_ap(metric)[0])
    return Drop(value, value - lost.point, lost.lower, lost.upper, len(first), None)


def drop_text(first: Detected, second: Detected, metric: str, names: tuple[str, str]) -> str:
    """How the bounds were made."""
    return f"{metric_text(metric)}, paired bootstrap over {len(first):,} images, 1,000 resamples"


def nothing_proved(outcomes: Detected, metric: str, *, sure: bool = False) -> str:
    """Why matches prove nothing: no labelled box, or hardly one found; '' where they do."""
    boxes = sum(int(kind.truths.sum()) for kind in outcomes.matches.classes)
    if not boxes:
        return f"the {len(outcomes):,} images have no labelled box: that proves nothing"
    value = float(outcomes.matches.mean_ap(metric)[0])
    if value >= LEAST_MAP:
        return ""
    return (
        f"{metric_text(metric)} is {100 * value:.2f} % of {boxes:,} labelled boxes: that proves nothing; is the model"
        " trained, and do classes and preprocessing fit it?"
    )


def write(outcomes: Detected, path: Path) -> None:
    """The detections."""
    np.savez(path, **vars(outcomes.found))


def read(path: Path, data: Path) -> Detected:
    """The detections, matched with the scored boxes of the data folder."""
    truth = read_boxes(data, "scored")
    with np.load(path, allow_pickle=False) as file:
        found = Detections(*(file[name] for name in FOUND))
    if len(found) != len(truth):
        raise EdgeError(f"`{path.parent}` is not of the scored images", "run `edgecnn clean` and build again")
    return Detected(found, truth, match(found, truth, len(read_index(data).classes)))


def kept(compared: Compared) -> Arrays:
    """The labelled boxes (`truth_*`) and each model's detections, as `Boxes` and `Detections` hold them."""
    arrays = {f"truth_{key}": value for key, value in vars(compared.reference.outcomes.truth).items()}
    for name, scores in compared.by_name().items():
        arrays |= {f"{name}_{key}": value for key, value in vars(scores.outcomes.found).items()}
    return arrays


def restore(kept: Arrays) -> Detected:
    """See Task."""
    needed = (*(f"truth_{key}" for key in TRUTH), *(f"int8_{key}" for key in FOUND))
    if missing := [name for name in needed if name not in kept]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    if any(values.dtype.kind not in "fiub" for values in kept.values()):
        raise ValueError("its arrays are not numbers")
    if not all(np.isfinite(values).all() for values in kept.values()):
        raise ValueError("its arrays hold NaN or infinity")
    images = len(kept["truth_sizes"])
    for prefix, keys in (("truth", TRUTH), ("int8", FOUND)):
        offsets = kept[f"{prefix}_offsets"]
        rows = len(kept[f"{prefix}_classes"])
        whole = offsets.shape == (images + 1,) and images > 0 and offsets[0] == 0 and offsets[-1] == rows
        if not whole or (np.diff(offsets) < 0).any() or kept[f"{prefix}_boxes"].shape != (rows, 4):
            raise ValueError("its boxes are not of these images")
        if any(kept[f"{prefix}_{key}"].shape != (rows,) for key in keys if key in ("scores", "classes", "crowd")):
            raise ValueError("its boxes are not of these images")
        if offsets.dtype.kind not in "iu":
            raise ValueError("its offsets are not whole numbers")
        kinds = kept[f"{prefix}_classes"]
        if kinds.dtype.kind not in "iu" or not ((kinds >= 0) & (kinds < MOST_CLASSES)).all():
            raise ValueError("its classes are not class numbers")
    if kept["truth_crowd"].dtype != bool or kept["truth_sizes"].shape != (images, 2):
        raise ValueError("its boxes are not of these images")
    truth = Boxes(*(kept[f"truth_{key}"] for key in TRUTH))
    return Detected.of(Detections(*(kept[f"int8_{key}"] for key in FOUND)), truth)


def same_targets(first: Detected, second: Detected) -> bool:
    """See Task."""
    return all(np.array_equal(getattr(first.truth, key), getattr(second.truth, key)) for key in TRUTH)
