"""What a report shows of a detector beside its figures: precision over recall, and the images that changed most."""

from __future__ import annotations

from typing import Literal

from edgecnn.recipe.spec import Spec


class PrecisionRecall(Spec):
    """Mean precision of all classes at the recalls 0, 0.01, …, 1; a curve's mean is the mAP at this overlap."""

    iou: float
    float_precision: tuple[float, ...]
    int8_precision: tuple[float, ...]


class DrawnBox(Spec):
    """A box x1 y1 x2 y2 in pixels of the original image. `only`: the one model that has it; None: both do."""

    box: tuple[float, float, float, float]
    name: str  # of the class
    score: float
    by: Literal["float", "int8"]
    only: bool


class ChangedImage(Spec):
    """An image by its number in the scored split, and what of its boxes is drawn. Sides in pixels."""

    number: int
    name: str
    height: int
    width: int
    change: float
    boxes: tuple[DrawnBox, ...]

    def count(self, by: Literal["float", "int8"]) -> int:
        """Boxes that this model alone has."""
        return sum(box.only for box in self.boxes if box.by == by)
