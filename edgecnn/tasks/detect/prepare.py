"""The data stage for detection: labelled boxes instead of classes, images letterboxed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import numpy as np

from edgecnn.data.checking import check_images
from edgecnn.data.index import Index, Prepared, write_index
from edgecnn.data.openers import FileImages, image_folder
from edgecnn.data.pixels import channels_of
from edgecnn.data.prepared import dataset_digest, left_out, say_shared, write_pixels
from edgecnn.data.splits import make_splits
from edgecnn.process.errors import EdgeError
from edgecnn.process.progress import current
from edgecnn.recipe.recipe import DataSpec
from edgecnn.tasks.detect import coco, voc, yolo
from edgecnn.tasks.detect.annotations import Annotated, in_pixels
from edgecnn.tasks.detect.boxes import Boxes


def annotated(spec: DataSpec) -> tuple[Annotated, str]:
    """The dataset's images and boxes as its files say, and how broken labels are corrected.

    Raises:
        EdgeError: whatever is wrong with them, by file and line.
    """
    match spec.format:
        case "yolo":
            return yolo.read_yolo(spec), yolo.HINT
        case "coco":
            return coco.read_coco(spec), coco.HINT
        case "voc":
            return voc.read_voc(spec), voc.HINT
        case _:
            raise AssertionError(f"{spec.format} has no boxes")


def watch(spec: DataSpec) -> dict[str, object]:
    """See `Task.watch`."""
    if spec.format == "yolo":
        return {f"data.root[{number}]: {name}": path for number, (name, path) in enumerate(yolo.watched(spec))}
    if spec.format == "coco":
        return {"data.root: images outside it": images} if (images := coco.outside(spec)) else {}
    return {}


def prepare(out: Path, spec: DataSpec, image_size: int) -> None:
    """As `prepare`: index, shards, and boxes.npz of all images, select_boxes.npz, scored_boxes.npz (`Boxes`).

    Raises:
        EdgeError: corrupt images, broken labels; by name.
    """
    found, hint = annotated(spec)
    folder = image_folder(spec)
    files = tuple(Path(os.path.relpath(image.file, folder)).as_posix() for image in found.images)
    opener = FileImages(folder, files, spec.color)
    checked = check_images(opener, len(files))
    skipped = left_out(opener, checked.corrupt, skip=spec.skip_corrupt)
    boxes = in_pixels(found, checked.sizes, set(checked.corrupt), hint)
    good = {
        part: np.array([n for n in numbers if n not in checked.corrupt], np.int64)
        for part, numbers in found.parts.items()
    }
    labels = np.zeros(len(files), np.int64)  # images have no class of their own: splits are drawn from all alike
    splits = make_splits(spec, ("image",), labels, good["train"], good.get("select"), good.get("scored"))
    for part in ("train", "scored"):
        require_truth(boxes.take(splits[part]), f"`{part}`", where=found.images[int(splits[part][0])].where)
    if not boxes.take(splits["select"]).truth:
        current().note("data: no image of `select` has a box, so recovery cannot be judged: give more, or declare it")
    say_shared(checked.digests, splits)
    contents = [boxes.boxes.tobytes(), boxes.classes.tobytes(), boxes.offsets.tobytes(), boxes.crowd.tobytes()]
    index = Index(
        classes=found.classes,
        channels=channels_of(spec.color),
        color=spec.color,
        fit=spec.fit,
        image_size=image_size,
        files=files,
        labels=labels,
        splits=splits,
        digest=dataset_digest(spec, found.classes, image_size, splits, [*contents, *checked.digests]),
        skipped=skipped,
    )
    _say(boxes, index)
    write_pixels(out, opener, splits, image_size, spec)
    boxes.write(out / "boxes.npz")
    for split in get_args(Prepared):
        if split != "calibrate":
            boxes.take(splits[split]).write(out / f"{split}_boxes.npz")
    write_index(out, index)


def require_truth(boxes: Boxes, images: str, *, where: str) -> None:
    """Refuse images without one box: whatever was found among them would be wrong, and a score of zero means nothing.

    Args:
        images: how messages call them.
        where: the place of the first one's labels, as its reader tells it.

    Raises:
        EdgeError: none has a box (crowd and difficult ones do not count).
    """
    if not boxes.truth:
        raise EdgeError(
            f"none of the {len(boxes):,} images of {images} has a labelled box",
            f"boxes are looked for in, for example, `{where}`: put the labels there, or images with objects in the set",
        )


def _say(boxes: Boxes, index: Index) -> None:
    counts = np.diff(boxes.offsets)
    used = np.concatenate([index.splits["train"], index.splits["select"], index.splits["scored"]])
    empty = int((counts[used] == 0).sum())
    crowd = f", {int(boxes.crowd.sum())} of them crowd or difficult" if boxes.crowd.any() else ""
    current().note(
        f"data: {len(used):,} images, {int(counts[used].sum()):,} boxes of {len(index.classes)} classes{crowd}; "
        f"{empty} images without objects"
    )
