"""Our mAP beside Ultralytics' own validator, by hand: `EDGECNN_DATA=… python benchmarks/validator.py`.

YOLOv8n as it comes (no training), 64 images of coco128-train to calibrate with, the other 64 scored; float and INT8 for
this CPU. Their validator runs the same two ONNX files (`rect=False`, batch 1, confidence 0.001, IoU 0.7, at most 300
boxes), first on our letterboxed pixels, then on the photographs with its own letterbox.

Average precision itself is defined differently: COCO takes the precision envelope at 101 recalls, they the area under
straight lines through the same points, which ends at 0: 0.995 where COCO says 1. `ours, their area` counts our matches
in that way, so that what is left between the last two is everything else.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper
from PIL import Image

from edgecnn.data import images
from edgecnn.data.letterbox import Letterbox
from edgecnn.pipeline import build
from edgecnn.process import progress
from edgecnn.recipe.io_contract import IoContract, read_contract
from edgecnn.recipe.load import load_device, load_recipe
from edgecnn.store.stage import Store
from edgecnn.targets.target import connect
from edgecnn.tasks.detect import task as detection
from edgecnn.tasks.detect.average_precision import RECALLS, Matches, match
from edgecnn.tasks.detect.boxes import boxes

SIZE, LIMIT = 640, 0.003


def unpacked(data: Path, folder: Path, calibrate: int) -> Path:
    """coco128-train with its images in two lists: so many calibrate, evenly drawn, the others are scored."""
    root = folder / "coco128"
    if not root.exists():
        zipfile.ZipFile(data / "coco128-train" / "coco128-train.zip").extractall(root)
    files = sorted((root / "images" / "train").glob("*.jpg"))
    chosen = files[:: len(files) // calibrate]
    for name, part in (("calibrate.txt", chosen), ("scored.txt", [file for file in files if file not in chosen])):
        (root / name).write_text("\n".join(f"./{file.relative_to(root)}" for file in part) + "\n")
    names = yaml.safe_load((root / "data.yaml").read_text())["names"]
    lists = {"path": str(root.absolute()), "train": "calibrate.txt", "val": "scored.txt", "names": names}
    (root / "halves.yaml").write_text(yaml.safe_dump(lists))
    return root / "halves.yaml"


def recipe_text(data: Path, halves: Path, calibrate: int) -> str:
    """No training: the published weights as they are."""
    return yaml.safe_dump({
        "name": "validator", "task": "detect",
        "data": {"format": "yolo", "root": str(halves), "train": "train", "scored": "val", "select_fraction": 0.05},
        "model": {
            "family": "ultralytics", "name": "yolov8n", "image_size": SIZE,
            "weights": str(data / "yolov8n-coco" / "yolov8n_state_fp16.pt"),
        },
        "train": {"epochs": 0}, "export": {"input": "float01-nchw"}, "quantize": {"images": calibrate - 8},
        "score": {"metric": "map50_95"}, "device": "cpu-x86", "budgets": {"max_accuracy_drop": 0.03},
    })  # fmt: skip


def as_theirs(model: Path, contract: IoContract, path: Path, names: dict[int, str]) -> None:
    """The same graph with their output: (1, 4 + classes, anchors), boxes as centre and size."""
    given = onnx.load(str(model))
    boxes_, scores = (next(o.name for o in contract.outputs if o.meaning == part) for part in ("boxes", "scores"))
    ends = helper.make_tensor("two_ends", TensorProto.INT64, [2], [2, 2])
    half = helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])
    given.graph.initializer.extend([ends, half])
    given.graph.node.extend([
        helper.make_node("Split", [boxes_, "two_ends"], ["low", "high"], axis=2),
        helper.make_node("Sub", ["high", "low"], ["sides"]),
        helper.make_node("Mul", ["sides", "half"], ["half_sides"]),
        helper.make_node("Add", ["low", "half_sides"], ["centres"]),
        helper.make_node("Concat", ["centres", "sides", scores], ["rows"], axis=2),
        helper.make_node("Transpose", ["rows"], ["output0"], perm=[0, 2, 1]),
    ])  # fmt: skip
    del given.graph.output[:]
    given.graph.output.append(helper.make_tensor_value_info("output0", TensorProto.FLOAT, None))
    facts = {"stride": 32, "task": "detect", "batch": 1, "imgsz": [SIZE, SIZE], "names": names, "channels": 3}
    for key, value in facts.items():
        given.metadata_props.add(key=key, value=str(value))
    onnx.save(given, str(path))


def squares(data: Path, folder: Path, names: dict[int, str]) -> Path:
    """The scored split as they read datasets: our letterboxed pixels, the boxes moved with them."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    pixels, truth = images(data, "scored"), boxes(data, "scored")
    for number in range(len(truth)):
        Image.fromarray(pixels.batch(number, number + 1)[0]).save(folder / "images" / f"{number:04d}.png")
        found, classes, _ = truth.of(number)
        height, width = (int(side) for side in truth.sizes[number])
        inside = Letterbox(height, width, (SIZE, SIZE)).to_model(found) / SIZE
        centres, sides = (inside[:, :2] + inside[:, 2:]) / 2, inside[:, 2:] - inside[:, :2]
        rows = np.concatenate([classes[:, None], centres, sides], axis=1)
        lines = [" ".join([str(int(row[0])), *(f"{value:.9f}" for value in row[1:])]) for row in rows]
        (folder / "labels" / f"{number:04d}.txt").write_text("\n".join(lines))
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump({"path": str(folder), "train": "images", "val": "images", "names": names}))
    return path


def straight_lines(found: Matches) -> float:
    """Mean over classes and thresholds of the area under straight lines through the envelope, at 101 recalls."""
    areas = []
    for kind in found.classes:
        if not (positives := int(kind.truths.sum())):
            continue
        for right in kind.right:
            true = np.cumsum(right)
            recall, precision = true / positives, true / np.arange(1, len(true) + 1)
            ends = [recall[-1] if len(recall) else 1.0, 1.0]
            across = np.concatenate([[0.0], recall, ends])
            envelope = np.maximum.accumulate(np.concatenate([[1.0], precision, [0.0, 0.0]])[::-1])[::-1]
            heights = np.interp(RECALLS, across, envelope)
            areas.append(float(((heights[1:] + heights[:-1]) / 2 * np.diff(RECALLS)).sum()))
    return float(np.mean(areas))


def their_map(model: Path, dataset: Path, folder: Path) -> float:
    """mAP50-95 by Ultralytics' validator."""
    from edgecnn.families import ultralytics as ours  # first: it keeps their settings and downloads off this machine

    assert ours.names()
    from ultralytics import YOLO

    found: Any = YOLO(str(model), task="detect").val(
        data=str(dataset), imgsz=SIZE, batch=1, rect=False, conf=0.001, iou=0.7, max_det=300, plots=False,
        verbose=False, device="cpu", workers=0, project=str(folder), name="val", exist_ok=True,
    )  # fmt: skip
    return float(found.box.map)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "edgecnn-bench", "validator"))
    parser.add_argument("--calibrate", type=int, default=64, help="images that calibrate; the others are scored")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    data_root = Path(os.environ["EDGECNN_DATA"]).absolute()
    halves = unpacked(data_root, given.work, given.calibrate)
    recipe_file = given.work / "validator.yaml"
    recipe_file.write_text(recipe_text(data_root, halves, given.calibrate))
    recipe = load_recipe(str(recipe_file))
    _, evidence = build(recipe, connect(load_device("cpu-x86")), Store(given.work / "store", recipe=recipe.name))
    names = {int(number): name for number, name in yaml.safe_load(halves.read_text())["names"].items()}
    square = squares(evidence.data.path, given.work / "squares", names)
    print("| model | ours | ours, their area | theirs, our letterbox | theirs, their letterbox |")
    print("|---|---|---|---|---|")
    for what, model, score in (("float", evidence.plain, evidence.before), ("INT8", evidence.int8, evidence.after)):
        ours = json.loads((score.path / "score.json").read_text())["coco"]["map50_95"]
        contract = read_contract(model.path / "model.onnx")
        assert contract is not None
        wrapped = given.work / f"{what}.onnx"
        as_theirs(model.path / "model.onnx", contract, wrapped, names)
        same, own = (their_map(wrapped, dataset, given.work) for dataset in (square, halves))
        found = detection.read(score.path / "outcomes.npz", evidence.data.path).found
        area = straight_lines(match(found, boxes(evidence.data.path, "scored"), len(names)))
        print(f"| {what} | {ours:.4f} | {area:.4f} | {same:.4f} ({same - area:+.4f}) | {own:.4f} ({own - area:+.4f}) |")


if __name__ == "__main__":
    with progress.showing(progress.Plain(60)):
        main()
