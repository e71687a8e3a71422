"""What every detection format is read into before an image is decoded, and how it becomes `Boxes`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecnn.data.tables import listed
from edgecnn.data.walk import Places
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.sections import Part
from edgecnn.tasks.detect.boxes import Boxes

SLACK = 1e-3  # of an image's side: what rounding of a converter may put a box outside
NO_CLASS = -1


@dataclass(frozen=True)
class Row:
    """One labelled box. `box` is x1 y1 x2 y2, in pixels or, `relative`, in shares of the image's sides.

    `kind` is its class's number, NO_CLASS while only the `name` is known.
    """

    kind: int
    box: tuple[float, float, float, float]
    where: str  # file and line, for messages
    relative: bool = False
    crowd: bool = False
    name: str = ""


@dataclass(frozen=True)
class LabelledImage:
    """One image file and its boxes; `size` is the (height, width) that the labels say it has, where they say it."""

    file: Path
    rows: tuple[Row, ...]
    size: tuple[int, int] | None = None
    where: str = ""


@dataclass
class Faults:
    """What is wrong with labels, each with file and line."""

    found: list[str] = field(default_factory=list)

    def add(self, where: str, why: str) -> None:
        """Note one."""
        self.found.append(f"{where}: {why}")

    def refuse(self, hint: str) -> None:
        """Raise one EdgeError that lists them, the first ten in full."""
        if self.found:
            what = "broken label" if len(self.found) == 1 else f"{len(self.found)} broken labels"
            raise EdgeError(f"{what}: {listed(self.found)}", hint)


@dataclass(frozen=True)
class Annotated:
    """A detection dataset before splitting: classes in order, images numbered train, then select, then scored."""

    classes: tuple[str, ...]
    images: tuple[LabelledImage, ...]
    parts: dict[Part, range]

    @staticmethod
    def of(classes: tuple[str, ...], sets: dict[Part, list[LabelledImage]]) -> Annotated:
        """Number the images of the sets.

        Raises:
            EdgeError: a set is empty, or two sets share images.
        """
        images: list[LabelledImage] = []
        parts: dict[Part, range] = {}
        seen: dict[str, Part] = {}
        real = Places()
        for part, members in sets.items():
            if not members:
                raise EdgeError(f"`data.{part}` has no images", "check the folders or lists that it names")
            places = {real.of(image.file): image.file.name for image in members}
            shared = sorted(place for place in places if place in seen)
            if shared:
                raise EdgeError(
                    f"`{seen[shared[0]]}` and `{part}` share images: {listed([places[place] for place in shared])}",
                    "the sets must be disjoint; declare `data.train` alone and a share of it is set aside for scoring",
                )
            seen.update((place, part) for place in places)
            parts[part] = range(len(images), len(images) + len(members))
            images += members
        return Annotated(classes, tuple(images), parts)


def in_pixels(annotated: Annotated, sizes: NDArray[np.int32], left_out: set[int], hint: str) -> Boxes:
    """Boxes in pixels of the decoded images, cut at their edges.

    Args:
        sizes: (N, 2), (height, width) of every image as decoded.
        left_out: images whose labels are not looked at (corrupt ones).

    Raises:
        EdgeError: boxes outside their image, of no size or of an unknown class, and sizes that the labels contradict;
            all of them, by file and line.
    """
    faults = Faults()
    offsets, boxes = [0], list[tuple[float, ...]]()
    kinds, crowd = list[int](), list[bool]()
    for number, image in enumerate(annotated.images):
        if number not in left_out:
            height, width = (int(side) for side in sizes[number])
            if image.size is not None and image.size != (height, width):
                faults.add(
                    image.where,
                    f"the labels are for {image.size[1]}x{image.size[0]} pixels, `{image.file.name}` has "
                    f"{width}x{height} (as shown, after its EXIF rotation)",
                )
                offsets.append(len(kinds))
                continue
            for row in image.rows:
                box, why = _checked(row, height, width, len(annotated.classes))
                if why:
                    faults.add(row.where, why)
                    continue
                boxes.append(box)
                kinds.append(row.kind)
                crowd.append(row.crowd)
        offsets.append(len(kinds))
    faults.refuse(hint)
    return Boxes(
        np.asarray(offsets, np.int64), np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(kinds, np.int64),
        np.asarray(crowd, bool), sizes,
    )  # fmt: skip


def _checked(row: Row, height: int, width: int, classes: int) -> tuple[tuple[float, ...], str]:
    """(box in pixels, '') or ((), why it is broken)."""
    if not 0 <= row.kind < classes:
        return (), f"class {row.kind} is unknown; there are {classes}, 0 to {classes - 1}"
    values = np.asarray(row.box, np.float64)
    if not np.isfinite(values).all():
        return (), "a coordinate is not a number"
    ends = np.asarray([width, height, width, height], np.float64)
    if row.relative:
        if ((values < -SLACK) | (values > 1 + SLACK)).any():
            return (), f"the box reaches outside [0, 1]: {', '.join(f'{value:.6g}' for value in values)}"
        values = values * ends
    if values[2] <= values[0] or values[3] <= values[1]:
        return (), f"the box has width {values[2] - values[0]:.6g} and height {values[3] - values[1]:.6g}"
    cut = np.clip(values, 0, ends)
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        return (), f"the box lies outside the image of {width}x{height} pixels"
    return tuple(float(side) for side in cut), ""
