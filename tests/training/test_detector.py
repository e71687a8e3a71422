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
from PIL import Image

from edgecnn.data import read_index
from edgecnn.data.openers import open_images
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import DataSpec, DistillSpec, ModelSpec, Student, TeacherSpec, TrainSpec
from edgecnn.store.stage import Artifact
from edgecnn.tasks.detect.boxes import Boxes, read_boxes
from edgecnn.tasks.prepare import prepare
from edgecnn.training import train

if find_spec("ultralytics") is None:
    pytest.skip("the extra [yolo] is not installed", allow_module_level=True)
import cv2
from ultralytics.cfg import get_cfg
from ultralytics.data.dataset import YOLODataset

from edgecnn.families.ultralytics import DISTILS, DetectionTrainer
from edgecnn.training.detector import Trainer, chosen_rate, given_up, refuse_foreign
from edgecnn.training.detector_files import described, image_file, label_text, write_dataset

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
    if not DISTILS:
        with pytest.raises(EdgeError, match="can't distil"):
            train(tmp_path / "student", student, spec, data, teacher)
        return
    train(tmp_path / "student", student, spec, data, teacher)
    history = json.loads((tmp_path / "student" / "history.json").read_text())
    assert [row["epoch"] for row in history] == [1]
    assert history[0]["losses"]["dis"] > 0
    assert "dis" not in json.loads((tmp_path / "teacher" / "history.json").read_text())[0]["losses"]
    weights = tmp_path / "student" / "weights.safetensors"
    assert weights.stat().st_size > 10_000_000
    # Killed between the last checkpoint and its row of the history: the next try finishes from there.
    before = weights.read_bytes()
    weights.unlink()
    (tmp_path / "student" / "resume" / "epochs.json").write_text("[]")
    train(tmp_path / "student", student, spec, data, teacher)
    assert weights.read_bytes() == before
    again = json.loads((tmp_path / "student" / "history.json").read_text())
    assert [row["map50_95"] for row in again] == [row["map50_95"] for row in history]


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
    opener = open_images(spec, index)
    for part, lines in lists.items():
        for number, line in zip(index.splits[part].tolist(), lines, strict=True):
            assert not Path(line).is_symlink()
            assert np.array_equal(cv2.imread(line)[..., ::-1], opener(number))
    kind, x, y, width, height = (tmp_path / "labels" / f"{first:07d}.txt").read_text().split()
    found = boxes.of(first)[0][0]
    assert int(kind) == 0
    assert [float(x) * 64, float(y) * 48] == pytest.approx(
        [(found[0] + found[2]) / 2, (found[1] + found[3]) / 2], abs=1e-3
    )
    assert [float(width) * 64, float(height) * 48] == pytest.approx([20, 20], abs=1e-3)


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSpec, Path]:
    """Images as people have them: turned by EXIF, with bytes behind the end, of many formats, a GIF called JPEG."""
    root, rng = tmp_path_factory.mktemp("album"), np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for number, ending in enumerate(("jpg", "jpg", "png", "ppm", "pgm", "gif", "bmp", "tif", "webp", "jpg")):
        image = Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8))
        path = root / "images" / f"{number}.{ending}"
        exif = Image.Exif()
        exif[0x0112] = 6
        match number:
            case 0:
                image.save(path, exif=exif)
            case 1:
                image.save(path)
                path.write_bytes(path.read_bytes() + b"SEFT\0\0")
            case 9:
                image.save(path, format="GIF")
            case _:
                image.convert("L" if ending == "pgm" else "RGB").save(path)
        (root / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "data.yaml").write_text("train: images\nnames: [thing]\n")
    spec = DataSpec(format="yolo", root=root, train="train", calibrate=2, scored_fraction=0.2, select_fraction=0.2)
    out = tmp_path_factory.mktemp("album-data")
    prepare(out, spec, SIZE)
    return spec, out


def test_the_trainer_sees_every_image_upright_and_the_users_files_are_not_touched(
    album: tuple[DataSpec, Path], tmp_path: Path
) -> None:
    spec, data = album
    assert spec.root is not None
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in spec.root.rglob("*.*")}
    index = read_index(data)
    write_dataset(tmp_path, spec, index, read_boxes(data / "boxes.npz"))
    dataset = YOLODataset(
        img_path=str(tmp_path / "train.txt"), data=described(tmp_path, index), task="detect", imgsz=SIZE, augment=False,
        hyp=get_cfg(), batch_size=4,
    )  # fmt: skip
    opener = open_images(spec, index)
    assert len(dataset) == len(index.splits["train"])
    for file in dataset.im_files:
        assert np.array_equal(cv2.imread(file)[..., ::-1], opener(int(Path(file).stem)))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in spec.root.rglob("*.*")} == before


def test_images_that_are_too_small_are_named(album: tuple[DataSpec, Path], tmp_path: Path) -> None:
    spec, data = album
    boxes = read_boxes(data / "boxes.npz")
    index = read_index(data)
    number = int(index.splits["select"][0])
    boxes.sizes[number] = (9, 60)
    with pytest.raises(EdgeError, match=f"below 10 pixels high or wide: `{index.files[number]}`"):
        write_dataset(tmp_path, spec, index, boxes)


def test_images_that_the_trainer_leaves_out_are_named(
    album: tuple[DataSpec, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = read_index(album[1])
    numbers = index.splits["train"].tolist()
    trainer = object.__new__(Trainer)
    trainer.index, trainer.folder = index, tmp_path
    kept = type("Dataset", (), {"im_files": [str(image_file(tmp_path, number)) for number in numbers[1:]]})()
    monkeypatch.setattr(DetectionTrainer, "build_dataset", lambda *_: kept)
    with pytest.raises(EdgeError, match=f"drops 1 of {len(numbers)} images: `{index.files[numbers[0]]}`"):
        trainer.build_dataset("train.txt", "train", 4)


def test_the_trainer_leaves_the_threads_as_they_are(
    album: tuple[DataSpec, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(DetectionTrainer, "__init__", lambda *_, **__: torch.set_num_threads(8))
    Trainer(torch.nn.Identity(), read_index(album[1]), {"data": str(tmp_path / "data.yaml")})
    assert asked == [8, 3]


def test_a_detector_takes_the_rate_of_its_classes() -> None:
    assert chosen_rate(settings(optimizer="auto", lr=None), 80) == 0.000119
    assert chosen_rate(settings(optimizer="sgd", lr=None), 80) == 0.01
    assert chosen_rate(settings(lr=0.5), 80) == 0.5


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
