"""A user's desk: an ONNX file that knows three colours, labelled images of them, and a recipe of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

COLOURS = ("blue", "green", "red")  # as folders are sorted
CHANNEL = {"red": 0, "green": 1, "blue": 2}
RECIPE = """\
name: own
data: {format: image-folder, root: images, calibrate: 40}
model: {family: onnx, weights: ./colours.onnx, image_size: 16, input: range=1}
quantize: {images: 24, effort: fast}
bench: {min_pairs: 4, min_seconds: 0.02, max_seconds: 0.1}
device: cpu-x86
budgets: {max_accuracy_drop: 0.05}
"""


def colour_net(path: Path, classes: int = 3, *, free: bool = False) -> Path:
    """Float (N, 3, 16, 16) of 0..1 → logits of (blue, green, red), which stand for the brightest channel."""
    turned = np.zeros((8, 3, 1, 1), np.float32)
    for row, name in enumerate(COLOURS):
        turned[row, CHANNEL[name]] = 1.0
    head = np.zeros((classes, 8, 1, 1), np.float32)
    head[np.arange(3), np.arange(3)] = 1.0
    nodes = [
        helper.make_node("Conv", ["pixels", "turned"], ["a"], "turn"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "head"], ["c"], "head"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], "pool"),
        helper.make_node("Flatten", ["d"], ["answer"], "flat"),
    ]
    side = None if free else 16
    shape = ["n", 3, side, side]
    graph = helper.make_graph(
        nodes, "colours", [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(turned, "turned"), numpy_helper.from_array(head, "head")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def write_desk(folder: Path) -> Path:
    """Images of a folder a class, `colours.onnx` and `own.yaml`."""
    rng = np.random.default_rng(0)
    for name in COLOURS:
        (folder / "images" / name).mkdir(parents=True)
        for number in range(240):
            pixels = rng.integers(0, 120, (20, 20, 3), np.uint8)
            pixels[..., CHANNEL[name]] = rng.integers(100, 256, (20, 20))
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    colour_net(folder / "colours.onnx")
    (folder / "own.yaml").write_text(RECIPE)
    return folder
