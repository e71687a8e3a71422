"""The data stage of classification: one label an image."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np

from edgecnn.data.checking import check_images
from edgecnn.data.index import Index, Labels, Prepared, write_index
from edgecnn.data.pixels import channels_of
from edgecnn.data.prepared import dataset_digest, left_out, say_shared, write_pixels
from edgecnn.data.sources import Source, find_source
from edgecnn.data.splits import make_splits
from edgecnn.data.tables import listed, table_files
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import DataSpec


def watch(spec: DataSpec) -> dict[str, object]:
    """See `Task.watch`."""
    if spec.format == "label-table" and spec.root is not None and spec.root.is_file():
        return {f"data.root: {name}": path for name, path in table_files(spec.root)}
    return {}


def prepare(out: Path, spec: DataSpec, image_size: int) -> None:
    """See `tasks.prepare`: beside it the class numbers of select and scored, `<split>_labels.npy`."""
    source = find_source(spec)
    checked = check_images(source.opener, len(source.labels))
    digests, corrupt = checked.digests, checked.corrupt
    skipped = left_out(source.opener, corrupt, skip=spec.skip_corrupt)
    good = {
        part: np.array([n for n in numbers if n not in corrupt], np.int64) for part, numbers in source.parts.items()
    }
    _check_classes(source, good["train"])
    splits = make_splits(spec, source.classes, source.labels, good["train"], good.get("select"), good.get("scored"))
    say_shared(digests, splits)
    index = Index(
        classes=source.classes,
        channels=channels_of(spec.color),
        color=spec.color,
        fit=spec.fit,
        image_size=image_size,
        files=source.files,
        labels=source.labels,
        splits=splits,
        digest=dataset_digest(spec, source.classes, image_size, splits, [source.labels.tobytes(), *digests]),
        skipped=skipped,
    )
    write_pixels(out, source.opener, splits, image_size, spec)
    for split in get_args(Prepared):
        if split != "calibrate":
            np.save(out / f"{split}_labels.npy", source.labels[splits[split]])
    write_index(out, index)


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
