"""A killed training run continues to the same bytes as an unbroken one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from edgecnn.store.stage import Artifact  # noqa: E402

pytestmark = pytest.mark.train

STAGE = """
import json, sys
from pathlib import Path
from edgecnn.recipe.recipe import DataSpec, Student
from edgecnn.store.stage import Artifact
from edgecnn.training import train
job = json.loads(Path(sys.argv[1]).read_text())
train(
    Path(sys.argv[2]), Student.model_validate(job["student"]), DataSpec.model_validate(job["images"]),
    Artifact("data", "0", Path(job["data"])), None,
)
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path, digits: Artifact) -> None:
    job = {
        "student": {
            "model": {"family": "small", "name": "gap-s", "image_size": 8, "dropout": 0.1, "normalize": "half"},
            "train": {"epochs": 12, "batch": 32, "lr": 0.01, "augment": "standard", "ema": 0.9, "accumulate": 2},
        },
        "images": {"format": "digits", "color": "gray", "calibrate": 64},
        "data": str(digits.path),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", STAGE, str(tmp_path / "job.json")]
    subprocess.run([*command, str(whole)], check=True, env=environment)
    moments = random.Random(7)
    killed = 0
    for _ in range(2):
        last = broken / "resume" / "last.pt"
        before = last.stat().st_mtime_ns if last.exists() else 0
        child = subprocess.Popen([*command, str(broken)], env=environment, start_new_session=True)
        deadline = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline:
            if last.exists() and last.stat().st_mtime_ns != before:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            killed += 1
        child.wait()
    assert killed >= 1
    subprocess.run([*command, str(broken)], check=True, env=environment)
    for name in ("weights.safetensors", "last.safetensors", "model.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    stories = [json.loads((folder / "history.json").read_text()) for folder in (whole, broken)]
    for story in stories:
        for epoch in story:
            del epoch["seconds"], epoch["images_per_s"]
    assert stories[0] == stories[1]


def test_kept_epochs_are_not_trained_again(trained, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = trained(epochs=3, schedule="constant", ema=0.9)
    resumed = trained(epochs=2, schedule="constant", ema=0.9)
    again = trained(out=resumed, epochs=3, schedule="constant", ema=0.9)
    assert (again / "weights.safetensors").read_bytes() == (out / "weights.safetensors").read_bytes()
    assert (again / "last.safetensors").read_bytes() == (out / "last.safetensors").read_bytes()
