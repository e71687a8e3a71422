"""Detectors as others export them, of bright squares of 20 pixels on images of 64: small enough to be told by eye.

One convolution of 21 pixels looks for brightness around the middle of every cell of stride 8; the cells of strides 16
and 32 find nothing. Three layouts of the same answer, see `edgecnn.tasks.detect.decode`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE, SIDE, KERNEL = 64, 20, 21
STRIDES = (8, 16, 32)
CELLS = sum((SIZE // stride) ** 2 for stride in STRIDES)


def grid() -> tuple[np.ndarray, np.ndarray]:
    """(2, A) column and row of every cell, (1, A) its stride."""
    places, strides = [], []
    for stride in STRIDES:
        rows, columns = np.mgrid[: SIZE // stride, : SIZE // stride]
        places.append(np.stack([columns.ravel(), rows.ravel()]))
        strides.append(np.full((1, rows.size), stride))
    return np.concatenate(places, axis=1).astype(np.float32), np.concatenate(strides, axis=1).astype(np.float32)


def detector(path: Path, layout: str, classes: int = 1) -> Path:
    """Write one: float32 (1, 3, 64, 64) of values 0..1 → (1, A, 5 + classes), or (1, 4 + classes, A) of yolov8."""
    arrays: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []

    def op(kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind.lower()}{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def constant(value: object, kind: type = np.float32) -> str:
        name = f"value{len(arrays)}"
        arrays[name] = np.asarray(value, kind)
        return name

    flat = []
    for stride in STRIDES:
        # offsets in cells, log sides in strides, objectness, class scores: the first class is sure
        weight = np.zeros((5 + classes, 3, KERNEL, KERNEL), np.float32)
        bias = np.full(5 + classes, -3.0, np.float32)
        bias[:4] = [0.5, 0.5, np.log(SIDE / stride), np.log(SIDE / stride)]
        bias[5] = 3.0
        if stride == 8:
            weight[4] = 6 / weight[4].size  # brightness 0 to 1 → -3 to 3
            bias[4] = -3.0
        before = max(0, (KERNEL - stride) // 2)  # the window lies around the middle of its cell
        x = op(
            "Conv", "images", constant(weight), constant(bias), strides=[stride, stride], kernel_shape=[KERNEL, KERNEL],
            pads=[before, before, KERNEL - 1 - before, KERNEL - 1 - before],
        )  # fmt: skip
        flat.append(op("Reshape", x, constant([1, 5 + classes, -1], np.int64)))
    whole = op("Concat", *flat, axis=2)

    def rows(start: int, stop: int) -> str:
        return op("Slice", whole, *(constant([value], np.int64) for value in (start, stop, 1)))

    offsets, sides, scores = rows(0, 2), rows(2, 4), op("Sigmoid", rows(4, 5 + classes))
    if layout != "yolox":
        places, strides = (constant(part[None]) for part in grid())
        offsets = op("Mul", op("Add", offsets, places), strides)
        sides = op("Mul", op("Exp", sides), strides)
    if layout == "yolov8":
        first, last = (
            op("Slice", scores, *(constant([value], np.int64) for value in span))
            for span in ((0, 1, 1), (1, 1 + classes, 1))
        )
        scores = op("Mul", first, last)
    out = op("Concat", offsets, sides, scores, axis=1)
    shape = [1, 4 + classes, CELLS]
    if layout != "yolov8":
        out, shape = op("Transpose", out, perm=[0, 2, 1]), [1, CELLS, 5 + classes]
    graph = helper.make_graph(
        nodes, layout, [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path
