"""The command line starts fast and small, and quantizes without torch or any TensorRT."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HEAVY = (
    "torch", "torchvision", "timm", "ultralytics", "tensorrt", "tensorrt_rtx", "polygraphy", "openvino", "ray",
)  # fmt: skip
# In every process of the test, children too: an import finds nothing.
BLOCK = f"import sys\nfor name in {HEAVY!r}:\n    sys.modules[name] = None\n"


@pytest.fixture(scope="module")
def blocked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(BLOCK)
    return {**os.environ, "PYTHONPATH": str(folder)}


def python(blocked: dict[str, str], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=blocked)


def test_help_loads_nothing_heavy(blocked: dict[str, str]) -> None:
    code = (
        "import sys; sys.argv = ['edgecnn', '--help']\nfrom edgecnn.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 0\n"
        "print([m for m in ('numpy', 'onnx', 'onnxruntime', 'scipy', 'sklearn', 'PIL', 'jinja2') if m in sys.modules])"
    )
    done = python(blocked, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "build" in done.stdout


def test_quantize_runs_without_torch_and_tensorrt(blocked: dict[str, str], tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.2, (16, 3, 3, 3)).astype(np.float32), "w1"),
        numpy_helper.from_array(rng.normal(0, 0.1, (32, 16, 3, 3)).astype(np.float32), "w2"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], "pool"),
        helper.make_node("Flatten", ["d"], ["y"], "flat"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    images = rng.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.zeros(24, np.int64))
    code = "import sys; from edgecnn.cli import main; sys.argv = ['edgecnn', *sys.argv[1:]]; main()"
    for device, typed in (("cpu-x86", False), ("jetson-orin-nano", True)):
        out = tmp_path / device
        arguments = [
            "quantize",
            str(tmp_path / "model.onnx"),
            "--data",
            str(tmp_path / "images.npz"),
            "--device",
            device,
        ]
        done = python(blocked, code, *arguments, "--images", "16", "--input", "range=1", "--out", str(out), "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["quantize"]["coverage"]["macs"] > 0.5
        assert (out / "model.int8.onnx").is_file()
        assert (out / "model.int8.typed.onnx").is_file() == typed
        kinds = {node.op_type for node in onnx.load(out / "model.int8.onnx").graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
