"""A detector through Ultralytics' trainer: what it is given, that distillation is in its loss, that a run continues."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dots import write_dots

from edgecnn.data import prepare, read_index
from edgecnn.data.boxes import Boxes, read_boxes
from edgecnn.errors import EdgeError
from edgecnn.recipe import DataSpec, DistillSpec, ModelSpec, Student, TeacherSpec, TrainSpec
from edgecnn.store import Artifact
from edgecnn.training import train

if find_spec("ultralytics") is None:
    pytest.skip("the extra [yolo] is not installed", allow_module_level=True)
from edgecnn.training.detector import given_up, label_text, refuse_foreign, write_dataset

SIZE = 64


@pytest.fixture(scope="module")
def dots(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSpec, Artifact]:
    """16 images with a bright square each, and their prepared data."""
    root = tmp_path_factory.mktemp("dots")
    write_dots(root, 16)
    spec = DataSpec(format="yolo", root=root, train="train", calibrate=4, scored_fraction=0.25, select_fraction=0.25)
    out = tmp_path_factory.mktemp("data")
    prepare(out, spec, SIZE)
    return spec, Artifact("data", "0", out)


def model(**more: Any) -> ModelSpec:
    return ModelSpec.model_validate({"family": "ultralytics", "name": "yolov8n", "image_size": SIZE, **more})


def settings(**more: Any) -> TrainSpec:
    return TrainSpec.model_validate({"epochs": 1, "batch": 4, "augment": "none", "device": "cpu", "threads": 1, **more})


@pytest.mark.slow
def test_a_student_learns_from_a_teacher(dots: tuple[DataSpec, Artifact], tmp_path: Path) -> None:
    spec, data = dots
    for name in ("teacher", "student"):
        (tmp_path / name).mkdir()
    teach = TeacherSpec.model_validate({**model().model_dump(), "train": settings().model_dump()})
    train(tmp_path / "teacher", teach, spec, data, None)
    teacher = Artifact("teacher", "0", tmp_path / "teacher")
    student = Student(model=model(), train=settings(distill=DistillSpec(method="feature")))
    train(tmp_path / "student", student, spec, data, teacher)
    history = json.loads((tmp_path / "student" / "history.json").read_text())
    assert [row["epoch"] for row in history] == [1]
    assert history[0]["losses"]["dis"] > 0
    assert "dis" not in json.loads((tmp_path / "teacher" / "history.json").read_text())[0]["losses"]
    assert (tmp_path / "student" / "weights.safetensors").stat().st_size > 10_000_000


def test_the_distillation_term_reaches_the_student() -> None:
    from edgecnn.families import ultralytics as family

    module = pytest.importorskip("ultralytics.nn.distill_model")  # older ones have no distillation
    torch.manual_seed(0)
    nets = [family.create(model(), 1, 3) for _ in range(2)]
    student, teacher = nets
    for net in nets:
        net.args = type(
            "Args", (), {"imgsz": SIZE, "dis": 6.0, "box": 0.0, "cls": 0.0, "dfl": 0.0, "overlap_mask": 1}
        )()
        for parameter in net.parameters():
            parameter.requires_grad_(True)
    both = module.DistillationModel(teacher, student).train()
    batch = {
        "img": torch.rand(2, 3, SIZE, SIZE), "batch_idx": torch.tensor([0.0]), "cls": torch.zeros(1, 1),
        "bboxes": torch.tensor([[0.5, 0.5, 0.3, 0.3]]),
    }  # fmt: skip
    loss, parts = both(batch)
    assert float(parts["dis_loss"]) > 0
    loss.sum().backward()
    # The detector's own losses weigh nothing here: what arrives comes from the teacher.
    assert float(student.model[0].conv.weight.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_dataset_that_the_trainer_sees_is_ours(dots: tuple[DataSpec, Artifact], tmp_path: Path) -> None:
    spec, data = dots
    index, boxes = read_index(data.path), read_boxes(data.path / "boxes.npz")
    write_dataset(tmp_path, spec, index, boxes)
    lists = {part: (tmp_path / f"{part}.txt").read_text().split() for part in ("train", "select")}
    assert {part: len(lines) for part, lines in lists.items()} == {
        "train": len(index.splits["train"]), "select": len(index.splits["select"])
    }  # fmt: skip
    first = int(index.splits["train"][0])
    link = Path(lists["train"][0])
    assert link.resolve() == (spec.root / (index.files[first] or "")).resolve()  # type: ignore[operator]
    kind, x, y, width, height = (tmp_path / "labels" / f"{first:07d}.txt").read_text().split()
    found = boxes.of(first)[0][0]
    assert int(kind) == 0
    assert [float(x) * 64, float(y) * 48] == pytest.approx(
        [(found[0] + found[2]) / 2, (found[1] + found[3]) / 2], abs=1e-3
    )
    assert [float(width) * 64, float(height) * 48] == pytest.approx([20, 20], abs=1e-3)


def test_crowd_boxes_are_not_trained_on() -> None:
    boxes = Boxes(
        np.asarray([0, 2]), np.asarray([[0, 0, 5, 5], [1, 1, 9, 9]], np.float32), np.asarray([1, 2]),
        np.asarray([True, False]), np.asarray([[10, 10]], np.int32),
    )  # fmt: skip
    assert label_text(boxes, 0).split()[0] == "2"
    assert "\n" not in label_text(boxes, 0)


@pytest.mark.parametrize("more", [{"label_smoothing": 0.1}, {"ema": 0.99}, {"clip_norm": 1.0}])
def test_what_their_trainer_decides_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(EdgeError, match=next(iter(more))):
        refuse_foreign(settings(**more), "train")


def test_early_stop_survives_a_kill() -> None:
    rows = [{"map50_95": value} for value in (0.1, 0.5, 0.4, 0.3)]
    assert given_up(rows, settings(epochs=9, early_stop=2))
    assert not given_up(rows[:3], settings(epochs=9, early_stop=2))
    assert not given_up(rows, settings(epochs=9))
