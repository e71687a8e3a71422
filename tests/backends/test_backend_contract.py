"""One contract for all backends, on golden graphs. A backend that can't run here is skipped by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from golden_graphs import CONV_INPUT, CONV_OUTPUT, conv_qdq, identity

from edgecnn.backends import BackendName, Runner, load_backend, openvino
from edgecnn.backends.gpu import list_gpus
from edgecnn.backends.tensorrt import rtx_gpus, trt
from edgecnn.process.errors import EdgeError

Loader = Callable[[Path], Runner]


@pytest.fixture(params=["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"])
def load(request: pytest.FixtureRequest, tmp_path: Path) -> Loader:
    """Loads an ONNX file with the backend; TensorRT builds an engine for the GPU here first."""
    name = request.param
    backend_title = trt.TITLES.get(name, name)
    if name == "openvino" and not openvino.installed():
        pytest.skip("OpenVINO is not installed")
    if name in trt.TITLES:
        if not trt.installed(name):
            pytest.skip(f"{backend_title} is not installed")
        if not list_gpus():
            pytest.skip(f"{backend_title} is here, but no NVIDIA GPU to run on")
        if name == "tensorrt-rtx" and list_gpus()[0].compute_capability not in rtx_gpus.CAPABILITIES:
            pytest.skip(f"{backend_title} does not support the GPU here, {list_gpus()[0].name}")
    backend = load_backend(name)

    def loader(model: Path) -> Runner:
        if name not in trt.TITLES:
            return backend.load(model)
        engine = tmp_path / f"{model.stem}.engine"
        trt.TensorRT(name).build(model, engine, compute_capability=None)
        return backend.load(engine)

    return loader


def test_identity_returns_its_input(load: Loader, tmp_path: Path) -> None:
    runner = load(identity(tmp_path / "identity.onnx"))
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(runner({"x": x})["y"], x)
    assert [(one.name, one.dtype, one.shape) for one in runner.inputs] == [("x", "float32", (None, 4))]


def test_quantized_convolution_by_hand(load: Loader, tmp_path: Path) -> None:
    runner = load(conv_qdq(tmp_path / "conv.onnx"))
    np.testing.assert_allclose(runner({"x": CONV_INPUT})["y"], CONV_OUTPUT, atol=1e-5)


def test_a_prepared_call_runs_again_and_again(load: Loader, tmp_path: Path) -> None:
    runner = load(conv_qdq(tmp_path / "conv.onnx"))
    run = runner.prepared({"x": CONV_INPUT})
    for _ in range(3):
        assert run() is None


def test_it_says_what_computes(load: Loader, tmp_path: Path) -> None:
    how = load(identity(tmp_path / "identity.onnx")).how
    assert any(character.isdigit() for character in how), how


def test_a_batch_of_another_size(load: Loader, tmp_path: Path) -> None:
    runner = load(identity(tmp_path / "identity.onnx"))
    for batch in (1, 5, 2, 5):
        x = np.full((batch, 4), batch, np.float32)
        np.testing.assert_array_equal(runner({"x": x})["y"], x)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_file_that_is_no_model(tmp_path: Path, name: BackendName) -> None:
    if name == "openvino" and not openvino.installed():
        pytest.skip("OpenVINO is not installed")
    (tmp_path / "no.onnx").write_bytes(b"not a model")
    with pytest.raises(EdgeError, match=r"(?i)^(onnxruntime|OpenVINO [0-9.]+) cannot load .*no\.onnx"):
        load_backend(name).load(tmp_path / "no.onnx")
