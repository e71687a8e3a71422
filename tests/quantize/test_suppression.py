"""Suppression inside the graph answers what numpy's does; the plugin is a node that a parser without it never sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from golden_graphs import save, value
from onnx import helper

from edgecnn.backends import load_backend
from edgecnn.backends.tensorrt import rules as trt_rules
from edgecnn.data.letterbox import Letterbox
from edgecnn.process.errors import EdgeError
from edgecnn.quantize.write.suppression import OUTPUTS, bare, suppressed
from edgecnn.recipe.io_contract import KEY, InputContract, IoContract, OutputContract, read_contract
from edgecnn.recipe.recipe import ScoreSpec, SuppressSpec
from edgecnn.tasks.detect.answers import answered
from edgecnn.tasks.detect.detect import detect

SIZE = 96
MEANINGS = ("boxes", "scores")


def contract(classes: int, outputs: tuple[str, ...] = MEANINGS) -> IoContract:
    return IoContract(
        task="detect",
        input=InputContract(
            name="b", layout="NCHW", dtype="float32", range=(0.0, 1.0), size=(SIZE, SIZE), channels=3, color="rgb",
            fit="letterbox",
        ),
        normalization=None, normalization_inside=True,
        outputs=tuple(OutputContract(name=name, meaning=name) for name in outputs),
        classes=tuple(f"c{number}" for number in range(classes)),
    )  # fmt: skip


def raw(path: Path, anchors: int, classes: int, batch: int | str = "N") -> Path:
    """A detector that is given its own answers: boxes and scores pass through."""
    names = (("b", "boxes", (batch, anchors, 4)), ("s", "scores", (batch, anchors, classes)))
    nodes = [helper.make_node("Identity", [inside], [outside], outside) for inside, outside, _ in names]
    return save(
        path, nodes, [value(inside, shape) for inside, _, shape in names],
        [value(outside, shape) for _, outside, shape in names], {},
        metadata={KEY: contract(classes).model_dump_json()},
    )  # fmt: skip


def crowd(seed: int, images: int, anchors: int, classes: int) -> dict[str, np.ndarray]:
    """Boxes in clumps and scores in steps of 1/20, so that many are equal; the last image has nothing above 0.04."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, SIZE, (images, max(1, anchors // 6), 2))
    centre = np.take_along_axis(centre, rng.integers(0, centre.shape[1], (images, anchors, 1)), axis=1)
    half = rng.uniform(2, 20, (images, anchors, 2))
    corner = centre + rng.normal(0, 3, (images, anchors, 2))
    scores = rng.integers(0, 21, (images, anchors, classes)) / 20
    scores[-1] *= 0.04
    boxes = np.concatenate([corner - half, corner + half], axis=2)
    return {"b": boxes.astype(np.float32), "s": scores.astype(np.float32)}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("anchors", "classes", "confidence", "iou", "most"),
    [(200, 3, 0.25, 0.45, 300), (200, 80, 0.001, 0.7, 50), (60, 1, 0.5, 0.3, 300), (7, 1000, 0.9, 0.6, 12)],
)
def test_the_onnx_tail_answers_what_numpy_answers(
    backend: str, anchors: int, classes: int, confidence: float, iou: float, most: int, tmp_path: Path
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    spec = SuppressSpec(by="onnx", confidence=confidence, iou=iou, max_detections=most)
    model = tmp_path / "tail.onnx"
    model.write_bytes(suppressed(raw(tmp_path / "raw.onnx", anchors, classes), spec))
    told = read_contract(model)
    assert told is not None
    assert told.nms == spec
    assert tuple(output.name for output in told.outputs) == OUTPUTS
    runner = load_backend(backend).load(model)  # type: ignore[arg-type]  # one of the two
    feeds = crowd(classes, 3, anchors, classes)
    if backend == "openvino":  # it orders equal scores in its own way: let there be none
        size = feeds["s"].size
        feeds["s"] *= 1 - np.random.default_rng(0).permutation(size).reshape(feeds["s"].shape).astype(np.float32) / size
    answers = runner(feeds)
    score = ScoreSpec(metric="map50_95", confidence=confidence, iou=iou, max_detections=most)
    for number, sides in enumerate(((SIZE, SIZE), (40, 90), (33, 20))):
        box = Letterbox(*sides, (SIZE, SIZE))
        ours = detect(feeds["b"][number], feeds["s"][number], box, confidence=confidence, iou=iou, max_detections=most)
        theirs = answered(answers, told, number, box, score)
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)), number
    assert answers["num_detections"].dtype == answers["detection_classes"].dtype == np.int32
    if confidence >= 0.04:
        assert answers["num_detections"][-1, 0] == 0


def test_the_tail_keeps_a_fixed_batch_and_the_same_bytes(tmp_path: Path) -> None:
    spec = SuppressSpec(by="onnx", confidence=0.25, iou=0.5, max_detections=9)
    content = suppressed(raw(tmp_path / "raw.onnx", 20, 2, batch=2), spec)
    assert content == suppressed(tmp_path / "raw.onnx", spec)
    graph = onnx.load_from_string(content).graph
    shapes = [[side.dim_value for side in one.type.tensor_type.shape.dim] for one in graph.output]
    assert shapes == [[2, 1], [2, 9, 4], [2, 9], [2, 9]]


@pytest.mark.parametrize("by", ["onnx", "tensorrt"])
def test_boxes_and_scores_are_needed(by: str, tmp_path: Path) -> None:
    path = raw(tmp_path / "raw.onnx", 20, 2)
    model = onnx.load(path)
    helper.set_model_props(model, {KEY: contract(2, ("logits",)).model_dump_json()})
    onnx.save(model, path)
    spec = SuppressSpec.model_validate({"by": by, "confidence": 0.25, "iou": 0.5, "max_detections": 9})
    with pytest.raises(EdgeError, match="answers logits, and suppression needs boxes and scores"):
        suppressed(path, spec)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(EdgeError, match=r"has no `edgecnn\.io` metadata"):
        suppressed(path, spec)


def test_answers_that_cannot_be_detections_are_refused(tmp_path: Path) -> None:
    spec = SuppressSpec(by="onnx", confidence=0.25, iou=0.5, max_detections=4)
    told = contract(2, OUTPUTS).model_copy(update={"nms": spec})
    good = {
        "num_detections": np.asarray([[1]], np.int32), "detection_boxes": np.ones((1, 4, 4), np.float32),
        "detection_scores": np.ones((1, 4), np.float32), "detection_classes": np.ones((1, 4), np.int32),
    }  # fmt: skip
    box, score = Letterbox(SIZE, SIZE, (SIZE, SIZE)), ScoreSpec(metric="map50_95")
    assert len(answered(good, told, 0, box, score)[1]) == 1
    for name, bad, words in (
        ("num_detections", np.asarray([[5]], np.int32), "5 detections"),
        ("detection_classes", np.full((1, 4), 2, np.int32), "class 2"),
        ("detection_scores", np.full((1, 4), np.nan, np.float32), "not finite"),
    ):
        with pytest.raises(EdgeError, match=words):
            answered({**good, name: bad}, told, 0, box, score)


def test_the_plugin_is_one_node_that_the_rules_accept(tmp_path: Path) -> None:
    spec = SuppressSpec(by="tensorrt", confidence=0.25, iou=0.5, max_detections=100)
    path = tmp_path / "plugin.onnx"
    path.write_bytes(suppressed(raw(tmp_path / "raw.onnx", 50, 2), spec))
    model = onnx.load(path)
    node = model.graph.node[-1]
    assert (node.op_type, node.domain, list(node.input)) == ("EfficientNMS_TRT", "TRT", ["boxes", "scores"])
    given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    assert given == {
        "plugin_version": b"1", "score_threshold": 0.25, "iou_threshold": 0.5, "max_output_boxes": 100,
        "background_class": -1, "score_activation": 0, "box_coding": 0,
    }  # fmt: skip
    assert trt_rules.check(path) == []


def test_in_front_of_the_plugin_the_graph_is_the_one_it_was_put_behind(tmp_path: Path) -> None:
    spec = SuppressSpec(by="tensorrt", confidence=0.25, iou=0.5, max_detections=100)
    before, path, after = raw(tmp_path / "raw.onnx", 50, 2), tmp_path / "plugin.onnx", tmp_path / "after.onnx"
    path.write_bytes(suppressed(before, spec))
    content = bare(path)
    assert content is not None
    after.write_bytes(content)
    assert read_contract(after) == read_contract(before)
    models = [onnx.load(one) for one in (before, after)]
    assert list(models[0].graph.node) == list(models[1].graph.node)
    assert [one.name for one in models[1].graph.output] == list(MEANINGS)
    assert {one.domain for one in models[1].opset_import} == {""}
    assert bare(before) is None
