"""Training on digits: it learns, stops, averages, distils, and refuses what it can't do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from edgecnn.data import images, labels, read_index  # noqa: E402
from edgecnn.families.trained import read_trained  # noqa: E402
from edgecnn.process.errors import EdgeError  # noqa: E402
from edgecnn.recipe.recipe import DataSpec, ModelSpec, Student, TeacherSpec, TrainSpec  # noqa: E402
from edgecnn.store.stage import Artifact  # noqa: E402
from edgecnn.training import train  # noqa: E402
from edgecnn.training.feed import Normalizer  # noqa: E402

pytestmark = [pytest.mark.train, pytest.mark.slow]
DIGITS = DataSpec(format="digits", color="gray", calibrate=64)


def bytes_of(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


def history(folder: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((folder / "history.json").read_text())
    return content


def test_digits_are_learned(trained: Any, digits: Artifact) -> None:
    folder = trained(epochs=8, batch=32, lr=0.02, ema=0.9, clip_norm=5.0, label_smoothing=0.05)
    best = read_trained(folder)
    assert best.card.classes == read_index(digits.path).classes
    assert (best.card.channels, best.card.color, best.card.image_size) == (1, "gray", 8)
    scored = torch.from_numpy(np.array(images(digits.path, "scored").batch(0, 599))).permute(0, 3, 1, 2)
    normalizer = Normalizer(best.card.normalization, torch.device("cpu"), False)
    with torch.no_grad():
        predicted = best.net(normalizer(scored)).argmax(1).numpy()
    assert (predicted == labels(digits.path, "scored")).mean() >= 0.95
    epochs = history(folder)
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, 9))
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert epochs[-1]["lr"] < 0.001
    assert all(epoch["images_per_s"] > 0 and "CPU" in epoch["conditions"] for epoch in epochs)


def test_the_stage_trains_in_a_child(tmp_path: Path, digits: Artifact) -> None:
    spec = Student(
        model=ModelSpec(family="small", name="gap-s", image_size=8, normalize="unit"), train=TrainSpec(epochs=1)
    )
    train(tmp_path, spec, DIGITS, digits, None)
    assert {path.name for path in tmp_path.iterdir()} == {
        "weights.safetensors", "last.safetensors", "model.json", "history.json", "resume",
    }  # fmt: skip


def test_best_epoch_is_delivered(trained: Any) -> None:
    folder = trained(epochs=4, lr=0.05, schedule="constant", seed=3)
    epochs = history(folder)
    best = max(epochs, key=lambda epoch: (epoch["select_top1"], -epoch["select_loss"]))
    kept = [path.name for path in (folder / "resume").glob("best-*")]
    assert kept == [f"best-{best['epoch']:04d}.safetensors"]
    assert bytes_of(folder) == (folder / "resume" / kept[0]).read_bytes()
    assert (bytes_of(folder) == (folder / "last.safetensors").read_bytes()) == (best["epoch"] == 4)


def test_early_stop(trained: Any) -> None:
    folder = trained(epochs=30, lr=1e-9, augment="none", warmup_epochs=0, early_stop=2, optimizer="sgd")
    epochs = history(folder)
    top1 = [(epoch["select_top1"], -epoch["select_loss"]) for epoch in epochs]
    assert len(epochs) < 30
    assert len(epochs) - 1 - top1.index(max(top1)) == 2


def test_same_job_same_bytes_and_other_seed_others(trained: Any) -> None:
    model = {"dropout": 0.2}
    assert bytes_of(trained(model, epochs=1)) == bytes_of(trained(model, epochs=1))
    assert bytes_of(trained(model, epochs=1)) != bytes_of(trained(model, epochs=1, seed=1))


def test_workers_and_cache_change_nothing(trained: Any) -> None:
    cached = bytes_of(trained(epochs=1))
    assert bytes_of(trained(epochs=1, cache_bytes=0)) == cached
    assert bytes_of(trained(epochs=1, cache_bytes=0, workers=2)) == cached
    assert bytes_of(trained(epochs=1, workers=2)) == cached


def test_accumulated_batches_are_one_large_batch(trained: Any) -> None:
    # Without BatchNorm's per-batch statistics the two would be equal; with it they are near, and the steps are as many.
    small = history(trained(epochs=1, batch=16, accumulate=4, augment="none"))[0]
    large = history(trained(epochs=1, batch=64, augment="none"))[0]
    assert small["loss"] == pytest.approx(large["loss"], rel=0.2)
    assert small["lr"] == pytest.approx(large["lr"], rel=0.1)


def test_teacher_of_another_size_and_normalization(trained: Any) -> None:
    teacher = trained({"image_size": 12, "normalize": "unit"}, epochs=6, lr=0.02)
    for method in ("logits", "dist"):
        student = trained(teacher=teacher, epochs=5, lr=0.02, distill={"method": method})
        assert history(student)[-1]["select_top1"] > 0.8
    assert bytes_of(student) != bytes_of(trained(epochs=5, lr=0.02))


def test_teacher_of_other_classes_is_refused(trained: Any, tmp_path: Path) -> None:
    teacher = trained(epochs=1)
    card = json.loads((teacher / "model.json").read_text())
    (teacher / "model.json").write_text(json.dumps({**card, "classes": [f"c{n}" for n in range(10)]}))
    with pytest.raises(EdgeError, match="teacher's classes are not the student's"):
        trained(teacher=teacher, epochs=1, distill={})


def test_weights_are_taken_as_they_are(trained: Any, tmp_path: Path) -> None:
    first = trained(epochs=1)
    again = trained(epochs=0, weights=first / "weights.safetensors")
    assert bytes_of(again) == bytes_of(first)
    assert history(again) == []
    assert not (again / "last.safetensors").exists()


@pytest.mark.parametrize("role", ["model", "teacher"])
def test_nothing_to_take(tmp_path: Path, digits: Artifact, role: str) -> None:
    fields = {"family": "small", "name": "gap-s", "image_size": 8}
    spec: Student | TeacherSpec = TeacherSpec.model_validate(fields)
    if role == "model":
        spec = Student(model=ModelSpec.model_validate(fields), train=TrainSpec())
    with pytest.raises(EdgeError, match=f"`{role}` has nothing to run: no weights and no training"):
        train(tmp_path, spec, DIGITS, digits, None)


def test_nan_loss_names_the_step_and_keeps_the_checkpoint(trained: Any, tmp_path: Path) -> None:
    folder = trained(epochs=1)
    kept = (folder / "resume" / "last.pt").read_bytes()
    with pytest.raises(EdgeError, match=r"not a number \(epoch 2, step \d+\); the checkpoint of epoch 1") as told:
        trained(out=folder, epochs=3, lr=1e30, warmup_epochs=0)
    assert "lower `train.lr` (now 1e+30)" in told.value.hint
    assert (folder / "resume" / "last.pt").read_bytes() == kept


def test_gpu_asked_for_where_there_is_none(trained: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(EdgeError, match="torch sees no GPU"):
        trained(epochs=1, device="cuda")


def test_damaged_checkpoint_starts_anew(trained: Any) -> None:
    folder = trained(epochs=1)
    whole = bytes_of(folder)
    (folder / "resume" / "last.pt").write_bytes(b"cut off")
    assert bytes_of(trained(out=folder, epochs=1)) == whole


@pytest.mark.slow
def test_two_processes_share_the_batches(tmp_path: Path, digits: Artifact) -> None:
    job = {
        "model": {"family": "small", "name": "gap-s", "image_size": 8}, "weights_file": None, "weights_name": None,
        "train": {"epochs": 2, "lr": 0.01, "augment": "shift"}, "images": DIGITS.model_dump(mode="json"),
        "data": str(digits.path), "teacher": None, "out": str(tmp_path),
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["edgecnn.training.child", str(tmp_path / "job.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        out, err = _answer(child)
    assert '"result": {"epochs": 2}' in out, err
    epochs = history(tmp_path)
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert "x 2" in epochs[0]["conditions"]
    assert epochs[1]["loss"] < epochs[0]["loss"]


def _answer(child: subprocess.Popen[bytes]) -> tuple[str, str]:
    """Its output, with stdin held open: the training child ends when its parent's pipe closes."""
    assert child.stdout
    assert child.stderr
    assert child.stdin
    out = child.stdout.read().decode()
    err = child.stderr.read().decode()
    child.stdin.close()
    return out, err
