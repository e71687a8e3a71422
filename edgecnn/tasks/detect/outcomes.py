"""What a detector found on images, and how it matches their labelled boxes."""

from __future__ import annotations

from dataclasses import dataclass

from edgecnn.tasks.detect.average_precision import Matches, match
from edgecnn.tasks.detect.boxes import Boxes
from edgecnn.tasks.detect.detect import Detections


@dataclass(frozen=True)
class Detected:
    """Detections of N images, their labelled boxes, and the matches of both."""

    found: Detections
    truth: Boxes
    matches: Matches

    def __len__(self) -> int:
        return len(self.truth)

    @staticmethod
    def of(found: Detections, truth: Boxes) -> Detected:
        """Matched for as many classes as either has."""
        classes = 1 + max([int(part.max()) for part in (truth.classes, found.classes) if len(part)], default=0)
        return Detected(found, truth, match(found, truth, classes))
