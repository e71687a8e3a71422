"""Devices that are here and devices that are not, on a model whose every answer is known."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from golden_graphs import colours, data_artifact, model_artifact

from edgecnn.backends import openvino
from edgecnn.backends.cpu import read_cpu
from edgecnn.backends.gpu import Gpu
from edgecnn.backends.tensorrt import rtx_gpus, trt
from edgecnn.measure.timing_input import feeds, undecided_by
from edgecnn.process.errors import EdgeError
from edgecnn.process.versions import install_command
from edgecnn.recipe.device import DeviceProfile
from edgecnn.recipe.load import load_device
from edgecnn.recipe.recipe import BenchSpec, ScoreSpec
from edgecnn.store.stage import Artifact
from edgecnn.targets.target import Target, connect, is_device, offline

X86 = platform.machine() in ("x86_64", "AMD64")
HERE, ELSEWHERE = ("cpu-x86", "cpu-arm64") if X86 else ("cpu-arm64", "cpu-x86")
QUICK = BenchSpec(warmup_ms=1, min_pairs=20, min_seconds=0.01, max_seconds=1.0)
needs_rtx = pytest.mark.skipif(trt.installed("tensorrt-rtx") is None, reason="TensorRT for RTX is not installed")


def compiled(target: Target, root: Path, **model: Any) -> tuple[Artifact, dict[str, Any]]:
    """The compile stage of a colour classifier, and its engine.json."""
    out = root / "compiled"
    out.mkdir(parents=True)
    target.compile(out, target.profile, target.facts, model_artifact(root / "model", **model))
    artifact = Artifact("compile-int8", "2" * 32, out)
    return artifact, artifact.json("engine.json")


def scored(target: Target, root: Path, engine: Artifact) -> dict[str, Any]:
    """score.json of the scored split."""
    out = root / "score"
    out.mkdir()
    target.score(out, ScoreSpec(), target.facts, engine, data_artifact(root / "data"))
    content: dict[str, Any] = json.loads((out / "score.json").read_text())
    return content


def speed_of(target: Target, root: Path, base: Artifact, engine: Artifact) -> tuple[dict[str, Any], Path]:
    """speed.json and its folder."""
    out = root / "speed"
    out.mkdir()
    target.time_pairs(out, QUICK, target.facts, base, engine)
    return json.loads((out / "speed.json").read_text()), out


# --- this machine's CPU ---


def test_the_cpu_here_runs_scores_and_times(tmp_path: Path) -> None:
    target = connect(load_device(HERE))
    assert target.facts.reachable
    engine, record = compiled(target, tmp_path / "int8", quantized=True)
    base, _ = compiled(target, tmp_path / "float", quantized=False)
    assert (record["built"], record["runnable"], record["engine"], record["quantized"]) == (True, True, None, True)
    assert record["checks"] == [
        {"name": f"{target.facts.backend_version} loads the graph", "passed": True, "detail": ""}
    ]
    assert record["size_bytes"] == (engine.path / "model.onnx").stat().st_size
    score = scored(target, tmp_path, engine)
    assert score["value"] == pytest.approx(48 / 50)
    assert score["simulated"] is False
    bits = "7-bit weights, no VNNI" if target.facts.vnni is False else "8-bit weights"
    assert bits in score["how"]
    speed, out = speed_of(target, tmp_path, base, engine)
    assert speed["measured"] is True
    assert speed["pairs"] >= 20
    assert (speed["hardware"], speed["backend"]) == (target.facts.hardware, target.facts.backend_version)
    assert speed["what"] == "engine time only"
    times = np.load(out / "times.npz")
    assert times["float_ms"].shape == times["int8_ms"].shape == (speed["pairs"],)
    assert (times["float_ms"] > 0).all()
    assert not (out / "pairs.npz").exists()


def test_the_float_model_has_no_weight_bits_in_its_score(tmp_path: Path) -> None:
    target = connect(load_device(HERE))
    engine, record = compiled(target, tmp_path, quantized=False)
    assert record["quantized"] is False
    assert "bit weights" not in scored(target, tmp_path, engine)["how"]


def test_two_files_are_timed_side_by_side(tmp_path: Path) -> None:
    target = connect(load_device(HERE))
    first, second = colours(tmp_path / "a.onnx"), colours(tmp_path / "b.onnx", quantized=True)
    times = target.time_files(first, second, QUICK)
    assert times is not None
    assert times.first_ms.shape == times.second_ms.shape
    assert len(times.first_ms) >= 20
    assert times.conditions["hardware"] == target.facts.hardware
    with pytest.raises(EdgeError, match="no file"):
        target.time_files(first, tmp_path / "missing.onnx", QUICK)


def test_a_fixed_batch_that_the_bench_does_not_ask(tmp_path: Path) -> None:
    target = connect(load_device(HERE))
    model = colours(tmp_path / "a.onnx", batch=4)
    with pytest.raises(EdgeError, match="fixed batch of 4, the bench asks 1"):
        target.time_files(model, model, QUICK)


def test_a_graph_that_the_cpu_cannot_run_is_refused(tmp_path: Path) -> None:
    target = connect(load_device(HERE))
    model = model_artifact(tmp_path / "model", quantized=False)
    (tmp_path / "out").mkdir()
    odd = onnx.load(str(model.path / "model.onnx"))
    odd.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    next(node for node in odd.graph.node if node.name == "conv").domain = "elsewhere"
    onnx.save(odd, str(model.path / "model.onnx"))
    with pytest.raises(EdgeError, match=r"onnxruntime cannot load .*elsewhere"):
        target.compile(tmp_path / "out", target.profile, target.facts, model)
    (model.path / "model.onnx").write_bytes(b"\x08\x07broken")
    with pytest.raises(EdgeError, match="not a readable ONNX file"):
        target.compile(tmp_path / "out", target.profile, target.facts, model)


@pytest.mark.skipif(not X86 or openvino.installed() is None, reason="OpenVINO, or x86, is not here")
def test_openvino_here_runs_scores_and_times(tmp_path: Path) -> None:
    target = connect(load_device("cpu-x86-openvino"))
    assert target.facts.reachable
    assert target.facts.backend_version == f"OpenVINO {openvino.installed()}"
    engine, record = compiled(target, tmp_path / "int8", quantized=True)
    base, _ = compiled(target, tmp_path / "float", quantized=False)
    assert (record["backend"], record["built"], record["runnable"]) == ("openvino", True, True)
    assert record["note"] == "OpenVINO runs the graph itself"
    score = scored(target, tmp_path, engine)
    assert (score["value"], score["simulated"]) == (pytest.approx(48 / 50), False)
    assert score["how"].startswith(f"OpenVINO {openvino.installed()} CPU kernels, ")
    if target.facts.vnni is False:
        assert "no VNNI: sums saturate at 16 bits, so the accuracy is this CPU's own" in score["how"]
    speed, _ = speed_of(target, tmp_path, base, engine)
    assert (speed["measured"], speed["backend"]) == (True, target.facts.backend_version)


@pytest.mark.skipif(not X86 or openvino.installed() is None, reason="OpenVINO, or x86, is not here")
def test_a_graph_that_openvino_cannot_run_is_refused_in_its_child(tmp_path: Path) -> None:
    target = connect(load_device("cpu-x86-openvino"))
    model = model_artifact(tmp_path / "model", quantized=False)
    (tmp_path / "out").mkdir()
    odd = onnx.load(str(model.path / "model.onnx"))
    odd.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    next(node for node in odd.graph.node if node.name == "conv").domain = "elsewhere"
    onnx.save(odd, str(model.path / "model.onnx"))
    with pytest.raises(EdgeError, match=r"OpenVINO .* cannot load .*elsewhere\.Conv"):
        target.compile(tmp_path / "out", target.profile, target.facts, model)


# --- devices that are not here ---


def test_without_openvino_its_device_is_offline_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = metadata.version

    def version(name: str) -> str:
        if name == "openvino":
            raise metadata.PackageNotFoundError(name)
        return ask(name)

    monkeypatch.setattr(metadata, "version", version)
    target = connect(load_device("cpu-x86-openvino").model_copy(update={"architecture": read_cpu().architecture}))
    assert not target.facts.reachable
    assert target.facts.hardware == "cpu-x86-openvino (not run: OpenVINO is not installed)"
    assert target.facts.backend_version.startswith("OpenVINO not installed (float simulation by onnxruntime ")
    engine, record = compiled(target, tmp_path, quantized=True)
    assert (record["built"], record["runnable"], record["note"]) == (False, False, "not run: OpenVINO is not installed")
    check = {"name": "OpenVINO loads the graph", "passed": None, "detail": f"not done: {install_command('openvino')}"}
    assert record["checks"] == [check]
    assert scored(target, tmp_path, engine)["simulated"] is True
    speed, _ = speed_of(target, tmp_path, engine, engine)
    assert (speed["measured"], speed["why"]) == (False, "OpenVINO is not installed")


def test_a_cpu_of_another_architecture_is_simulated(tmp_path: Path) -> None:
    target = connect(load_device(ELSEWHERE))
    assert not target.facts.reachable
    engine, record = compiled(target, tmp_path, quantized=True)
    assert (record["built"], record["runnable"]) == (False, False)
    assert record["note"] == f"not run: this machine is {'x86_64' if X86 else 'aarch64'}"
    score = scored(target, tmp_path, engine)
    assert score["simulated"] is True
    assert score["how"].startswith("float simulation of the graph")
    assert score["value"] == pytest.approx(48 / 50)
    speed, out = speed_of(target, tmp_path, engine, engine)
    assert (speed["measured"], f"not run: {speed['why']}", speed["p99_valid"]) == (False, record["note"], False)
    assert not (out / "times.npz").exists()
    assert target.time_files(engine.path / "model.onnx", engine.path / "model.onnx", QUICK) is None


def test_a_jetson_without_a_board_is_checked_and_says_so(tmp_path: Path) -> None:
    target = connect(load_device("jetson-orin-nano"))
    if target.facts.reachable:
        pytest.skip("this is a Jetson Orin Nano")
    engine, record = compiled(target, tmp_path, quantized=True, typed=True)
    assert (record["built"], record["runnable"], record["engine"]) == (False, False, None)
    assert record["note"] == "engine: not built (no board)"
    checks = {check["name"]: check["passed"] for check in record["checks"]}
    parser = "TensorRT for RTX 1.7 parser" if (trt.installed("tensorrt-rtx") or "").startswith("1.7") else None
    if parser:
        assert checks == {parser: True, "TensorRT 10.3 rules": True}
    assert "TensorRT 10.3" not in checks
    assert (engine.path / "typed.onnx").exists()
    assert not list(engine.path.glob("*.engine"))
    assert scored(target, tmp_path, engine)["simulated"] is True


@pytest.mark.parametrize("device", ["jetson-orin-nano", "jetson-thor"])
def test_a_jetson_graph_that_the_rules_refuse(tmp_path: Path, device: str) -> None:
    with pytest.raises(EdgeError, match=r"TensorRT 10\.3 rules refuse node `quantize` of `model\.onnx`"):
        compiled(offline(load_device(device)), tmp_path, quantized=True, bad="zero-point")


@needs_rtx
@pytest.mark.parametrize("device", ["rtx-3060", "rtx-4060", "rtx-5090"])
def test_an_rtx_engine_is_compiled_ahead_of_time(tmp_path: Path, device: str) -> None:
    target = offline(load_device(device))
    engine, record = compiled(target, tmp_path, quantized=True, typed=True)
    assert (record["built"], record["runnable"], record["engine"]) == (True, False, f"{device}.engine")
    assert record["size_bytes"] == (engine.path / f"{device}.engine").stat().st_size > 10_000
    assert "not run" in record["note"]
    assert [check["passed"] for check in record["checks"]] == [True, True]
    assert (engine.path / "build.log").stat().st_size > 0


@needs_rtx
def test_a_graph_that_the_rtx_parser_refuses(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match=r"refuses node `strange` \(Det\) of `model.onnx`: UNSUPPORTED_NODE"):
        compiled(offline(load_device("rtx-4060")), tmp_path, quantized=True, bad="operator")


def test_int8_asked_of_a_device_without_it(tmp_path: Path) -> None:
    profile = load_device("rtx-4060").model_copy(update={"name": "old-gpu", "precisions": ("fp32", "fp16")})
    with pytest.raises(EdgeError, match="device `old-gpu` lists only fp32, fp16"):
        compiled(offline(profile), tmp_path, quantized=True)


# --- who is who ---


@pytest.mark.parametrize(
    ("device", "gpu", "same"),
    [
        ("rtx-4060", Gpu("NVIDIA GeForce RTX 4060", "8.9"), True),
        ("rtx-4060", Gpu("NVIDIA GeForce RTX 4090", "8.9"), False),
        ("rtx-4060", Gpu("NVIDIA GeForce RTX 4060 Ti", "8.9"), False),
        ("rtx-4060", Gpu("NVIDIA GeForce RTX 4060 Laptop GPU", "8.9"), False),
        ("rtx-4060", Gpu("NVIDIA L4", "8.9"), False),
        ("jetson-orin-nano", Gpu("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "8.7"), True),
        ("jetson-orin-nx", Gpu("NVIDIA Jetson Orin Nano Developer Kit", "8.7"), False),
        ("jetson-agx-orin", Gpu("NVIDIA Jetson AGX Orin Developer Kit", "8.7"), True),
        ("jetson-thor", Gpu("NVIDIA Jetson AGX Thor Developer Kit", "11.0"), True),
    ],
)
def test_a_verdict_bears_the_name_of_the_gpu_it_was_measured_on(device: str, gpu: Gpu, same: bool) -> None:
    assert is_device(load_device(device), gpu) is same


def test_a_device_file_of_ones_own_needs_the_compute_capability_only() -> None:
    profile = load_device("rtx-4090").model_copy(update={"name": "lab-machine", "compute_capability": "9.0"})
    assert is_device(profile, Gpu("NVIDIA H100 80GB HBM3", "9.0"))
    assert not is_device(profile, Gpu("NVIDIA A100", "8.0"))


def test_facts_tell_offline_devices_apart() -> None:
    """Facts are in the key of what is compiled: two boards of one chip must not share an entry."""
    facts = [
        offline(load_device(name)).facts for name in ("jetson-orin-nano", "jetson-orin-nx", "rtx-4060", "rtx-4090")
    ]
    assert len(set(facts)) == 4


# --- what is fed and when it is enough ---


def test_timing_input_is_the_same_every_time(tmp_path: Path) -> None:
    from edgecnn.backends import ort

    inputs = ort.load(colours(tmp_path / "m.onnx")).inputs
    one, two = feeds(inputs, 3, tmp_path), feeds(inputs, 3, tmp_path)
    assert one["image"].shape == (3, 4, 4, 3)
    assert one["image"].dtype == np.uint8
    np.testing.assert_array_equal(one["image"], two["image"])


def test_when_more_pairs_are_wanted() -> None:
    random = np.random.default_rng(0)
    base = np.exp(random.normal(0, 0.01, 400))
    speed, regression = undecided_by("speed"), undecided_by("regression")
    assert not speed(base, base * 0.5)
    assert not regression(base, base * 1.2)
    same = np.exp(random.normal(0, 0.01, 400))
    assert speed(base, same)  # which is faster is open
    assert not regression(base, same)  # that it is not slower is shown
    noisy = base * 1.03 * np.exp(random.normal(0, 0.3, 400))
    assert regression(base, noisy)


# --- the device files ---


def test_device_files(repo: Path) -> None:
    profiles: dict[str, DeviceProfile] = {
        path.stem: load_device(str(path)) for path in (repo / "devices").glob("*.yaml")
    }
    assert set(profiles) == {
        "cpu-x86", "cpu-x86-openvino", "cpu-arm64", "rtx-3060", "rtx-4060", "rtx-4090", "rtx-5090", "rtx-30-to-50",
        "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-thor",
    }  # fmt: skip
    for name, profile in profiles.items():
        assert profile.name == name
        assert "int8" in profile.precisions
        assert len(profile.source) > 20
        if name.startswith("cpu-"):
            backend, bias = ("openvino", "float") if name == "cpu-x86-openvino" else ("onnxruntime", "int32")
            assert (profile.backend, profile.scheme.bias, profile.scheme.placement) == (backend, bias, backend)
            assert (profile.scheme.costs is None) == (backend == "openvino")
            assert profile.compute_capability is None
            continue
        assert len(profile.capabilities) == (3 if name == "rtx-30-to-50" else 1)
        assert name == "rtx-30-to-50" or (profile.memory_mb or 0) >= 8192
        assert (profile.scheme.activations, profile.scheme.bias) == ("int8-symmetric", "float")
        assert (profile.scheme.islands, profile.scheme.placement) == ("float16", "tensorrt")
        if name.startswith("jetson-"):
            assert (profile.backend, profile.architecture, profile.tensorrt_rules) == ("tensorrt", "aarch64", "10.3")
        else:
            assert (profile.backend, profile.architecture, profile.unverified) == ("tensorrt-rtx", "x86_64", ("int8",))
            assert set(profile.capabilities) <= set(rtx_gpus.CAPABILITIES)
