"""Prepared digits and jobs on them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

torch = pytest.importorskip("torch")
from edgecnn.recipe.recipe import DataSpec, ModelSpec, TrainSpec  # noqa: E402
from edgecnn.store.stage import Artifact  # noqa: E402
from edgecnn.tasks.prepare import prepare  # noqa: E402
from edgecnn.training.child import work  # noqa: E402
from edgecnn.training.job import TrainJob  # noqa: E402

torch.set_num_threads(1)
DIGITS = DataSpec(format="digits", color="gray", calibrate=64)
Train = Callable[..., Path]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """scikit-learn's digits, prepared at 8 pixels."""
    path = tmp_path_factory.mktemp("digits")
    prepare(path, DIGITS, 8)
    return Artifact("data", "0" * 32, path)


@pytest.fixture
def trained(digits: Artifact, tmp_path: Path) -> Train:
    """Train in this process; keywords are fields of model and train, `out` continues in a folder."""

    def run(
        model: dict[str, Any] | None = None, *, out: Path | None = None, teacher: Path | None = None,
        images: DataSpec = DIGITS, data: Path | None = None, cache_bytes: int = 1 << 30, weights: Path | None = None,
        **train: Any,
    ) -> Path:  # fmt: skip
        folder = out or tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        folder.mkdir(exist_ok=True)
        fields = {"family": "small", "name": "gap-s", "image_size": 8, "normalize": "half", **(model or {})}
        settings = {"epochs": 2, "batch": 64, "lr": 0.01, "augment": "shift", **train}
        job = TrainJob(
            model=ModelSpec.model_validate(fields), weights_file=weights, weights_name=None,
            train=TrainSpec.model_validate(settings), images=images, data=data or digits.path, teacher=teacher,
            out=folder, cache_bytes=cache_bytes,
        )  # fmt: skip
        work(json.loads(job.model_dump_json()))
        return folder

    return run
