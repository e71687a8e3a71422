"""The judge of detectors, on a detector whose answers are known: each cell's score is its brightness."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecnn.data.index import Images
from edgecnn.process.errors import EdgeError
from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.graph.sessions import observe
from edgecnn.quantize.ladder.candidate import Tools, first
from edgecnn.quantize.ladder.judge import Selected, SelectJudge
from edgecnn.quantize.place.placement import Graph, place
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.io_contract import InputContract, IoContract, OutputContract
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.tasks.detect.boxes import Boxes

SIZE, CELL, COUNT = 32, 8, 24
CELLS = SIZE // CELL
SCORE = ScoreSpec(metric="map50_95")
SCHEME = Scheme(activations="int8-symmetric", placement="tensorrt")


def detector(path: Path) -> ir.Model:
    """float32 (1, 3, 32, 32) → boxes of the 4 x 4 cells and one score each: mean brightness by a strided Conv."""
    corners = np.stack(np.meshgrid(np.arange(CELLS), np.arange(CELLS)), -1).reshape(-1, 2) * CELL
    cells = np.concatenate([corners, corners + CELL], axis=1).astype(np.float32)[None]
    weight = np.full((1, 3, CELL, CELL), 1 / (3 * CELL * CELL), np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["bright"], "bright", strides=[CELL, CELL]),
        helper.make_node("Reshape", ["bright", "shape"], ["scores"], "flat"),
        helper.make_node("Sub", ["scores", "scores"], ["nothing"], "zero"),
        helper.make_node("Add", ["cells", "nothing"], ["boxes"], "here"),
    ]
    arrays = {"weight": weight, "shape": np.asarray([1, CELLS**2, 1], np.int64), "cells": cells}
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, CELLS**2, width])
        for name, width in (("boxes", 4), ("scores", 1))
    ]
    graph = helper.make_graph(
        nodes, "cells", [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])], outputs,
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return canonical(path)


CONTRACT = IoContract(
    task="detect",
    input=InputContract(
        name="image", layout="NCHW", dtype="float32", range=(0.0, 1.0), size=(SIZE, SIZE), channels=3, color="rgb",
        fit="letterbox",
    ),
    normalization=None, normalization_inside=True,
    outputs=(OutputContract(name="boxes", meaning="boxes"), OutputContract(name="scores", meaning="scores")),
    classes=("bright",),
)  # fmt: skip


def selected(*, right: bool = True) -> Selected:
    """Images with one bright cell each, labelled there or, wrongly, at a corner of another cell."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (COUNT, SIZE, SIZE, 3), np.uint8)
    boxes = []
    for image in pixels:
        x, y = (int(value) * CELL for value in rng.integers(0, CELLS, 2))
        image[y : y + CELL, x : x + CELL] = 240
        boxes.append([x, y, x + CELL, y + CELL] if right else [0, 0, 1, 1])
    truth = Boxes(
        np.arange(COUNT + 1), np.asarray(boxes, np.float32), np.zeros(COUNT, np.int64), np.zeros(COUNT, bool),
        np.full((COUNT, 2), SIZE, np.int32),
    )  # fmt: skip
    return Selected(Images((pixels,)), truth)


def judged(
    tmp_path: Path, images: Selected, score: ScoreSpec = SCORE
) -> tuple[SelectJudge, Tools, Graph]:  # fmt: skip
    model = detector(tmp_path / "cells.onnx")
    feeder = Feeder(model, CONTRACT, images.images, 8)
    shapes, _ = observe(model, list(feeder.feeds([0])))
    graph = Graph(model, shapes)
    return SelectJudge(model, CONTRACT, images, score, SCHEME), Tools(SCHEME, graph, feeder, "minmax", tmp_path), graph


def test_a_sound_candidate_loses_nothing_and_a_blind_one_all(tmp_path: Path) -> None:
    judge, tools, graph = judged(tmp_path, selected())
    candidate, _ = first(graph.model, place(graph, SCHEME), tools)
    assert judge.task.bounds(judge.exact, judge.spec.metric).value > 0.9
    sound = judge.drop(candidate)
    assert abs(sound.point) < 0.05
    assert sound.lower <= sound.point <= sound.upper
    assert sound.images == COUNT
    blind = replace(candidate, ranges=dict.fromkeys(candidate.ranges, (-1e-6, 1e-6)))
    assert judge.drop(blind).point > 0.5


@pytest.mark.parametrize(
    ("score", "value"),
    [({}, 1.0), ({"max_detections": 1}, 1.0), ({"confidence": 0.99}, 0.0), ({"metric": "map50", "iou": 0.1}, 1.0)],
)
def test_it_judges_as_the_recipe_scores(tmp_path: Path, score: dict[str, float | str], value: float) -> None:
    spec = ScoreSpec.model_validate({"metric": "map50_95", **score})
    if not value:  # every box lies below the confidence that the recipe asks
        with pytest.raises(EdgeError, match="proves nothing"):
            judged(tmp_path, selected(), spec)
        return
    judge, tools, graph = judged(tmp_path, selected(), spec)
    assert judge.task.bounds(judge.exact, judge.spec.metric).value == pytest.approx(value, abs=0.1)
    assert judge.spec == spec
    plain, _, _ = judged(tmp_path, selected())
    assert (judge.digest == plain.digest) == (spec == SCORE)
    candidate, _ = first(graph.model, place(graph, SCHEME), tools)
    assert judge.drop(candidate).point < 0.05


def test_a_detector_that_finds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="proves nothing"):
        judged(tmp_path, selected(right=False))


def test_its_digest_is_of_what_decides(tmp_path: Path) -> None:
    first_judge, _, _ = judged(tmp_path, selected())
    again, _, _ = judged(tmp_path, selected())
    fewer = SelectJudge(detector(tmp_path / "b.onnx"), CONTRACT, selected(), SCORE, SCHEME, most=10)
    assert first_judge.digest == again.digest != fewer.digest
    assert fewer.images == 10
