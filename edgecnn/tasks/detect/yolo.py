"""YOLO datasets: a data.yaml that names folders or lists of images; a text file of boxes beside each image's folder.

Label files as Ultralytics documents them: the image's path with its last `images` folder called `labels`, a line per
box, `class x_center y_center width height` in shares of the image, or a polygon of such points, whose box is taken, or,
with `kpt_shape`, a box and its keypoints. An empty or absent file means background.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from edgecnn.data.texts import MIB, read_text
from edgecnn.data.walk import images_below, say_passed
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import DataSpec
from edgecnn.recipe.sections import Part
from edgecnn.store.digests import is_folder, is_regular
from edgecnn.tasks.detect.annotations import Annotated, Faults, LabelledImage, Row
from edgecnn.tasks.detect.yolo_yaml import DataYaml, read_data_yaml

HINT = "correct these lines, or set `data.skip_corrupt: true` to leave out images with broken labels"
LABEL_ENDINGS = (".cache", ".json", ".txt", ".xml")  # what labelling tools leave beside images
MOST_BYTES = 64 * MIB  # of one image's label file
BOX = 5  # values of a row: class x y width height
FEWEST_POSES = 5  # rows that must agree before a dataset is taken for one of keypoints


def read_yolo(spec: DataSpec) -> Annotated:
    """Read names and labels. `data.train`, `data.select` and `data.scored` are keys of data.yaml.

    Undeclared: its `train`, and for scoring its `val`, if it is there and another.

    Raises:
        EdgeError: no or a broken data.yaml, missing folders, lists or images, broken label lines (all, by line).
    """
    content = read_data_yaml(spec)
    faults = Faults()
    reader = _Rows(content.keypoints)
    sets: dict[Part, list[LabelledImage]] = {}
    passed: Counter[str] = Counter()
    for part, key in content.keys(spec).items():
        files = [file for place in content.sets[key] for file in _images(place, content, key, passed)]
        once = {os.path.normpath(file): file for file in files}
        labelled = (
            _labelled(once[name], reader, spec.skip_corrupt, faults) for name in sorted(once, key=Path)
        )  # as paths: by folder
        sets[part] = [image for image in labelled if image is not None]
    say_passed(passed)
    faults.refuse(HINT)
    reader.refuse_poses(content.path)
    return Annotated.of(content.classes, sets)


def watched(spec: DataSpec) -> list[tuple[str, Path]]:
    """(name, path) of every folder and list that the dataset reads, for its digest; none if data.yaml is bad."""
    try:
        content = read_data_yaml(spec)
        found = [("data.yaml", content.path)]
        for key in content.keys(spec).values():
            for place in content.sets[key]:
                found.append((key, place))
                if is_folder(place) and is_folder(labels := _labels_of(place)):
                    found.append((f"{key} labels", labels))
                elif is_regular(place):
                    for file in _images(place, content, key, Counter()):
                        found += [(file.name, file), (f"labels of {file.name}", label_file(file))]
    except (EdgeError, OSError):
        return []  # prepare reads it again and tells
    return found


def label_file(image: Path) -> Path:
    """Where an image's boxes are: its last `images` folder called `labels`, the name with `.txt`."""
    return _labels_of(image.parent) / f"{image.stem}.txt"


def _labels_of(folder: Path) -> Path:
    parts = list(folder.parts)
    for number in range(len(parts) - 1, -1, -1):
        if parts[number] == "images":
            parts[number] = "labels"
            break
    return Path(*parts)


def _images(place: Path, content: DataYaml, key: str, passed: Counter[str]) -> list[Path]:
    path = content.path
    if is_folder(place):
        walked = images_below(place, beside=LABEL_ENDINGS)
        if not walked.files:
            raise EdgeError(
                f"`{place}`, which `{key}` of `{path}` names, has no images", "correct the path, or put images there"
            )
        passed += walked.passed
        return [place / file for file in walked.files]
    if not is_regular(place):
        raise EdgeError(
            f"`{key}` of `{path}` names `{place}`, which does not exist",
            "correct it; paths are relative to `path`, and `path` to the YAML file",
        )
    found, faults = [], Faults()
    for number, line in enumerate(read_text(place).split("\n"), 1):
        if not line.strip():
            continue
        image = place.parent / line.strip()
        if is_regular(image):
            found.append(image)
        else:
            faults.add(f"{place.name}:{number}", f"no image `{image}`")
    faults.refuse("correct the list; its paths are relative to its own folder")
    return found


def _labelled(image: Path, reader: _Rows, skip: bool, faults: Faults) -> LabelledImage | None:
    """One image with its boxes; None where its labels are broken and may be left out."""
    path = label_file(image)
    where = "/".join(path.parts[-3:])
    own = Faults()
    rows = []
    text = ""
    try:
        text = read_text(path, MOST_BYTES)
    except FileNotFoundError:
        if path.is_symlink():
            own.add(where, "is a link that leads nowhere")
    except EdgeError as error:
        own.add(where, error.message)
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row, why = reader.row(line.split(), f"{where}:{number}")
            if row is None:
                own.add(f"{where}:{number}", why)
            else:
                rows.append(row)
    if own.found and skip:
        return None
    faults.found += own.found
    once = {(row.kind, row.box): row for row in rows}  # tools write a box twice; it is one object
    return LabelledImage(image, tuple(once.values()), where=where)


@dataclass
class _Rows:
    """Reads rows, and keeps what tells keypoints from polygons: rows by their number of values, boxes left out."""

    keypoints: int
    lengths: Counter[int] = field(default_factory=Counter)
    posed: int = 0  # of those, rows whose points all lie in the box that their first values would be

    def row(self, cells: list[str], where: str) -> tuple[Row | None, str]:
        """(row, '') or (None, why it is broken)."""
        try:
            numbers = [_number(cell) for cell in cells]
        except ValueError:
            return None, f"not numbers: {' '.join(cells)[:60]}"
        count = len(numbers)
        if self.keypoints and count == BOX + self.keypoints:
            numbers = numbers[:BOX]
        elif self.keypoints and count != BOX:
            return None, f"{count} values; by `kpt_shape` a row has {BOX + self.keypoints}: a box and its keypoints"
        elif count < BOX or (count > BOX and count % 2 == 0):
            return None, f"{count} values; a box has 5 (class x y width height), a polygon an odd number from 7"
        elif count == BOX + 2 and cells[-1].isdecimal():
            return None, (
                "7 values, the last a whole number: a tracker's box, or a triangle? "
                "Keep the first five, or write the triangle with decimal points"
            )
        if not 0 <= numbers[0] < 2**31 or numbers[0] % 1:
            return None, f"class {cells[0][:20]} is not a number from 0"
        kind = int(numbers[0])
        if len(numbers) > BOX:
            across, down = numbers[1::2], numbers[2::2]
            self.lengths[count] += 1
            self.posed += _looks_posed(numbers)
            return Row(kind, (min(across), min(down), max(across), max(down)), where, relative=True), ""
        x, y, width, height = numbers[1:]
        if width <= 0 or height <= 0:
            return None, f"the box has width {width:.6g} and height {height:.6g}"
        if not all(0 <= value <= 1 for value in (x, y, width, height)):
            return None, f"outside [0, 1]: {' '.join(cells[1:BOX])[:80]}"
        # Half a box may stick out: labels are of whole objects, cut at the image's edge.
        left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        return Row(kind, (max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0)), where, relative=True), ""

    def refuse_poses(self, path: Path) -> None:
        """Refuse keypoints that data.yaml does not declare: read as polygons, their boxes would be wrong.

        That all rows have one length, and every point lies within the box of its row's first values, is not chance.

        Raises:
            EdgeError: the rows are such.
        """
        rows = self.lengths.total()
        if rows >= FEWEST_POSES and len(self.lengths) == 1 and self.posed == rows:
            (count,) = self.lengths
            raise EdgeError(
                f"the labels of `{path}` look like boxes with keypoints ({count} values a row), not like polygons",
                f"declare `kpt_shape: [{(count - BOX) // 2}, 2]` there, or keep each row's first five values",
            )


def _looks_posed(numbers: list[float]) -> bool:
    """At least three points (two are a rotated box's last ones), all within the box, or (0, 0) for unseen ones."""
    x, y, width, height = numbers[1:BOX]
    points = list(zip(numbers[BOX::2], numbers[BOX + 1 :: 2], strict=True))
    return len(points) >= 3 and all(
        (across == down == 0) or (2 * abs(across - x) <= width and 2 * abs(down - y) <= height)
        for across, down in points
    )


def _number(cell: str) -> float:
    """A decimal number as programs write it; Python alone also takes `1_000` and other scripts' digits."""
    value = float(cell)
    if not cell.isascii() or "_" in cell or not math.isfinite(value):
        raise ValueError(cell)
    return value
