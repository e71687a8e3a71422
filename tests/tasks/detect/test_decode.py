"""Detectors that others exported: their layouts are found and decoded, and a labelled dataset judges them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from command_line import edgecnn
from dots import write_dots
from foreign_detectors import SIZE, detector
from PIL import Image
from typer.testing import CliRunner

from edgecnn import api
from edgecnn.cli.app import app
from edgecnn.families.onnx.detector import as_detector
from edgecnn.families.onnx.input import contract_of
from edgecnn.foreign.boxes import labelled_boxes, share_out_boxes
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import Promise, QuantizeSpec
from edgecnn.tasks.detect.decode import STRIDES, cells, decode, layout

LAYOUTS = ("yolox", "yolox-pixels", "yolov8")


def answers(layout: str, boxes: np.ndarray, scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What a head of this layout gives for boxes (A, 4) x1 y1 x2 y2 and scores (A, C), objectness 1."""
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    if layout == "yolox":
        number = 0
        for stride in STRIDES:
            for row in range(size[0] // stride):
                for column in range(size[1] // stride):
                    centres[number] = centres[number] / stride - (column, row)
                    sides[number] = np.log(sides[number] / stride)
                    number += 1
    if layout == "yolov8":
        return np.concatenate([centres, sides, scores], axis=1).T
    return np.concatenate([centres, sides, np.ones((len(boxes), 1)), scores], axis=1)


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
@pytest.mark.parametrize("decoder", LAYOUTS)
def test_a_layout_is_decoded(decoder: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    count = cells(size)
    corner = rng.uniform(0, 50, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 40, (count, 2))], axis=1)
    scores = rng.random((count, 5))
    raw = answers(decoder, boxes.copy(), scores, size).astype(np.float32)
    assert raw.shape == layout(decoder, 5, size)
    found, values = decode(decoder, raw, 5, size)
    assert found == pytest.approx(boxes, abs=1e-3)
    best = scores if decoder == "yolov8" else np.where(scores == scores.max(axis=1, keepdims=True), scores, 0)
    assert values == pytest.approx(best, abs=1e-6)
    assert found.dtype == values.dtype == np.float32
    with pytest.raises(EdgeError, match="for 4 classes"):
        decode(decoder, raw, 4, size)


def test_yolox_multiplies_objectness_and_an_endless_side_stays_finite() -> None:
    raw = np.zeros((cells((32, 32)), 7), np.float32)
    raw[0] = [0.5, 0.5, 200.0, 0.0, 0.5, 0.8, 0.6]
    boxes, scores = decode("yolox", raw, 2, (32, 32))
    assert scores[0].tolist() == pytest.approx([0.4, 0.0])
    assert np.isfinite(boxes).all()
    assert boxes[0, [1, 3]].tolist() == [0.0, 8.0]
    raw[0, 4] = np.nan
    assert np.isnan(decode("yolox", raw, 2, (32, 32))[1][0]).all()  # to be refused, not "nothing found"


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_is_found_by_its_shape(name: str, tmp_path: Path) -> None:
    model = detector(tmp_path / "m.onnx", name)
    contract = as_detector(model, contract_of(model, "range=1", "letterbox"), ("dot",), "")
    assert [output.meaning for output in contract.outputs] == [name]
    assert (contract.task, contract.classes, contract.input.fit) == ("detect", ("dot",), "letterbox")
    told = as_detector(model, contract_of(model, "range=1", "letterbox"), ("dot",), name)
    assert told == contract


@pytest.mark.parametrize("decoder", ["", "yolox"])
def test_an_output_of_another_shape_is_refused(decoder: str, tmp_path: Path) -> None:
    model = detector(tmp_path / "m.onnx", "yolox", classes=3)
    contract = contract_of(model, "range=1", "letterbox")
    with pytest.raises(EdgeError) as caught:
        as_detector(model, contract, ("a", "b"), decoder)
    assert "[1, 84, 8]" in caught.value.message
    assert "yolox: (N, 84, 7)" in caught.value.message
    with pytest.raises(EdgeError, match="no layout `yolo`"):
        as_detector(model, contract, ("a", "b", "c"), "yolo")
    with pytest.raises(EdgeError, match="takes whole images"):
        as_detector(model, contract_of(model, "range=1,crop"), ("a", "b", "c"), "yolox")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    write_dots(folder, 80)
    for name in LAYOUTS:
        detector(folder / f"{name}.onnx", name)
    return folder


@pytest.mark.parametrize(
    ("name", "device"), [("yolox", "cpu-x86"), ("yolox-pixels", "jetson-orin-nano"), ("yolov8", "cpu-x86")]
)
def test_a_foreign_detector_is_judged_by_its_map(desk: Path, tmp_path: Path, name: str, device: str) -> None:
    arguments = ["quantize", str(desk / f"{name}.onnx"), "--data", str(desk / "data.yaml"), "--device", device]
    arguments += ["--images", "20", "--input", "range=1", "--ranges", "minmax", "--decode", name, "--json"]
    arguments += ["--max-accuracy-drop", "0.3", "--recover", "off", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["verdict"] == "pass"
    (rung,) = document["quantize"]["ladder"]
    assert rung["images"] == 60
    assert rung["float_value"] > 0.3  # boxes of fixed places: at IoU 0.5 all are found, at 0.9 few
    assert rung["drop"] <= 0.15
    assert rung["disc"] is None
    assert document["input"]["task"] == "detect"
    assert (tmp_path / "model.int8.onnx").is_file()


def test_the_layouts_agree(desk: Path) -> None:
    found = labelled_boxes(desk / "data.yaml")
    assert found is not None
    decoded = []
    for name in LAYOUTS:
        model = desk / f"{name}.onnx"
        contract = as_detector(model, contract_of(model, "range=1", "letterbox"), found[0].classes, name)
        pixels, _, _ = share_out_boxes(found, contract, QuantizeSpec(images=3), Promise())
        (raw,) = onnxruntime.InferenceSession(model).run(None, contract.feed(pixels.batch(0, 1)))
        decoded.append(decode(name, raw[0], 1, (SIZE, SIZE)))
    for boxes, scores in decoded[1:]:
        assert boxes == pytest.approx(decoded[0][0], abs=1e-3)
        assert scores == pytest.approx(decoded[0][1], abs=1e-5)


def test_calibrating_and_judging_images_are_disjoint(desk: Path, tmp_path: Path) -> None:
    model = desk / "yolox.onnx"
    contract = as_detector(model, contract_of(model, "range=1", "letterbox"), ("dot",), "")
    spec, promise = QuantizeSpec(images=20), Promise(max_accuracy_drop=0.01)
    found = labelled_boxes(desk / "data.yaml")
    assert found is not None
    pixels, selected, _ = share_out_boxes(found, contract, spec, promise)
    assert selected is not None
    assert (len(pixels), len(selected.images), len(selected.targets)) == (20, 60, 60)
    whole = {image.tobytes() for images in (pixels, selected.images) for image in images.batch(0, 80)}
    assert len(whole) == 80
    # A declared validation set judges in place of what training images are left.
    (tmp_path / "images").mkdir()
    for name in ("labels", "images"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "train").symlink_to(desk / name / "train")
        (tmp_path / name / "val").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "images" / "val" / "v.png")
    (tmp_path / "labels" / "val" / "v.txt").write_text("0 .5 .5 .2 .2")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [dot]\n")
    found = labelled_boxes(tmp_path / "data.yaml")
    assert found is not None
    _, selected, held = share_out_boxes(found, contract, spec, promise)
    assert selected is not None
    assert selected.targets.sizes.tolist() == [[20, 30]]
    assert held is selected.images
    (tmp_path / "labels" / "val" / "v.txt").unlink()
    unlabelled = labelled_boxes(tmp_path / "data.yaml")
    assert unlabelled is not None
    with pytest.raises(EdgeError, match="has a labelled box"):
        share_out_boxes(unlabelled, contract, spec, promise)
    # Where nothing is judged, what `val` names need not be there.
    (tmp_path / "data.yaml").write_text("train: images/train\nval: gone\nnames: [dot]\n")
    found = labelled_boxes(tmp_path / "data.yaml", judged=False)
    assert found is not None
    assert list(found[0].parts) == ["train"]
    with pytest.raises(EdgeError, match="gone"):
        labelled_boxes(tmp_path / "data.yaml")


def test_a_coco_file_judges_as_the_yolo_file_does(desk: Path, tmp_path: Path) -> None:
    found = labelled_boxes(desk / "data.yaml")
    assert found is not None
    images, annotations = [], []
    for number, image in enumerate(found[0].images):
        images.append({"id": number, "file_name": image.file.name, "width": 64, "height": 48})
        for row in image.rows:
            x1, y1, x2, y2 = (side * span for side, span in zip(row.box, (64, 48, 64, 48), strict=True))
            annotations.append(
                {"id": number, "image_id": number, "category_id": 5, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            )
    (tmp_path / "images").symlink_to(desk / "images" / "train")
    content = {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "dot"}]}
    (tmp_path / "dots.json").write_text(json.dumps(content))
    values = []
    for data in (desk / "data.yaml", tmp_path / "dots.json"):
        summary = api.quantize(
            desk / "yolox.onnx", data=data, device="cpu-x86", out=tmp_path / "out", input="range=1", images=20,
            ranges="minmax", keep_float=(), max_accuracy_drop=0.3, recover="off",
        )  # fmt: skip
        (rung,) = summary.document["quantize"]["ladder"]
        values.append((rung["float_value"], rung["value"]))
    assert values[0] == pytest.approx(values[1])


@pytest.mark.parametrize(
    ("data", "given", "words"),
    [
        ("data.yaml", {"decode": "yolov8"}, "no output of .* is laid out as yolov8"),
        ("data.yaml", {"images": 80}, "none is left to judge the accuracy budget with"),
        ("gone.yaml", {}, "does not exist"),
        ("images", {"decode": "yolox", "max_accuracy_drop": None}, "--decode is for labelled boxes"),
        ("wrong.yaml", {}, "for 2 classes"),
        ("data.yaml", {"decode": "yolox-pixels"}, "proves nothing\\nhint: check --input"),
    ],
)
def test_bad_detection_inputs_are_one_error(desk: Path, data: str, given: dict[str, Any], words: str) -> None:
    (desk / "wrong.yaml").write_text("train: images/train\nnames: [dot, line]\n")
    usual: dict[str, Any] = {
        "images": 20, "ranges": "minmax", "keep_float": (), "max_accuracy_drop": 0.01, "input": "range=1",
    }  # fmt: skip
    with pytest.raises(EdgeError, match=words):
        api.quantize(
            desk / "yolox.onnx", data=desk / data, device="cpu-x86", out=desk / "refused", **{**usual, **given}
        )
    assert not (desk / "refused").exists()


@pytest.mark.slow
def test_yolox_nano_of_others(packs: Path, tmp_path: Path) -> None:
    """Its head is found by pattern, its layout by shape, and labelled photographs judge float and INT8 alike.

    By ranges alone INT8 loses points; what the ladder gets back takes minutes, and is measured in the benches.
    """
    model, archive = packs / "yolox-nano" / "yolox_nano.onnx", packs / "coco128-train" / "coco128-train.zip"
    if not (model.is_file() and archive.is_file()):
        pytest.skip("no yolox-nano or coco128-train pack")
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    yaml = tmp_path / "data.yaml"
    yaml.write_text(yaml.read_text().replace("val: images/val", "val: images/train"))
    summary = api.quantize(
        model, data=yaml, device="jetson-orin-nano", images=16, ranges="minmax", out=tmp_path / "out",
        input="range=255,color=bgr", keep_float=(), max_accuracy_drop=0.05, recover="off", select_images=24,
    )  # fmt: skip
    record = summary.document["quantize"]
    (rung,) = record["ladder"]
    assert rung["float_value"] > 0.3
    assert 0.05 < rung["value"] <= rung["float_value"] + 0.05
    assert rung["lower"] <= rung["drop"] <= rung["upper"]
    assert rung["int8_macs"] > 0.85
    head = [layer for layer in record["layers"] if layer["why_float"] and "detector" in layer["why_float"]]
    assert len(head) == 9  # boxes, objectness and classes at three strides
    assert summary.document["verdict"] in ("fail", "not-enough-evidence")  # 24 images prove nothing
    assert len(onnx.load(tmp_path / "out" / "model.int8.onnx").graph.output) == 1


DETECTOR = """\
name: dots
task: detect
data: {format: yolo, root: data.yaml, train: images/train, scored_fraction: 0.6, calibrate: 16}
model: {family: onnx, weights: ./yolox.onnx, image_size: 64, input: range=1, decode: yolox}
quantize: {images: 16, effort: fast}
score: {metric: map50}
bench: {min_pairs: 4, min_seconds: 0.02, max_seconds: 0.1}
device: cpu-x86
budgets: {max_accuracy_drop: 0.3}
"""


def test_a_detector_that_others_exported_is_scored_by_its_boxes(tmp_path: Path) -> None:
    write_dots(tmp_path, 120)
    detector(tmp_path / "yolox.onnx", "yolox")
    (tmp_path / "dots.yaml").write_text(DETECTOR.replace("root: data.yaml, train: images/train", "root: data.yaml"))
    done = edgecnn(tmp_path, "build", "dots.yaml", "--json", EDGECNN_CACHE=str(tmp_path / "store"))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    assert report["verdict"] == "pass"
    assert report["metric"] == "map50"
    figures = {figure["name"]: figure["value"] for figure in report["figures"]}
    assert figures["reference_accuracy"] > 30
    assert report["curve"] is not None
