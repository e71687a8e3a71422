"""The data stage: check every image, split, and write what boards and the quantizer read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np

from edgecnn.data.checking import check_images, corrupt_error, in_order
from edgecnn.data.index import Index, Labels, Prepared, Split, write_index, write_shards
from edgecnn.data.openers import Opener
from edgecnn.data.pixels import Pixels, channels_of, fit_image
from edgecnn.data.sources import Source, find_source
from edgecnn.data.splits import make_splits
from edgecnn.data.tables import listed
from edgecnn.errors import EdgeError
from edgecnn.progress import current, track
from edgecnn.recipe import DataSpec
from edgecnn.store import decided_by


@decided_by("pillow")
def prepare(out: Path, spec: DataSpec, image_size: int) -> None:
    """Write index.json and index.npz (`Index`), and for calibrate, select and scored uint8 NHWC shards at image_size.

    Every image is read and decoded once, training images too: a corrupt one must stop the build here and not in the
    middle of an epoch. Memory does not grow with the number of images, except for compressed arrays (held whole).

    Raises:
        EdgeError: bad data, by name; corrupt images unless `skip_corrupt`.
    """
    source = find_source(spec)
    digests, corrupt = check_images(source.opener, len(source.labels))
    if corrupt and not spec.skip_corrupt:
        raise corrupt_error(
            source.opener, corrupt, "repair or remove them, or set `data.skip_corrupt: true` to leave them out"
        )
    skipped = tuple(source.opener.name(number) for number in corrupt)
    if skipped:
        images = "corrupt image" if len(skipped) == 1 else "corrupt images"
        current().note(f"data: left out {len(skipped)} {images}: {listed(list(skipped))}")
    good = {
        part: np.array([n for n in numbers if n not in corrupt], np.int64) for part, numbers in source.parts.items()
    }
    _check_classes(source, good["train"])
    splits = make_splits(spec, source.classes, source.labels, good["train"], good.get("select"), good.get("scored"))
    _say_shared(digests, splits)
    index = Index(
        classes=source.classes,
        channels=channels_of(spec.color),
        color=spec.color,
        fit=spec.fit,
        image_size=image_size,
        files=source.files,
        labels=source.labels,
        splits=splits,
        digest=_digest(spec, source, image_size, splits, digests),
        skipped=skipped,
    )
    for split in get_args(Prepared):
        numbers = splits[split]
        fitted = track(_fitted(source.opener, numbers, image_size, spec), f"writing {split}", len(numbers))
        write_shards(out, split, len(numbers), fitted)
        if split != "calibrate":
            np.save(out / f"{split}_labels.npy", source.labels[numbers])
    write_index(out, index)


def _fitted(opener: Opener, numbers: Labels, size: int, spec: DataSpec) -> Iterator[Pixels]:
    return in_order(lambda number: fit_image(opener(number), size, spec.fit), (int(number) for number in numbers))


def _check_classes(source: Source, train: Labels) -> None:
    counts = np.bincount(source.labels[train], minlength=len(source.classes))
    before = np.bincount(source.labels[source.parts["train"].start : source.parts["train"].stop], minlength=len(counts))
    lost = [source.classes[number] for number in np.flatnonzero((counts == 0) & (before > 0))]
    if lost:
        raise EdgeError(
            f"every image of these classes is corrupt: {listed(lost)}", "repair the images or remove the class"
        )
    there = [source.classes[number] for number in np.flatnonzero(counts)]
    if len(there) < 2:
        raise EdgeError(
            f"a classifier needs at least two classes; the training images have only: {listed(there) or 'none'}",
            "check `data.root`: it must be the folder, table or file of all classes",
        )


def _say_shared(digests: list[bytes], splits: dict[Split, Labels]) -> None:
    """Copies of training images among the scored ones make the score too good: said, as only a person can judge."""
    seen = {digests[number] for split in ("train", "select") for number in splits[split]}
    copies = sum(digests[number] in seen for number in splits["scored"])
    if copies:
        current().note(f"data: {copies} of {len(splits['scored'])} scored images are exact copies of training images")


def _digest(spec: DataSpec, source: Source, image_size: int, splits: dict[Split, Labels], digests: list[bytes]) -> str:
    content = hashlib.sha256()
    facts = {"classes": source.classes, "color": spec.color, "fit": spec.fit, "image_size": image_size}
    content.update(json.dumps(facts, sort_keys=True).encode())
    content.update(source.labels.tobytes())
    for split in get_args(Split):
        content.update(f"{split} {len(splits[split])}\n".encode() + splits[split].tobytes())
    for digest in digests:
        content.update(digest)
    return content.hexdigest()
