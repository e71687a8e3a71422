"""A detector without a recipe: which layout its output has, and which labelled images calibrate and judge it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgecnn.data import Images
from edgecnn.data.checking import check_images, corrupt_error
from edgecnn.data.index import Labels
from edgecnn.data.loading import decoded
from edgecnn.data.openers import FileImages
from edgecnn.foreign.budget import HELD, calibrating_spec
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.io_contract import IoContract
from edgecnn.recipe.recipe import DataSpec, Promise, QuantizeSpec
from edgecnn.store.digests import is_regular
from edgecnn.tasks.detect.annotations import Annotated, in_pixels
from edgecnn.tasks.detect.boxes import Boxes
from edgecnn.tasks.detect.prepare import annotated, require_truth
from edgecnn.tasks.detect.yolo_yaml import absent

if TYPE_CHECKING:
    from edgecnn.quantize.ladder.judge import Selected

FIX = "correct these labels, or take their images out of the dataset"
FORMATS = {".yaml": "yolo", ".yml": "yolo", ".json": "coco"}


def labelled_boxes(data: Path, *, judged: bool = True) -> tuple[Annotated, str] | None:
    """The dataset of a YOLO data.yaml or a COCO JSON and how broken labels are fixed; None of any other path.

    Unless the model is `judged`, what a data.yaml's `val` names need not be there.

    Raises:
        EdgeError: whatever is wrong with it, by file and line.
    """
    form = FORMATS.get(data.suffix.lower())
    if form is None:
        return None
    if not is_regular(data):
        raise EdgeError(f"data path `{data}` does not exist", "give the dataset's data.yaml, or its COCO JSON")
    try:
        spec = DataSpec.model_validate({"format": form, "root": data.absolute()})
        if form == "yolo" and not judged and absent(spec):
            spec = spec.model_copy(update={"train": "train"})
        found, _ = annotated(spec)
    except EdgeError as error:
        if "skip_corrupt" in error.hint:  # a recipe's key
            raise EdgeError(error.message, FIX) from error
        raise
    return found, FIX


def share_out_boxes(
    data: tuple[Annotated, str], contract: IoContract, spec: QuantizeSpec, promise: Promise
) -> tuple[Images, Selected | None, Images | None]:
    """(calibration images, with a budget labelled images that judge it, others to compare outputs on).

    Each in a seeded order. Training images calibrate. The validation set judges where the dataset declares one, else
    the training images left; the outputs are compared on what judges, without a budget on training images left first.

    Raises:
        EdgeError: a budget and no images left to judge it with, corrupt images, or broken labels.
    """
    found, hint = data
    random = np.random.RandomState(0)  # its stream never changes between numpy versions (NEP 19)
    train = random.permutation(np.asarray(found.parts["train"]))
    other = random.permutation(np.asarray(found.parts.get("scored", ())))
    judged = promise.max_accuracy_drop is not None
    spec = calibrating_spec(spec, len(train), judged=judged and not len(other))
    pixels, _ = _read(found, hint, train[: spec.images], contract)
    left = train[spec.images :]
    if not judged:
        held = (left if len(left) >= len(other) else other)[:HELD]
        return pixels, None, _read(found, hint, held, contract)[0] if len(held) else None
    judging = (other if len(other) else left)[: spec.select_images]
    if not len(judging):
        raise EdgeError(
            f"the dataset has {len(train)} labelled images, and --images {spec.images} of them calibrate: none is left"
            " to judge the accuracy budget with",
            "lower --images, or give more labelled images",
        )
    from edgecnn.quantize.ladder.judge import Selected

    shown, boxes = _read(found, hint, judging, contract)
    require_truth(boxes, "the set that judges", where=found.images[int(judging[0])].where)
    return pixels, Selected(shown, boxes), shown


def _read(found: Annotated, hint: str, numbers: Labels, contract: IoContract) -> tuple[Images, Boxes]:
    """The letterboxed images of these numbers, and their boxes."""
    some = Annotated(found.classes, tuple(found.images[number] for number in numbers), {"train": range(len(numbers))})
    folder = Path(os.path.commonpath([image.file.parent.absolute() for image in some.images]))
    files = tuple(image.file.absolute().relative_to(folder).as_posix() for image in some.images)
    opener = FileImages(folder, files, "gray" if contract.input.channels == 1 else "rgb")
    checked = check_images(opener, len(files))
    if checked.corrupt:
        raise corrupt_error(opener, checked.corrupt, "repair or remove them")
    boxes = in_pixels(some, checked.sizes, set(), hint)
    given = contract.input
    pixels = decoded(opener, np.arange(len(files)), given.size, given.channels, given.fit)
    return Images((pixels,)), boxes
