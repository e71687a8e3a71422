"""Every graph of the zoo: delivered with the file's own ends, and near what the file itself computes."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from foreign_zoo import ZOO, Foreign, N
from onnx import TensorProto
from quantize_graphs import CPU, TENSORRT

from edgecnn.process.errors import EdgeError, InternalError
from edgecnn.quantize import quantize_model
from edgecnn.quantize.calibration.arrays import NamedArrays
from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.graph.ends import Ends
from edgecnn.quantize.graph.same import require_same
from edgecnn.quantize.noise.sensitivity import sensitivity
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.recipe import QuantizeSpec

pytestmark = pytest.mark.slow

NAMED = ("tensor ", "weight ", "node ")
FEW_BITS = TENSORRT.model_copy(update={"activation_bits": 6})  # a Clip before every QuantizeLinear
SCHEMES = {"tensorrt": TENSORRT, "cpu": CPU, "few bits": FEW_BITS}
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


def quantized(path: Path, scheme: Scheme, ranges: str = "minmax", recover: str = "off") -> dict[str, object]:
    spec = QuantizeSpec(images=8, ranges=ranges, recover=recover)
    quantize_model(path.parent, spec, scheme, path, NamedArrays({"x": IMAGES}), None)
    return json.loads((path.parent / "quantize.json").read_text())


# Names are the same for TensorRT with a Clip before the QuantizeLinear as without.
ASKED = [(name, scheme) for name, scheme in product(ZOO, SCHEMES) if not name.startswith(NAMED) or scheme != "tensorrt"]


@pytest.mark.parametrize(("name", "scheme"), ASKED)
def test_ends_and_answers(name: str, scheme: str, tmp_path: Path) -> None:
    path = ZOO[name]().save(tmp_path / "m.given.onnx")
    climbs = scheme == "cpu" and (not name.startswith(NAMED) or "edgecnn." in name)
    report = quantized(path, SCHEMES[scheme], *(("auto", "auto") if climbs else ()))
    assert not [rung for rung in report["ladder"] if "failed" in rung["why"]]  # type: ignore[attr-defined]
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


@pytest.mark.parametrize("ranges", ["minmax", "auto"])
def test_an_output_whose_values_decide_its_shape(ranges: str, tmp_path: Path) -> None:
    """Rounding may change how many places there are: of the other outputs everything is told."""
    above = (N("Greater", ["y", "edge"], ["above"]), N("NonZero", ["above"], ["places"]))
    given = Foreign().add(N("Conv", ["r", "w1"], ["y"]), *above, edge=np.asarray(0.05, np.float32))
    path = given.out("y").out("places", (4, "found"), TensorProto.INT64).save(tmp_path / "m.onnx")
    record = quantized(path, TENSORRT, ranges)
    assert record["sqnr_db"] > 20
    found = sensitivity(path, None, NamedArrays({"x": IMAGES}), TENSORRT, QuantizeSpec(images=8, ranges="minmax"))
    assert set(found.outputs_db) == {"y"}
    assert found.outputs_db["y"] > 20


def test_our_own_fault_is_told_as_ours(tmp_path: Path) -> None:
    path = ZOO["norm and its source"]().save(tmp_path / "m.onnx")
    model, feeds = canonical(path), [{"x": IMAGES[:1]}, {"x": IMAGES[1:2]}]
    require_same(path, model, feeds)
    weight = model.graph.initializers["w0"]
    weight.const_value = ir.tensor(weight.const_value.numpy() * 1.01, name="w0")
    with pytest.raises(
        InternalError, match=r"`m\.onnx` computes something other than the file: output `y` is .* dB away"
    ):
        require_same(path, model, feeds)


@pytest.mark.parametrize(
    ("op", "kind"), [("RandomNormalLike", "RandomNormalLike `noise`"), ("Dropout", "Dropout `noise`")]
)
def test_random_answers_are_refused(op: str, kind: str, tmp_path: Path) -> None:
    noise = N("Dropout", ["r", "half", "yes"], ["n"], "noise") if op == "Dropout" else N(op, ["r"], ["n"], "noise")
    given = Foreign().add(noise, N("Add", ["r", "n"], ["a"]), N("Conv", ["a", "w1"], ["y"]))
    if op == "Dropout":
        given.add(half=np.float32(0.5), yes=np.asarray(True))
    path = given.out("y").save(tmp_path / "m.onnx")
    with pytest.raises(EdgeError, match=rf"gives different results from run to run: {kind} draws random numbers"):
        quantized(path, TENSORRT)


def test_a_file_that_answers_nan_is_not_our_fault(tmp_path: Path) -> None:
    given = Foreign().add(
        N("Sqrt", ["x"], ["roots"]), N("ReduceSum", ["roots"], ["s"], keepdims=0), N("Add", ["r", "s"], ["a"])
    )
    path = given.add(N("Conv", ["a", "w1"], ["y"])).out("y").save(tmp_path / "m.onnx")
    model, feeds = canonical(path), [{"x": IMAGES[:1]}]
    model.graph.outputs[0].producer().replace_input_with(
        0, next(n for n in model.graph if n.op_type == "Relu").outputs[0]
    )
    with pytest.raises(EdgeError, match=r"`.*m\.onnx` itself gives NaN"):
        require_same(path, model, feeds)


def test_other_ends_are_never_delivered(tmp_path: Path) -> None:
    path = ZOO["output twice by Identity"]().save(tmp_path / "m.onnx")
    ends, other = Ends.of(path), onnx.load(str(path))
    other.graph.output[1].name = "y3"
    with pytest.raises(InternalError, match=r"has the outputs `y`, `y3`; the file has `y`, `y2`"):
        ends.declare(other)
    other.graph.output[1].name = "y2"
    other.graph.output[1].type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(InternalError, match=r"has output `y2` float16 .*; the file has float "):
        ends.declare(other)
