"""From logits to outcomes, and whole scores of a model whose every answer is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from golden_graphs import CLASSES, colour_images, colours, contract, data_artifact, model_artifact
from scoring import CLASSIFY, score_runner

from edgecnn.backends import Arrays, TensorInfo
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.store.stage import Artifact
from edgecnn.targets.score import score_reference
from edgecnn.tasks.classify.metrics import top1, top5


class Means:
    """A Runner in numpy: the mean of each channel; remembers the batches it was given."""

    how = "numpy"

    def __init__(self, batch: int | None = None, classes: int = 3) -> None:
        self.inputs = (TensorInfo("image", "uint8", (batch, 4, 4, 3)),)
        self.classes = classes
        self.batches: list[int] = []

    def __call__(self, feeds: Mapping[str, Any]) -> Arrays:
        self.batches.append(len(feeds["image"]))
        means = feeds["image"].mean(axis=(1, 2)).astype(np.float32)
        return {"logits": np.pad(means, ((0, 0), (0, self.classes - 3)))}

    def prepared(self, feeds: Mapping[str, Any]) -> Callable[[], None]:
        return lambda: None


class Rows:
    """Images in memory."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, start: int, stop: int) -> np.ndarray:
        return self.values[start:stop]


def test_top1_and_top5_by_hand() -> None:
    logits = np.array([[9, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 0], [0, 0, 0, 0, 0, 0, 0]], np.float32)
    assert top1(logits, np.array([0, 5, 0])).tolist() == [1, 1, 1]
    assert top1(logits, np.array([1, 4, 1])).tolist() == [0, 0, 0]
    assert top5(logits, np.array([2, 1, 4])).tolist() == [0, 1, 1]  # third: a tie, ranked by class number
    assert top5(logits, np.array([3, 0, 5])).tolist() == [1, 0, 0]


def test_a_logit_that_is_not_a_number_is_never_right() -> None:
    assert top5(np.array([[1, np.nan, 0]], np.float32), np.array([0])).tolist() == [0]


@pytest.mark.parametrize(("fixed", "sizes"), [(None, [8, 8, 4]), (6, [6, 6, 6, 6])])
def test_every_image_is_scored_once_whatever_the_batch(fixed: int | None, sizes: list[int]) -> None:
    images, labels = colour_images(20, wrong=3)
    runner = Means(fixed)
    found = score_runner(runner, contract(), Rows(images), labels, ScoreSpec(batch=8))
    assert runner.batches == sizes
    assert found.value == pytest.approx(17 / 20)
    assert found.outcome.tolist() == [0.0] * 3 + [1.0] * 17
    assert found.predicted.tolist() == [i % 3 for i in range(20)]
    assert (found.logits.shape, found.logits.dtype, found.label.dtype) == ((20, 3), np.float32, np.int64)


def test_labels_that_do_not_fit_the_images() -> None:
    images, labels = colour_images(20)
    with pytest.raises(EdgeError, match="20 images and 19 labels"):
        score_runner(Means(), contract(), Rows(images), labels[1:], ScoreSpec())


def test_a_model_of_other_classes() -> None:
    images, labels = colour_images(20)
    with pytest.raises(EdgeError, match=f"4 logits, its contract names {len(CLASSES)} classes"):
        score_runner(Means(classes=4), contract(), Rows(images), labels, ScoreSpec())


def test_logits_that_are_not_finite_name_the_first_image() -> None:
    logits = np.zeros((5, 3), np.float32)
    logits[[2, 4], 1] = np.nan
    reader = CLASSIFY.reader(contract(), ScoreSpec(), np.zeros(5, np.int64), final=True)
    reader.take({"logits": logits}, range(5))
    with pytest.raises(EdgeError, match="not finite for 2 of 5 images, first image 2"):
        reader.outcomes()


def test_the_reference_is_scored_in_a_child_and_is_the_same_every_time(tmp_path: Path) -> None:
    data, plain = data_artifact(tmp_path / "data"), model_artifact(tmp_path / "plain", quantized=False)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        score_reference(tmp_path / name, ScoreSpec(), plain, data)
    score = json.loads((tmp_path / "one" / "score.json").read_text())
    assert (score["metric"], score["value"], score["n"]) == ("top1", pytest.approx(48 / 50), 50)
    assert score["simulated"] is False
    assert "onnxruntime" in score["how"]
    assert "kernels" in score["how"]
    outcomes = np.load(tmp_path / "one" / "outcomes.npz")
    assert {name: (outcomes[name].shape, outcomes[name].dtype.name) for name in outcomes} == {
        "label": ((50,), "int64"), "predicted": ((50,), "int64"), "outcome": ((50,), "float32"),
        "logits": ((50, 3), "float32"),
    }  # fmt: skip
    np.testing.assert_allclose(outcomes["logits"][0], [200 / 255, 0, 0], atol=1e-6)
    assert (tmp_path / "one" / "outcomes.npz").read_bytes() == (tmp_path / "two" / "outcomes.npz").read_bytes()


def test_a_model_without_contract_cannot_be_fed(tmp_path: Path) -> None:
    data = data_artifact(tmp_path / "data")
    model = onnx.load(str(colours(tmp_path / "model.onnx")))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "model.onnx"))
    (tmp_path / "out").mkdir()
    with pytest.raises(EdgeError, match=r"no `edgecnn\.io` metadata"):
        score_reference(tmp_path / "out", ScoreSpec(), Artifact("export", "0", tmp_path), data)
