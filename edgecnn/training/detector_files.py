"""What Ultralytics' trainer is given: images, labels and a teacher in files of our own, never a link to a user's file.

Its reader repairs images where it finds them, and drops formats and sizes that it does not take. So each image is
decoded as everywhere else in edgecnn, turned upright, and written as a PNG file of the same pixels.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from edgecnn.data import Index
from edgecnn.data.checking import in_order
from edgecnn.data.openers import open_images
from edgecnn.data.tables import listed
from edgecnn.families.trained import read_trained
from edgecnn.process.disk import replacing
from edgecnn.process.errors import EdgeError
from edgecnn.process.progress import track
from edgecnn.recipe.recipe import DataSpec
from edgecnn.tasks.detect.boxes import Boxes

LEAST = 10  # pixels of a side: smaller images are dropped by the trainer


def write_dataset(folder: Path, spec: DataSpec, index: Index, boxes: Boxes) -> None:
    """A YOLO dataset of the train and select splits: images, label files, lists, data.yaml.

    Images that an interrupted run wrote are kept.

    Raises:
        EdgeError: images that the trainer would drop.
    """
    import yaml

    numbers = np.concatenate([index.splits["train"], index.splits["select"]])
    small = [str(index.files[number]) for number in numbers[boxes.sizes[numbers].min(axis=1) < LEAST].tolist()]
    if small:
        raise EdgeError(
            f"too small to train on, below {LEAST} pixels high or wide: {listed(small)}",
            "remove them from the training images",
        )
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    opener = open_images(spec, index)

    def write(number: int) -> None:
        path = image_file(folder, number)
        (folder / "labels" / f"{number:07d}.txt").write_text(label_text(boxes, number))
        if path.is_file():
            return
        pixels = opener(number)
        partial = path.with_suffix(".partial")
        plain = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        plain.save(partial, format="PNG", compress_level=1)  # twice as large as the best, ten times as fast
        os.replace(partial, path)

    for _ in track(in_order(write, numbers.tolist()), "writing images for the trainer", len(numbers)):
        pass
    for part in ("train", "select"):
        lines = [str(image_file(folder, number)) for number in index.splits[part].tolist()]
        (folder / f"{part}.txt").write_text("\n".join(lines) + "\n")
    content = {**described(folder, index), "names": list(index.classes)}
    (folder / "data.yaml").write_text(yaml.safe_dump(content, allow_unicode=True))


def image_file(folder: Path, number: int) -> Path:
    """Where an image of the index lies in the trainer's dataset."""
    return folder.absolute() / "images" / f"{number:07d}.png"


def described(folder: Path, index: Index) -> dict[str, object]:
    """The dataset as their trainer has it in memory: paths, classes, channels."""
    return {
        "path": str(folder.absolute()), "train": str(folder.absolute() / "train.txt"),
        "val": str(folder.absolute() / "select.txt"), "nc": len(index.classes), "names": dict(enumerate(index.classes)),
        "channels": index.channels,
    }  # fmt: skip


def label_text(boxes: Boxes, number: int) -> str:
    """The lines of one image's label file; crowd and difficult boxes are not trained on."""
    height, width = (float(side) for side in boxes.sizes[number])
    found, kinds, crowd = boxes.of(number)
    lines = []
    for (x1, y1, x2, y2), kind, group in zip(found.astype(np.float64), kinds, crowd, strict=True):
        if not group:
            centre = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height)
            lines.append(f"{kind} {centre[0]:.8f} {centre[1]:.8f} {(x2 - x1) / width:.8f} {(y2 - y1) / height:.8f}")
    return "\n".join(lines)


def write_teacher(path: Path, folder: Path, index: Index) -> Path:
    """The teacher as a file that Ultralytics' distillation reads.

    Raises:
        EdgeError: it is not a detector of these classes.
    """
    trained = read_trained(folder)
    if trained.card.family != "ultralytics" or trained.card.classes != index.classes:
        raise EdgeError(
            f"the teacher has {len(trained.card.classes)} classes, the data has {len(index.classes)}",
            "train the teacher on this data (`teacher.train.epochs`), or take one with these classes",
        )
    content = {"model": trained.net, "ema": None, "train_args": {}, "epoch": -1, "date": None, "version": "0"}
    with replacing(path) as part:
        torch.save(content, part)
    return path
