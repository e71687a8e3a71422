"""Suppression inside the exported graph of a trained YOLO: on photographs it answers what numpy's does, box for box."""

from __future__ import annotations

import io
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scoring import score_detector

from edgecnn.backends import ort
from edgecnn.data.index import Images
from edgecnn.data.pixels import fit_image
from edgecnn.families.export import export
from edgecnn.families.trained import WEIGHTS, ModelCard, write_card, write_state
from edgecnn.quantize.write.suppression import suppressed
from edgecnn.recipe.io_contract import read_contract
from edgecnn.recipe.recipe import ExportSpec, ModelSpec, ScoreSpec, SuppressSpec
from edgecnn.store.stage import Artifact
from edgecnn.tasks.detect.boxes import Boxes

pytestmark = [pytest.mark.train, pytest.mark.slow]
SIZE, COUNT = 320, 24


@pytest.fixture(scope="module")
def yolov8n(packs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YOLOv8n with its COCO weights as float ONNX."""
    if find_spec("ultralytics") is None:
        pytest.skip("the extra [yolo] is not installed")
    from edgecnn.families import ultralytics as family

    weights = packs / "yolov8n-coco" / "yolov8n_state_fp16.pt"
    if not weights.is_file():
        pytest.skip("no yolov8n-coco pack")
    spec = ModelSpec(family="ultralytics", name="yolov8n", image_size=SIZE, weights=weights)
    trained, out = tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("export")
    write_state(trained / WEIGHTS, family.create(spec, 80, 3).state_dict())
    given = spec.model_dump(include={"family", "name", "dropout", "width", "image_size"})
    names = tuple(f"class {number}" for number in range(80))
    write_card(
        trained,
        ModelCard(
            **given, classes=names, channels=3, color="rgb", fit="letterbox", normalization=spec.normalization(3)
        ),
    )
    export(out, ExportSpec(), spec, Artifact("train", "0" * 32, trained))
    return out / "model.onnx"


@pytest.fixture(scope="module")
def photographs(packs: Path) -> tuple[Images, Boxes]:
    """Letterboxed photographs of COCO; of their boxes only the images' sizes matter here."""
    path = packs / "coco128-train" / "coco128-train.zip"
    if not path.is_file():
        pytest.skip("no coco128-train pack")
    pixels, sizes = [], []
    with zipfile.ZipFile(path) as archive:
        for name in [name for name in archive.namelist() if name.endswith(".jpg")][:COUNT]:
            with Image.open(io.BytesIO(archive.read(name))) as image:
                original = np.asarray(image.convert("RGB"))
            pixels.append(fit_image(original, SIZE, "letterbox"))
            sizes.append(original.shape[:2])
    none, offsets = np.zeros(0, np.int64), np.zeros(COUNT + 1, np.int64)
    truth = Boxes(offsets, np.zeros((0, 4), np.float32), none, none.astype(bool), np.asarray(sizes, np.int32))
    return Images((np.stack(pixels),)), truth


@pytest.mark.parametrize(("confidence", "iou", "most"), [(0.001, 0.7, 300), (0.25, 0.45, 100)])
def test_the_same_boxes_on_photographs(
    yolov8n: Path, photographs: tuple[Images, Boxes], confidence: float, iou: float, most: int, tmp_path: Path
) -> None:
    images, truth = photographs
    inside = tmp_path / "inside.onnx"
    spec = SuppressSpec(by="onnx", confidence=confidence, iou=iou, max_detections=most)
    inside.write_bytes(suppressed(yolov8n, spec))
    score = ScoreSpec(metric="map50_95", batch=5, confidence=confidence, iou=iou, max_detections=most)
    found = []
    for model in (yolov8n, inside):
        contract = read_contract(model)
        assert contract is not None
        found.append(score_detector(ort.load(model, threads=2), contract, images, truth, score))
    ours, theirs = found
    assert len(ours.scores) > COUNT
    for part in ("offsets", "boxes", "scores", "classes"):
        assert np.array_equal(getattr(ours, part), getattr(theirs, part)), part
