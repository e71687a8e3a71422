"""The data stage: check every image, split, and write what boards and the quantizer read."""

from __future__ import annotations

from pathlib import Path

from edgecnn.recipe.recipe import DataSpec
from edgecnn.store.stage import decided_by
from edgecnn.tasks import load_task


@decided_by("pillow", rooms=("data", "tasks"))
def prepare(out: Path, spec: DataSpec, image_size: int) -> None:
    """Write index.json and index.npz (`Index`), for calibrate, select and scored uint8 NHWC shards at image_size, and
    the task's targets beside them.

    Every image is read and decoded once, training images too: a corrupt one must stop the build here and not in the
    middle of an epoch. Memory does not grow with the number of images, except for compressed arrays (held whole).

    Raises:
        EdgeError: bad data, by name; corrupt images unless `skip_corrupt`.
    """
    load_task(spec.task).prepare(out, spec, image_size)
