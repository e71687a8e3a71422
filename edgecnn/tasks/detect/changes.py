"""What INT8 changed of a detector's answers: precision over recall, and the images that changed most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgecnn.report.detection import ChangedImage, DrawnBox, PrecisionRecall
from edgecnn.tasks.detect.average_precision import Matches, overlap
from edgecnn.tasks.detect.boxes import Boxes
from edgecnn.tasks.detect.detect import Detections

IOU = 0.5  # of the curve, and from which two boxes are one object's
SHOWN = 0.25  # score above which a box is drawn
MOST_IMAGES = 12
MOST_BOXES = 60  # drawn on one image: what one model alone has, then the surest


def precision_recall(reference: Matches, after: Matches) -> PrecisionRecall:
    """The curves of FP32 and INT8."""
    first, second = (
        tuple(round(float(value), 5) for value in matches.precisions(IOU)) for matches in (reference, after)
    )
    return PrecisionRecall(iou=IOU, float_precision=first, int8_precision=second)


def changed_images(
    reference: Detections, after: Detections, truth: Boxes, classes: tuple[str, ...], names: tuple[str, ...]
) -> tuple[ChangedImage, ...]:
    """The images whose detections INT8 changed most, the most changed first; none that it left as they were.

    Boxes of a class that overlap by at least IOU are one object's, the surest pair first. An object's change is the
    difference of the scores plus what the overlap lacks to 1; where one model alone has it, its score. An image's is
    the sum of their squares over all objects that either model is sure enough of to be drawn: one lost object outweighs
    many that moved a little. A box that passes the drawing threshold by a hair with one model and not with the other is
    drawn as that model's own, and hardly counts.

    Args:
        names: of the images.
    """
    found = [_changed(reference, after, number) for number in range(len(truth))]
    order = np.argsort([-change for change, _ in found], kind="stable")[:MOST_IMAGES]
    images = []
    for number in (int(one) for one in order if found[one][0] > 0):
        change, rows = found[number]
        height, width = (int(side) for side in truth.sizes[number])
        rows = sorted(rows, key=lambda row: (not row[4], -row[1]))[:MOST_BOXES]
        drawn = tuple(
            DrawnBox.model_validate({
                "box": [round(float(side), 1) for side in box], "name": classes[kind], "score": round(score, 3),
                "by": by, "only": only,
            })
            for box, score, kind, by, only in rows
        )  # fmt: skip
        images.append(
            ChangedImage(
                number=number, name=names[number], height=height, width=width, change=round(change, 3), boxes=drawn
            )
        )
    return tuple(images)


_Row = tuple[NDArray[np.float32], float, int, str, bool]


def _changed(reference: Detections, after: Detections, number: int) -> tuple[float, list[_Row]]:
    """The change of one image, and the boxes to draw: box, score, class, model, whether it alone has it."""
    first, second = reference.of(number), after.of(number)
    change, rows = 0.0, list[_Row]()
    sure = [found[2][found[1] > SHOWN] for found in (first, second)]  # of hundreds of boxes a few; their classes alone
    for kind in np.union1d(*sure).tolist():
        mine, theirs = np.flatnonzero(first[2] == kind), np.flatnonzero(second[2] == kind)
        pairs = _paired(first[0][mine], second[0][theirs])
        partner = {int(mine[a]): (int(theirs[b]), share) for a, b, share in pairs}
        taken = {b for b, _ in partner.values()}
        objects: list[tuple[int | None, int | None, float]] = [
            *((int(a), *partner.get(int(a), (None, 0.0))) for a in mine),
            *((None, int(b), 0.0) for b in theirs if int(b) not in taken),
        ]
        for a, b, share in objects:
            scores = [0.0 if place is None else float(found[1][place]) for place, found in ((a, first), (b, second))]
            if max(scores) <= SHOWN:
                continue
            change += (abs(scores[0] - scores[1]) + (1 - share if a is not None and b is not None else 0.0)) ** 2
            only = min(scores) <= SHOWN
            for place, found, score, by in ((a, first, scores[0], "float"), (b, second, scores[1], "int8")):
                if place is not None and score > SHOWN:
                    rows.append((found[0][place], score, int(kind), by, only))
    return change, rows


def _paired(first: NDArray[np.float32], second: NDArray[np.float32]) -> list[tuple[int, int, float]]:
    """(first, second, overlap) of boxes that are one object's; both are in falling score, the surest chooses first."""
    if not len(first) or not len(second):
        return []
    shares = overlap(first, second, np.zeros(len(second), bool))
    pairs = []
    for number, row in enumerate(shares):
        best = int(row.argmax())
        if row[best] >= IOU:
            pairs.append((number, best, float(row[best])))
            shares[:, best] = -1.0
    return pairs
