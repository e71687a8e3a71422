"""What a detector costs beside its engine: measured on real sizes and real answers, and bounded."""

from __future__ import annotations

import numpy as np

from edgecnn.backends.cpu import read_cpu
from edgecnn.data.letterbox import Letterbox
from edgecnn.recipe.io_contract import InputContract, IoContract, OutputContract
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.tasks.detect.boxes import Boxes
from edgecnn.tasks.detect.host_latency import CONFIDENCE, MOST, HostTimes

CONTRACT = IoContract(
    task="detect",
    input=InputContract(
        name="images", layout="NHWC", dtype="uint8", range=(0.0, 255.0), size=(64, 64), channels=3, color="rgb",
        fit="letterbox",
    ),
    normalization=None, normalization_inside=True, classes=("a",),
    outputs=(OutputContract(name="boxes", meaning="boxes"), OutputContract(name="scores", meaning="scores")),
)  # fmt: skip


def truth(*sizes: tuple[int, int]) -> Boxes:
    count = len(sizes)
    nothing = np.zeros(0, np.int64)
    return Boxes(
        np.zeros(count + 1, np.int64), np.zeros((0, 4), np.float32), nothing, nothing.astype(bool),
        np.asarray(sizes, np.int32),
    )  # fmt: skip


def test_letterbox_and_suppression_are_timed() -> None:
    times, random = HostTimes(), np.random.default_rng(0)
    corner = random.uniform(0, 500, (8400, 2)).astype(np.float32)
    boxes, scores = np.concatenate([corner, corner + 40], axis=1), random.random((8400, 3)).astype(np.float32)
    for _ in range(3):
        times.suppress(boxes, scores, Letterbox(480, 640, (640, 640)), ScoreSpec(metric="map50_95"))
    document = times.document(CONTRACT, truth((20, 30), (900, 1600), (300, 300)))
    assert document["hardware"] == read_cpu().name
    assert document["nms"]["images"] == document["preprocess"]["images"] == 3
    assert document["nms"]["confidence"] == CONFIDENCE
    for step in ("preprocess", "nms"):
        assert 0 < document[step]["p50_ms"] <= document[step]["p90_ms"]


def test_no_more_images_are_timed_than_a_median_needs() -> None:
    times, none = HostTimes(), np.zeros((1, 4), np.float32)
    for _ in range(MOST + 5):
        times.suppress(none, none[:, :1], Letterbox(8, 8, (8, 8)), ScoreSpec(metric="map50_95"))
    document = times.document(CONTRACT, truth(*[(8, 8)] * (MOST + 5)))
    assert document["nms"]["images"] == document["preprocess"]["images"] == MOST


def test_a_graph_that_suppresses_itself_has_no_time_of_its_own() -> None:
    assert "nms" not in HostTimes().document(CONTRACT, truth((8, 8)))
