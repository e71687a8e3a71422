"""The data stage: check every image, split, and write what boards and the quantizer read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgecnn.recipe.recipe import DataSpec
from edgecnn.store.stage import decided_by
from edgecnn.tasks import load_task


def watch(spec: DataSpec) -> dict[str, object]:
    """Files that a data.yaml, COCO JSON or table names, by what a reason calls them: they are part of the data."""
    return load_task(spec.task).watch(spec)


@decided_by("pillow", rooms=("data", "tasks"))
def prepare(out: Path, spec: DataSpec, image_size: int, named: Mapping[str, object] | None = None) -> None:
    """Write index.json and index.npz (`Index`), for calibrate, select and scored uint8 NHWC shards at image_size, and
    the task's targets beside them.

    Every image is read and decoded once, training images too: a corrupt one must stop the build here and not in the
    middle of an epoch. Memory does not grow with the number of images, except for compressed arrays (held whole).

    Args:
        named: `watch(spec)`: files that the stage's key must hold, too; they are read as the dataset names them.

    Raises:
        EdgeError: bad data, by name; corrupt images unless `skip_corrupt`.
    """
    load_task(spec.task).prepare(out, spec, image_size)
