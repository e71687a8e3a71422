"""Answers replayed on the host are judged as a model run here would be: the same outcomes, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_graphs import colour_images, contract
from scoring import score_detector, score_runner

from edgecnn.agent.answers import candidates, dense, joined, write_answers
from edgecnn.backends import Arrays, TensorInfo
from edgecnn.measure.feeding import answered_batches
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.io_contract import IoContract, OutputContract
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.targets.recorded import Recorded
from edgecnn.tasks.detect.boxes import Boxes

ANCHORS, CLASSES = 60, ("cat", "dog")


class Rows:
    """Images in memory."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, start: int, stop: int) -> Any:
        return self.values[start:stop]


class Means:
    """A Runner in numpy: the mean of each channel."""

    how = "numpy"
    inputs = (TensorInfo("image", "uint8", (None, 4, 4, 3)),)

    def __call__(self, feeds: Mapping[str, Any]) -> Arrays:
        return {"logits": feeds["image"].mean(axis=(1, 2)).astype(np.float32)}

    def prepared(self, feeds: Mapping[str, Any]) -> Callable[[], None]:
        return lambda: None


class Finder:
    """A detector in numpy: boxes and scores drawn from the image's own first pixel, most scores near zero."""

    how = "numpy"
    inputs = (TensorInfo("image", "uint8", (None, 32, 32, 3)),)

    def __call__(self, feeds: Mapping[str, Any]) -> Arrays:
        boxes, scores = [], []
        for image in feeds["image"]:
            random = np.random.default_rng(int(image[0, 0, 0]))
            corners = random.uniform(0, 20, (ANCHORS, 2))
            boxes.append(np.concatenate([corners, corners + random.uniform(2, 12, (ANCHORS, 2))], axis=1))
            scores.append(random.random((ANCHORS, len(CLASSES))) ** 30)
        return {"boxes": np.asarray(boxes, np.float32), "scores": np.asarray(scores, np.float32)}

    def prepared(self, feeds: Mapping[str, Any]) -> Callable[[], None]:
        return lambda: None


def detector() -> IoContract:
    given = contract()
    return given.model_copy(
        update={
            "task": "detect", "classes": CLASSES,
            "input": given.input.model_copy(update={"size": (32, 32), "fit": "letterbox"}),
            "outputs": (
                OutputContract(name="boxes", meaning="boxes"), OutputContract(name="scores", meaning="scores")
            ),
        }
    )  # fmt: skip


def truth_of(count: int) -> Boxes:
    sizes = np.tile(np.array([[32, 32]]), (count, 1))
    return Boxes(
        np.zeros(count + 1, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), sizes
    )


@pytest.mark.parametrize("cuts", [[0, 50], [0, 7, 8, 31, 50]])
def test_a_classifiers_answers_replayed(tmp_path: Path, cuts: list[int]) -> None:
    images, labels = colour_images(50, wrong=3)
    spec = ScoreSpec(batch=8)
    here = score_runner(Means(), contract(), Rows(images), labels, spec)
    files = []
    for start, stop in pairwise(cuts):
        files.append(tmp_path / f"{start:08d}.npz")
        write_answers(files[-1], dense(range(start, stop), Means()({"image": images[start:stop]})))
    recorded = Recorded(files, 50, "on a board", ["logits"])
    there = score_runner(recorded, contract(), recorded, labels, spec)
    assert there.logits.tobytes() == here.logits.tobytes()
    assert there.outcome.tobytes() == here.outcome.tobytes()
    assert there.predicted.tobytes() == here.predicted.tobytes()


@pytest.mark.parametrize("confidence", [0.0, 0.001, 0.3])
def test_of_a_detector_only_candidates_travel_and_nothing_changes(tmp_path: Path, confidence: float) -> None:
    count, spec = 20, ScoreSpec(metric="map50_95", batch=8, confidence=confidence)
    images = np.zeros((count, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    here = score_detector(Finder(), detector(), Rows(images), truth_of(count), spec)
    assert len(here.scores) > 5
    parts = [
        candidates(numbers, answers, "scores", spec.confidence)
        for numbers, answers in answered_batches(Finder(), detector().feed, Rows(images), spec.batch)
    ]
    write_answers(tmp_path / "0.npz", joined(parts[:2]))
    write_answers(tmp_path / "16.npz", parts[2])
    recorded = Recorded([tmp_path / "0.npz", tmp_path / "16.npz"], count, "on a board", ["boxes", "scores"])
    there = score_detector(recorded, detector(), recorded, truth_of(count), spec)
    for name in ("offsets", "boxes", "scores", "classes"):
        assert getattr(there, name).tobytes() == getattr(here, name).tobytes(), name


def test_a_board_that_answers_nonsense_is_seen(tmp_path: Path) -> None:
    """A score that isn't a number is below no confidence, and must not be dropped with the background."""
    outputs = {"boxes": np.zeros((1, 4, 4), np.float32), "scores": np.zeros((1, 4, 2), np.float32)}
    outputs["scores"][0, 2, 1] = np.nan
    write_answers(tmp_path / "0.npz", candidates(range(1), outputs, "scores", 0.5))
    recorded = Recorded([tmp_path / "0.npz"], 1, "on a board", ["boxes", "scores"])
    with pytest.raises(EdgeError, match="not finite"):
        score_detector(recorded, detector(), recorded, truth_of(1), ScoreSpec(metric="map50"))


def test_images_that_are_missing_or_doubled_are_refused(tmp_path: Path) -> None:
    logits = np.zeros((4, 3), np.float32)
    for name, rows in (("a", range(4)), ("b", range(4, 8)), ("c", range(3, 7))):
        write_answers(tmp_path / f"{name}.npz", dense(rows, {"logits": logits}))
    Recorded([tmp_path / "a.npz", tmp_path / "b.npz"], 8, "", ["logits"])
    with pytest.raises(EdgeError, match="answered 4 of 8 images"):
        Recorded([tmp_path / "a.npz"], 8, "", ["logits"])
    with pytest.raises(EdgeError, match=r"`c\.npz` holds images 3 to 6, expected was image 4"):
        Recorded([tmp_path / "a.npz", tmp_path / "c.npz"], 8, "", ["logits"])
    with pytest.raises(EdgeError, match="expected was image 0"):
        Recorded([tmp_path / "b.npz"], 4, "", ["logits"])
    with pytest.raises(EdgeError, match=r"holds outputs {'logits': \(3,\)}, expected were \['boxes'\]"):
        Recorded([tmp_path / "a.npz"], 4, "", ["boxes"])
    (tmp_path / "d.npz").write_bytes(b"no archive")
    with pytest.raises(EdgeError, match="holds no answers"):
        Recorded([tmp_path / "d.npz"], 4, "", ["logits"])
