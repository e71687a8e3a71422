"""Engine work in its child process: crashes, refusals, and TensorRT for RTX compiling for real."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from golden_graphs import colours

from edgecnn.backends.tensorrt import rtx_gpus, trt
from edgecnn.process.child import run_child
from edgecnn.process.errors import EdgeError
from edgecnn.process.versions import install_command

CHILD = "edgecnn.targets.child"
needs_rtx = pytest.mark.skipif(trt.installed("tensorrt-rtx") is None, reason="TensorRT for RTX is not installed")


@pytest.mark.parametrize(("name", "words"), [("SIGSEGV", "crashed with SIGSEGV"), ("SIGKILL", "ran out of memory")])
def test_a_crash_is_an_error_with_the_end_of_the_log(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(EdgeError) as caught:
        run_child("crashing_child", {"signal": name}, tmp_path / "log", env={"PYTHONPATH": str(Path(__file__).parent)})
    assert words in caught.value.message
    assert "the engine's last words" in caught.value.hint


def test_an_unknown_job(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="no job `dance`"):
        run_child(CHILD, {"do": "dance"}, tmp_path / "log")


def test_a_backend_that_is_not_installed_says_how_to_get_it(tmp_path: Path) -> None:
    if trt.installed("tensorrt"):
        pytest.skip("TensorRT is installed")
    job = {"do": "parse", "backend": "tensorrt", "model": str(colours(tmp_path / "m.onnx"))}
    with pytest.raises(EdgeError, match="TensorRT is not usable here") as caught:
        run_child(CHILD, job, tmp_path / "log")
    assert install_command("tensorrt") in caught.value.hint


@needs_rtx
@pytest.mark.parametrize("half", [False, True])
def test_rtx_compiles_a_quantized_graph_for_ada(tmp_path: Path, half: bool) -> None:
    model = colours(tmp_path / "m.onnx", quantized=True, half=half)
    engine = tmp_path / "m.engine"
    job = {
        "do": "build",
        "backend": "tensorrt-rtx",
        "model": str(model),
        "engine": str(engine),
        "compute_capability": "8.9",
    }
    answer = run_child(CHILD, job, tmp_path / "build.log")
    assert engine.stat().st_size > 1000
    assert answer["layers"] > 5
    assert answer["version"].startswith("TensorRT for RTX 1.")


@needs_rtx
def test_one_engine_serves_cards_of_several_generations(tmp_path: Path) -> None:
    sizes = []
    for capability in ("8.9", "8.6, 8.9, 12.0"):
        engine = tmp_path / f"{len(sizes)}.engine"
        job = {
            "do": "build", "backend": "tensorrt-rtx", "model": str(colours(tmp_path / "m.onnx", quantized=True)),
            "engine": str(engine), "compute_capability": capability,
        }  # fmt: skip
        run_child(CHILD, job, tmp_path / "build.log")
        sizes.append(engine.stat().st_size)
    assert sizes[1] > sizes[0]  # it holds what each of them needs


@needs_rtx
@pytest.mark.parametrize(
    ("bad", "node", "words"),
    [
        ("zero-point", "`quantize` (QuantizeLinear)", "Non-zero zero point is not supported"),
        ("operator", "`strange` (Det)", "UNSUPPORTED_NODE"),
    ],
)
def test_rtx_names_the_node_it_refuses_in_its_own_words(tmp_path: Path, bad: str, node: str, words: str) -> None:
    model = colours(tmp_path / "m.onnx", quantized=True, bad=bad)
    with pytest.raises(EdgeError) as caught:
        run_child(CHILD, {"do": "parse", "backend": "tensorrt-rtx", "model": str(model)}, tmp_path / "log")
    assert f"refuses node {node} of `m.onnx`" in caught.value.message
    assert words in caught.value.message


@needs_rtx
def test_rtx_does_not_know_every_gpu(tmp_path: Path) -> None:
    job = {
        "do": "build", "backend": "tensorrt-rtx", "model": str(colours(tmp_path / "m.onnx")),
        "engine": str(tmp_path / "m.engine"), "compute_capability": "8.7",
    }  # fmt: skip
    with pytest.raises(EdgeError, match=r"compute capability 8\.7") as caught:
        run_child(CHILD, job, tmp_path / "log")
    assert "SM89" in caught.value.hint
    assert not (tmp_path / "m.engine").exists()


@needs_rtx
def test_rtx_wants_a_fixed_image_size(tmp_path: Path) -> None:
    model = onnx.load(str(colours(tmp_path / "m.onnx")))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "height"
    onnx.save(model, str(tmp_path / "free.onnx"))
    job = {
        "do": "build", "backend": "tensorrt-rtx", "model": str(tmp_path / "free.onnx"),
        "engine": str(tmp_path / "m.engine"), "compute_capability": "8.9",
    }  # fmt: skip
    with pytest.raises(EdgeError, match="free dimensions besides the batch"):
        run_child(CHILD, job, tmp_path / "log")


@needs_rtx
def test_an_engine_is_not_loaded_without_its_gpu(tmp_path: Path) -> None:
    (tmp_path / "m.engine").write_bytes(b"not an engine at all" * 20)
    job = {"do": "load", "backend": "tensorrt-rtx", "model": str(tmp_path / "m.engine")}
    with pytest.raises(EdgeError):
        run_child(CHILD, job, tmp_path / "log")


def test_the_known_gpus_are_those_of_the_installed_release() -> None:
    if trt.installed("tensorrt-rtx") is None:
        pytest.skip("TensorRT for RTX is not installed")
    import tensorrt_rtx

    members = [one for one in dir(tensorrt_rtx.ComputeCapability) if one.startswith("SM")]
    assert {"SM" + one.replace(".", "") for one in rtx_gpus.CAPABILITIES} == set(members)
