"""A graph that suppresses boxes itself, scored by the agent: its few rows travel and are judged as those made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from agent_home import AgentHome
from golden_graphs import save, value
from onnx import TensorProto, helper
from scoring import score_detector

from edgecnn.backends import ort
from edgecnn.data.index import Images, write_shards
from edgecnn.quantize.write.suppression import suppressed
from edgecnn.recipe.io_contract import KEY, InputContract, IoContract, OutputContract, read_contract
from edgecnn.recipe.recipe import ScoreSpec, SuppressSpec
from edgecnn.targets.recorded import Recorded
from edgecnn.tasks import load_task
from edgecnn.tasks.detect.boxes import Boxes

COUNT, SIDE = 20, 4
CELLS = SIDE * SIDE


def detector(path: Path) -> Path:
    """uint8 (N, 4, 4, 3) → boxes of 2 x 2 pixels around every pixel, its colours as the scores of three classes."""
    corners = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(1, -1, 2).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "full"], ["share"]),
        helper.make_node("Reshape", ["share", "flat"], ["scores"]),
        helper.make_node("ReduceSum", ["scores", "last"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "nothing"], ["zeros"]),
        helper.make_node("Add", ["cells", "zeros"], ["boxes"]),
    ]
    constants = {
        "full": np.asarray(255, np.float32), "flat": np.asarray([0, CELLS, 3]), "last": np.asarray([2]),
        "nothing": np.asarray(0, np.float32), "cells": np.concatenate([corners, corners + 2], axis=2),
    }  # fmt: skip
    contract = IoContract(
        task="detect",
        input=InputContract(
            name="image", layout="NHWC", dtype="uint8", range=(0.0, 255.0), size=(SIDE, SIDE), channels=3, color="rgb",
            fit="letterbox",
        ),
        normalization=None, normalization_inside=True, classes=("red", "green", "blue"),
        outputs=(OutputContract(name="boxes", meaning="boxes"), OutputContract(name="scores", meaning="scores")),
    )  # fmt: skip
    return save(
        path, nodes, [value("image", ("N", SIDE, SIDE, 3), TensorProto.UINT8)],
        [value("boxes", ("N", CELLS, 4)), value("scores", ("N", CELLS, 3))], constants,
        metadata={KEY: contract.model_dump_json()},
    )  # fmt: skip


@pytest.mark.parametrize("inside", [False, True])
def test_a_board_finds_what_is_found_here(inside: bool, tmp_path: Path) -> None:
    spec = ScoreSpec(metric="map50_95", batch=8, confidence=0.3, iou=0.1, max_detections=30)
    raw = detector(tmp_path / "raw.onnx")
    model = tmp_path / "model.onnx"
    numbers = {"confidence": spec.confidence, "iou": spec.iou, "max_detections": spec.max_detections}
    tail = SuppressSpec.model_validate({"by": "onnx", **numbers})
    model.write_bytes(suppressed(raw, tail) if inside else raw.read_bytes())
    contract, plain = read_contract(model), read_contract(raw)
    assert contract is not None
    assert plain is not None
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
    write_shards(tmp_path, "scored", COUNT, list(pixels))
    home = AgentHome(tmp_path / "home")
    job = home.start(
        "score", backend="onnxruntime", model=home.put(model), graph=home.put(model), first=0, batch=spec.batch,
        io=contract.model_dump(mode="json"), shards=[home.put(path) for path in sorted(tmp_path.glob("scored-*.npy"))],
        keep=load_task("detect").keep(contract, spec),
    )  # fmt: skip
    answer = job.wait()["result"]
    names = [one.name for one in contract.outputs]
    recorded = Recorded([job.folder / "out" / one["name"] for one in answer["files"]], COUNT, "on a board", names)
    none = np.zeros(0, np.int64)
    truth = Boxes(
        np.zeros(COUNT + 1, np.int64), np.zeros((0, 4), np.float32), none, none.astype(bool),
        np.full((COUNT, 2), SIDE, np.int32),
    )  # fmt: skip
    there = score_detector(recorded, contract, recorded, truth, spec)
    here = score_detector(ort.load(raw), plain, Images((pixels,)), truth, spec)
    assert len(here.scores) > COUNT
    for part in ("offsets", "boxes", "scores", "classes"):
        assert np.array_equal(getattr(there, part), getattr(here, part)), part
