"""What preparing does for every kind of dataset: corrupt images, copies between sets, pixels, the digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from edgecnn.data.checking import corrupt_error, in_order
from edgecnn.data.index import Prepared, Split, write_shards
from edgecnn.data.openers import Opener, read_image
from edgecnn.data.pixels import fit_image
from edgecnn.data.tables import listed
from edgecnn.data.walk import readable
from edgecnn.process.progress import current, track
from edgecnn.recipe.recipe import DataSpec

Splits = dict[Split, NDArray[np.int64]]


def left_out(opener: Opener, corrupt: dict[int, str], *, skip: bool) -> tuple[str, ...]:
    """Names of the corrupt images, which stay out.

    Raises:
        EdgeError: there are some, and none may be skipped.
    """
    if corrupt and not skip:
        raise corrupt_error(
            opener, corrupt, "repair or remove them, or set `data.skip_corrupt: true` to leave them out"
        )
    skipped = tuple(readable(opener.name(number)) for number in corrupt)
    if skipped:
        images = "corrupt image" if len(skipped) == 1 else "corrupt images"
        current().note(f"data: left out {len(skipped)} {images}: {listed(list(skipped))}")
    return skipped


def say_shared(digests: list[bytes], splits: Splits) -> None:
    """Copies of training images among the scored ones make the score too good: said, as only a person can judge."""
    seen = {digests[number] for split in ("train", "select") for number in splits[split]}
    copies = sum(digests[number] in seen for number in splits["scored"])
    if copies:
        current().note(f"data: {copies} of {len(splits['scored'])} scored images are exact copies of training images")


def write_pixels(out: Path, opener: Opener, splits: Splits, image_size: int, spec: DataSpec) -> None:
    """uint8 NHWC shards of calibrate, select and scored, at model size."""
    for split in get_args(Prepared):
        numbers = splits[split]
        fitted = in_order(lambda number: fit_image(read_image(opener, number), image_size, spec.fit), numbers.tolist())
        write_shards(out, split, len(numbers), track(fitted, f"writing {split}", len(numbers)))


def dataset_digest(
    spec: DataSpec, classes: tuple[str, ...], image_size: int, splits: Splits, contents: list[bytes]
) -> str:
    """Hex SHA-256 of how images are fitted, of the splits, and of labels and images as `contents`."""
    content = hashlib.sha256()
    facts = {"classes": classes, "color": spec.color, "fit": spec.fit, "image_size": image_size}
    content.update(json.dumps(facts, sort_keys=True).encode())
    for split in get_args(Split):
        content.update(f"{split} {len(splits[split])}\n".encode() + splits[split].tobytes())
    for part in contents:
        content.update(part)
    return content.hexdigest()
