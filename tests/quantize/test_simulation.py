"""Sessions that share work answer as those that don't: weights decoded once, scales swapped, constants folded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from quantize_graphs import ARM, CPU, TENSORRT, Net, contract, pictures, residual_net

from edgecnn.quantize.calibration.auto import signal_and_noise
from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.calibration.ranges import activation_grid
from edgecnn.quantize.calibration.swap import simulations
from edgecnn.quantize.graph.canonical import canonical
from edgecnn.quantize.graph.light import apart
from edgecnn.quantize.graph.sessions import observe, open_session, run, run_each
from edgecnn.quantize.place.placement import Graph, place
from edgecnn.quantize.write.rewrite import rewrite
from edgecnn.recipe.device import Scheme

SIX_BITS = TENSORRT.model_copy(update={"activation_bits": 6})


@pytest.mark.parametrize("scheme", [TENSORRT, SIX_BITS, CPU, ARM], ids=["tensorrt", "6-bit", "cpu", "arm"])
def test_swapped_scales_answer_as_a_session_of_their_own(tmp_path: Path, scheme: Scheme) -> None:
    model = canonical(residual_net(tmp_path / "m.onnx"))
    feeds = list(Feeder(model, contract(), pictures(4), 4).feeds())
    shapes, bounds = observe(model, feeds)
    placement = place(Graph(model, shapes), scheme)
    sets = [
        {a.tensor: activation_grid(-by * bounds.get(a.tensor, 1.0), by * bounds.get(a.tensor, 1.0), scheme)
         for a in placement.activations}
        for by in (1.0, 0.5, 0.05)
    ]  # fmt: skip
    answers = [
        list(outputs) for outputs in simulations(model, placement, sets, scheme, feeds, [model.graph.outputs[0].name])
    ]
    for grids, found in zip(sets, answers, strict=True):
        own = open_session(rewrite(model, placement, grids, scheme), simulate=True)
        for got, want in zip(found, run_each(own, feeds), strict=True):
            assert np.array_equal(got[0], want[0])
    assert not np.array_equal(answers[0][0][0], answers[2][0][0])


def test_weights_apart_are_the_numbers_that_dequantize_linear_makes(tmp_path: Path) -> None:
    net = Net(40)
    integers = net.constant("q", net.rng.integers(-128, 128, (48, 40, 3, 3)).astype(np.int8))
    scales = net.constant("s", (net.rng.random(48) * 0.01 + 1e-4).astype(np.float32))
    zeros = net.constant("z", np.zeros(48, np.int8))
    weight = net.op("DequantizeLinear", integers, scales, zeros, name="dq", axis=0)
    model = net.model(net.op("Conv", "image", weight, name="c", pads=[1] * 4), rank=4)
    light, arrays = apart(model, decode=True)
    assert [node.op_type for node in light.graph.node] == ["Conv"]
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    asked.graph.output.append(helper.make_tensor_value_info("dq_out", onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(asked.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"image": net.rng.random((1, 40, 8, 8)).astype(np.float32)}
    answer, decoded = session.run(None, feed)
    assert np.array_equal(arrays["dq_out"], decoded)
    (got,) = run(open_session(model, simulate=True), feed)
    np.testing.assert_allclose(got, answer, rtol=1e-4, atol=1e-4)
    kept, nothing = apart(model, decode=False)
    assert [node.op_type for node in kept.graph.node] == ["DequantizeLinear", "Conv"]
    assert set(nothing) == {"q"}


def test_weights_that_constants_decide_become_constants(tmp_path: Path) -> None:
    """A standardized convolution, as NF-Nets and ResNetV2 export it: (w - mean) / std per output channel."""
    net = Net(3)
    weight = net.constant("w", net.rng.standard_normal((16, 3, 3, 3)).astype(np.float32))
    axes = net.constant("axes", np.asarray([1, 2, 3], np.int64))
    centred = net.op("Sub", weight, net.op("ReduceMean", weight, axes), name="centred")
    spread = net.op("Sqrt", net.op("ReduceMean", net.op("Mul", centred, centred), axes), name="spread")
    scaled = net.op("Div", centred, spread, name="scaled")
    x = net.op("Conv", "image", scaled, name="c", pads=[1] * 4)
    wide = net.op("Expand", net.constant("one", np.ones((1, 1, 1, 1), np.float32)),
                  net.constant("shape", np.asarray([1, 16, 8, 8], np.int64)), name="wide")  # fmt: skip
    huge = net.op("Expand", net.constant("two", np.ones((1, 1, 1, 1), np.float32)),
                  net.constant("far", np.asarray([64, 16, 8, 8], np.int64)), name="huge")  # fmt: skip
    most = net.op("ReduceMax", huge, net.constant("zero", np.asarray([0], np.int64)), name="most")
    path = net.save(tmp_path / "m.onnx", net.op("Mul", net.op("Add", x, wide), most), rank=4)
    model = canonical(path)
    assert [node.op_type for node in model.graph][-3:] == ["Conv", "Add", "Mul"]
    found = next(node for node in model.graph if node.op_type == "Conv").inputs[1]
    assert found is not None
    assert found.name == "scaled_out"
    array = found.const_value.numpy()
    np.testing.assert_allclose(array.mean(axis=(1, 2, 3)), 0.0, atol=1e-6)
    np.testing.assert_allclose(array.std(axis=(1, 2, 3)), 1.0, rtol=1e-4)
    feed = contract().feed(pictures(2).images)
    (want,), (got,) = run(open_session(path), feed), run(open_session(model), feed)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_outputs_that_are_no_numbers_to_compare() -> None:
    floats = np.asarray([3.0, 4.0], np.float32)
    assert signal_and_noise(floats, floats + 1) == (25.0, 2.0)
    assert signal_and_noise(np.asarray([1, 2]), np.asarray([5, 6])) == (0.0, 0.0)
    assert signal_and_noise(floats, floats[:1]) == (25.0, 25.0)
