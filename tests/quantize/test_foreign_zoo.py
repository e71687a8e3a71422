"""Every graph of the zoo: delivered with the file's own ends, and near what the file itself computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from foreign_zoo import ZOO
from quantize_graphs import CPU, TENSORRT

from edgecnn.device import Scheme
from edgecnn.quantize import quantize_model
from edgecnn.quantize.arrays import NamedArrays
from edgecnn.recipe import QuantizeSpec

FOUR_BITS = TENSORRT.model_copy(update={"activation_bits": 6})  # a Clip before every QuantizeLinear
SCHEMES = {"tensorrt": TENSORRT, "cpu": CPU, "few bits": FOUR_BITS}
IMAGES = np.random.default_rng(3).standard_normal((8, 3, 16, 16)).astype(np.float32)


def answers(path: Path, count: int) -> list[np.ndarray]:
    """Without optimizations: the float simulation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": IMAGES[:count]}))


def told(path: Path) -> list[tuple[str, bytes]]:
    """Names and types of what the user feeds and reads, in order."""
    graph = onnx.load(str(path)).graph
    weights = {tensor.name for tensor in graph.initializer}
    ends = [value for value in graph.input if value.name not in weights] + list(graph.output)
    return [(value.name, value.type.SerializeToString(deterministic=True)) for value in ends]


def quantized(path: Path, scheme: Scheme, ranges: str = "minmax") -> dict[str, object]:
    spec = QuantizeSpec(images=8, ranges=ranges)
    quantize_model(path.parent, spec, scheme, path, NamedArrays({"x": IMAGES}), None)
    return json.loads((path.parent / "quantize.json").read_text())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ZOO)
def test_ends_and_answers(name: str, scheme: str, tmp_path: Path) -> None:
    path = ZOO[name]().save(tmp_path / "m.given.onnx")
    quantized(path, SCHEMES[scheme])
    made = [file for file in (tmp_path / "model.onnx", tmp_path / "typed.onnx") if file.exists()]
    assert len(made) == (1 if scheme == "cpu" else 2)
    for file in made:
        assert told(file) == told(path)
        if name == "BF16":
            continue  # onnxruntime has no such convolution to compare with
        for want, got in zip(answers(path, 2), answers(file, 2), strict=True):
            assert want.shape == got.shape
            noise, signal = (float(np.square(v.astype(np.float64)).sum()) for v in (got - want, want))
            assert noise <= signal * 10 ** -(1.5 if scheme == "few bits" else 2.5), file.name
