"""`task: detect` in a recipe: what goes together, what is refused, what stands where nothing is written."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from edgecnn.cli.app import show
from edgecnn.needs import needs
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.device import DeviceProfile
from edgecnn.recipe.load import load_device, load_recipe
from edgecnn.recipe.recipe import Promise, Recipe, ScoreSpec, SuppressSpec

BASE: dict[str, Any] = {
    "name": "d", "task": "detect", "data": {"format": "yolo", "root": "data.yaml"}, "device": "cpu-x86",
    "model": {"family": "ultralytics", "name": "yolov8n", "image_size": 64}, "quantize": {"images": 4},
    "score": {"metric": "map50_95"},
}  # fmt: skip


def changed(**sections: dict[str, Any] | str) -> Recipe:
    merged = {**BASE}
    for name, value in sections.items():
        merged[name] = {**BASE.get(name, {}), **value} if isinstance(value, dict) else value
    return Recipe.model_validate(merged)


def test_defaults_of_a_detector() -> None:
    recipe = changed()
    assert recipe.data.fit == "letterbox"
    assert recipe.model.normalization(3).std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("train", "optimizer", "lr", "decay"),
    [
        ({}, "auto", None, 0.0005),
        ({"epochs": 3}, "auto", None, 0.0005),
        ({"lr": 0.01}, "adamw", 0.01, 0.0005),
        ({"optimizer": "sgd"}, "sgd", None, 0.0005),
        ({"optimizer": "sgd", "lr": 0.02, "weight_decay": 0.1}, "sgd", 0.02, 0.1),
    ],
)
def test_a_detectors_trainer_chooses_what_is_not_written(
    train: dict[str, Any], optimizer: str, lr: object, decay: float
) -> None:
    teacher = {**BASE["model"], "train": {**train, "epochs": 1}}
    recipe = changed(train={"epochs": 1, **train, "distill": {"method": "feature"}}, teacher=teacher)
    for found in (recipe.train, recipe.teacher.train if recipe.teacher else None):
        assert found
        assert (found.optimizer, found.lr, found.weight_decay) == (optimizer, lr, decay)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("train", "batches"),
    [
        ({}, 1),
        ({"batch": 8}, 8),
        ({"batch": 100}, 1),
        ({"batch": 8, "lr": 0.01}, 1),
        ({"batch": 8, "accumulate": 2}, 2),
    ],
)
def test_a_detectors_own_rate_is_for_64_images_a_step(train: dict[str, Any], batches: int) -> None:
    found = changed(train=train).train
    assert found.accumulate == batches
    assert found.warmup_epochs == (1 if "lr" in train else 3)


def test_show_tells_what_auto_takes(capsys: pytest.CaptureFixture[str]) -> None:
    show("yolov8n_jetson")
    assert "Ultralytics' trainer has them: AdamW at 0.002 * 5 / (4 + classes)" in capsys.readouterr().out
    show("quickstart")
    assert "trainer has them" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"train": {"optimizer": "auto", "lr": 0.1}}, "`train.optimizer: auto` chooses `lr` too"),
        ({"quantize": {"qat": {"optimizer": "auto"}}}, "quantize.qat.optimizer"),
        ({"task": "classify"}, "`task: classify` does not fit `data.format: yolo`"),
        ({"data": {"format": "image-folder"}}, "does not fit `data.format: image-folder`"),
        ({"model": {"family": "timm", "name": "resnet18"}}, "does not go with `model.family: timm`"),
        ({"score": {"metric": "top1"}}, "`score.metric: top1` is not for `task: detect`"),
        ({"data": {"fit": "crop"}}, "`data.fit: crop` is not for `task: detect`; write letterbox"),
        ({"model": {"normalize": "imagenet"}}, "leave `normalize` out"),
        ({"export": {"nms": "numpy"}}, "export.nms"),
        (
            {
                "teacher": {**BASE["model"], "name": "yolov8s", "weights": "yolov8s.pt"},
                "train": {"epochs": 1, "distill": {"method": "logits"}},
            },
            "write feature",
        ),
    ],
)
def test_contradictions_are_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        changed(**sections)
    assert words in str(caught.value)


def test_suppression_in_the_graph_takes_the_numbers_of_score() -> None:
    assert changed().suppression is None
    recipe = changed(export={"nms": "onnx"}, score={"confidence": 0.25, "iou": 0.5, "max_detections": 20})
    assert recipe.suppression == SuppressSpec(by="onnx", confidence=0.25, iou=0.5, max_detections=20)
    assert recipe.graph == changed().graph  # what is exported and quantized is the same


def test_the_quantizer_judges_by_the_score_section_and_by_nothing_without_a_budget() -> None:
    strict = {"metric": "map50", "confidence": 0.25, "iou": 0.5, "max_detections": 20}
    promise = changed(score={**strict, "batch": 8}, budgets={"max_accuracy_drop": 0.01}).promise
    assert promise.score == ScoreSpec.model_validate(strict)  # the batch changes no answer, so it is in no key
    assert changed(score=strict).promise == Promise()


def test_a_classifier_has_nothing_to_suppress() -> None:
    with pytest.raises(EdgeError, match=r"`export\.nms: onnx` suppresses boxes"):
        load_recipe("quickstart", ["export.nms=onnx"], None)


@pytest.mark.parametrize(
    ("device", "nms", "write"),
    [
        ("rtx-4060", "onnx", "none"),
        ("rtx-4060", "tensorrt", "none"),
        ("cpu-x86", "tensorrt", "none or onnx"),
        ("cpu-x86-openvino", "tensorrt", "none or onnx"),
        ("jetson-orin-nano", "onnx", "none or tensorrt"),
    ],
)
def test_a_device_refuses_suppression_that_it_cannot_run(device: str, nms: str, write: str) -> None:
    for sets, given in (([f"export.nms={nms}"], device), ([f"export.nms={nms}", f"compile_for=[{device}]"], None)):
        with pytest.raises(EdgeError) as caught:
            load_recipe("yolov8n_jetson" if given else "bccd_yolov8n_cpu", sets, given)
        if given or nms == "onnx":  # else the recipe's own device refuses first
            assert f"`export.nms: {nms}` does not work with device `{device}`" in caught.value.message
            assert f"write `export.nms: {write}`" in caught.value.hint


@pytest.mark.parametrize(
    ("device", "nms"),
    [("cpu-x86", "onnx"), ("cpu-x86-openvino", "onnx"), ("jetson-orin-nano", "tensorrt"), ("rtx-4060", "none")],
)
def test_a_device_takes_suppression_that_it_runs(device: str, nms: str) -> None:
    assert load_recipe("yolov8n_jetson", [f"export.nms={nms}", "compile_for=[]"], device).export.nms == nms


def test_the_plan_of_the_jetson_recipe_names_all_that_is_missing(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("EDGECNN_DATA", raising=False)
    recipe = load_recipe("yolov8n_jetson", [], None)
    profile: DeviceProfile = load_device(recipe.device)
    found = {need.what: need for need in needs(recipe, profile)}
    assert found["the YOLO data file"].stops
    for weights, section in (("yolov8n.pt", "model"), ("yolov8x.pt", "teacher")):
        need = found[f"weights `{weights}`"]
        assert not need.stops
        assert f"--set {section}.weights=PATH" in need.fix
        assert f"/{weights}" in need.fix
    assert any("jetson-orin-nano" in what for what in found)
