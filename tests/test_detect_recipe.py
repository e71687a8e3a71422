"""`task: detect` in a recipe: what goes together, what is refused, what stands where nothing is written."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from edgecnn.device import DeviceProfile
from edgecnn.needs import needs
from edgecnn.recipe import Recipe
from edgecnn.recipe_file import load_device, load_recipe

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
    ("sections", "words"),
    [
        ({"task": "classify"}, "`task: classify` does not go with `data.format: yolo`"),
        ({"data": {"format": "image-folder"}}, "does not go with `data.format: image-folder`"),
        ({"model": {"family": "timm", "name": "resnet18"}}, "does not go with `model.family: timm`"),
        ({"score": {"metric": "top1"}}, "`score.metric: top1` is not for `task: detect`"),
        ({"data": {"fit": "crop"}}, "write `data.fit: letterbox`"),
        ({"model": {"normalize": "imagenet"}}, "leave `normalize` out"),
        ({"export": {"nms": "onnx"}}, "nms"),
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
