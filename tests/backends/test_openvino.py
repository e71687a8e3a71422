"""OpenVINO's own ways; what all backends share is in test_backend_contract."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden_graphs import CONV_INPUT, conv_qdq, identity, save, value
from onnx import TensorProto, helper

from edgecnn.backends import openvino
from edgecnn.process.child import run_child
from edgecnn.process.errors import EdgeError

pytestmark = pytest.mark.skipif(openvino.installed() is None, reason="OpenVINO is not installed")


def test_it_names_its_version_and_threads(tmp_path: Path) -> None:
    backend = openvino.OpenVino()
    assert backend.version() == f"OpenVINO {openvino.installed()}"
    how = backend.load(identity(tmp_path / "m.onnx"), threads=2).how
    assert how == f"OpenVINO {openvino.installed()} CPU kernels, 2 threads"


def test_the_threads_asked_for_are_the_threads_it_has(tmp_path: Path) -> None:
    for threads in (1, 2):
        runner = openvino.OpenVino().load(identity(tmp_path / "m.onnx"), threads=threads)
        compiled = runner.compiled(((1, 4),))
        assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
        assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


SIGNAL = """
import signal, sys
from pathlib import Path
from edgecnn.backends.openvino import OpenVino

for threads in (1, 2, 2):
    runner = OpenVino().load(Path(sys.argv[1]), threads=threads)  # the one before goes while this one is there
del runner
signal.signal(signal.SIGALRM, lambda *_: sys.exit("the signal was handled"))
signal.raise_signal(signal.SIGALRM)
"""


def test_a_signal_is_handled_after_models_have_come_and_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SIGNAL, str(identity(tmp_path / "m.onnx"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (1, "the signal was handled")


def test_it_does_not_simulate(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="the float simulation is onnxruntime's"):
        openvino.OpenVino().load(identity(tmp_path / "m.onnx"), simulate=True)


def test_named_tensors_come_beside_the_outputs(tmp_path: Path) -> None:
    runner = openvino.OpenVino().load(conv_qdq(tmp_path / "m.onnx"), tensors=("xd",))
    found = runner({"x": CONV_INPUT})
    assert set(found) == {"y", "xd"}
    np.testing.assert_allclose(found["xd"].ravel(), [0.3, -1.0, 12.6, 12.7], atol=1e-6)
    with pytest.raises(EdgeError, match="no tensor `nowhere`"):
        openvino.OpenVino().load(tmp_path / "m.onnx", tensors=("nowhere",))


def test_an_input_that_is_not_fed(tmp_path: Path) -> None:
    runner = openvino.OpenVino().load(identity(tmp_path / "m.onnx"))
    with pytest.raises(EdgeError, match="needs the input `x`, which was not given"):
        runner({"image": np.zeros((1, 4), np.float32)})


def test_outputs_that_are_one_tensor_keep_their_own_names(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu"), helper.make_node("Identity", ["y"], ["z"], "same")]
    model = save(tmp_path / "m.onnx", nodes, [value("x", (1, 2))], [value("z", (1, 2)), value("y", (1, 2))], {})
    found = openvino.OpenVino().load(model)({"x": np.array([[-1.0, 2.0]], np.float32)})
    assert {name: array.tolist() for name, array in found.items()} == {"z": [[0.0, 2.0]], "y": [[0.0, 2.0]]}


def test_uint8_input_is_told_by_its_numpy_name(tmp_path: Path) -> None:
    node = helper.make_node("Cast", ["x"], ["y"], "cast", to=TensorProto.FLOAT)
    model = save(tmp_path / "m.onnx", [node], [value("x", ("N", 2), TensorProto.UINT8)], [value("y", ("N", 2))], {})
    info = openvino.OpenVino().load(model).inputs[0]
    assert (info.name, info.dtype, info.shape) == ("x", "uint8", (None, 2))


def test_a_refusal_in_the_engine_process_names_the_operator(tmp_path: Path) -> None:
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], "odd", domain="elsewhere")
    model = save(tmp_path / "m.onnx", [node], [value("x", (1,))], [value("y", (1,))], {}, extra_domains=("elsewhere",))
    with pytest.raises(EdgeError, match=r"OpenVINO .* cannot load .*elsewhere\.NoSuchOperator") as caught:
        run_child("edgecnn.targets.child", {"do": "load", "backend": "openvino", "model": str(model)}, tmp_path / "log")
    assert "cpu-x86" in caught.value.hint
