"""The doctor examines machines that a test describes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgecnn.backends.cpu import Cpu
from edgecnn.backends.gpu import Gpu
from edgecnn.cli.doctor import Finding, Here, examine
from edgecnn.process.versions import install_command
from edgecnn.recipe.load import load_device

REQUIREMENTS = (
    "numpy>=1.26", "onnx>=1.17", "torch>=2.6; extra == 'train'", "timm>=1.0.12; extra == \"train\"",
    "tensorrt-rtx-cu13>=1.2; sys_platform != 'darwin' and extra == 'rtx'", "tensorrt>=10.3; extra == 'tensorrt'",
    "pytest>=8.0; extra == 'dev'",
)  # fmt: skip
CORE = {"numpy": "2.4.6", "onnx": "1.23.2"}
RTX = {"tensorrt-rtx-cu13": "1.7.1"}
PIP = "/venv/lib/python3.10/site-packages/"
APT = "/usr/lib/python3.10/dist-packages/"


def machine(
    tmp_path: Path, packages: dict[str, str], *, modules: dict[str, str] | None = None, architecture: str = "x86_64",
    **changes: Any,
) -> Here:  # fmt: skip
    """A machine with these packages, and these modules (name → file)."""
    vnni = False if architecture == "x86_64" else None
    version: Callable[[str], str] = lambda name: packages.get(name, "absent")  # noqa: E731
    described: dict[str, Any] = {
        "python": "3.11.7", "requirements": REQUIREMENTS, "version": version, "origin": (modules or {}).get,
        "cpu": Cpu("a CPU", architecture, vnni), "gpus": (), "has_driver": False, "is_jetson": False, "store": tmp_path,
    }  # fmt: skip
    return Here(**{**described, **changes})


def findings(here: Here, *devices: str) -> dict[str, Finding]:
    """What is found, by topic."""
    return {one.topic: one for one in examine(here, tuple(load_device(name) for name in devices))}


def test_nothing_but_the_core(tmp_path: Path) -> None:
    found = findings(machine(tmp_path, CORE), "cpu-x86", "cpu-arm64", "rtx-4060", "jetson-orin-nano")
    assert found["core libraries"].state == "ok"
    assert "numpy 2.4.6" in found["core libraries"].detail
    assert found["extra `train`"].state == "missing"
    assert found["extra `train`"].fix == install_command("train")
    assert found["extra `tensorrt`"].state == "ok"  # no GPU: not needed
    assert "extra `dev`" not in found
    assert found["gpu"].detail.startswith("no NVIDIA GPU")
    assert "7 bits" in found["cpu"].detail
    assert found["device cpu-x86"].detail == "run here: build, score, time"
    assert found["device cpu-arm64"].detail == "simulate only: this machine is x86_64"
    for name in ("rtx-4060", "jetson-orin-nano"):
        assert found[f"device {name}"].state == "missing"
        assert found[f"device {name}"].fix == install_command("rtx")


def test_with_tensorrt_for_rtx_and_no_gpu(tmp_path: Path) -> None:
    here = machine(tmp_path, CORE | RTX, modules={"tensorrt_rtx": PIP + "tensorrt_rtx/__init__.py"})
    found = findings(here, "rtx-4060", "jetson-orin-nano")
    assert found["device rtx-4060"] == Finding(
        "device rtx-4060", "ok", "compile only (TensorRT for RTX 1.7.1): no such GPU here"
    )
    assert "parser, TensorRT 10.3 rules; no board here" in found["device jetson-orin-nano"].detail


def test_the_gpu_is_here(tmp_path: Path) -> None:
    gpu = Gpu("NVIDIA GeForce RTX 4060", "8.9", 8188, "580.65.06")
    modules = {"tensorrt_rtx": PIP + "tensorrt_rtx/__init__.py"}
    found = findings(machine(tmp_path, CORE | RTX, modules=modules, gpus=(gpu,)), "rtx-4060", "rtx-4090")
    assert found["gpu"].detail == "NVIDIA GeForce RTX 4060, compute capability 8.9, driver 580.65.06"
    assert (found["device rtx-4060"].state, found["device rtx-4060"].fix) == ("missing", "pip install polygraphy")
    assert "compile only" in found["device rtx-4090"].detail
    here = machine(tmp_path, CORE | RTX | {"polygraphy": "0.53.6"}, modules=modules, gpus=(gpu,))
    assert findings(here, "rtx-4060")["device rtx-4060"].detail.startswith("run here")


def test_openvino_here_absent_and_on_another_architecture(tmp_path: Path) -> None:
    absent = findings(machine(tmp_path, CORE), "cpu-x86-openvino")["device cpu-x86-openvino"]
    assert (absent.state, absent.detail) == ("missing", "simulate only: OpenVINO is not installed")
    assert absent.fix == install_command("openvino")
    here = findings(machine(tmp_path, CORE | {"openvino": "2026.4.1"}), "cpu-x86-openvino")["device cpu-x86-openvino"]
    assert (here.state, here.detail) == ("ok", "run here: build, score, time (OpenVINO 2026.4.1)")
    arm = findings(machine(tmp_path, CORE, architecture="aarch64"), "cpu-x86-openvino")["device cpu-x86-openvino"]
    assert (arm.state, arm.detail) == ("ok", "simulate only: this machine is aarch64")


def test_a_library_that_is_too_old(tmp_path: Path) -> None:
    found = findings(machine(tmp_path, CORE | {"onnx": "1.9.0"}))["core libraries"]
    assert (found.state, found.fix) == ("missing", "pip install --upgrade edgecnn")
    assert "onnx 1.9.0 is older than 1.17" in found.detail


def test_an_old_python_and_an_old_gpu(tmp_path: Path) -> None:
    found = findings(machine(tmp_path, CORE, python="3.9.2", gpus=(Gpu("Tesla P4", "6.1"),)))
    assert found["python"].state == "missing"
    assert found["gpu"].state == "warn"
    assert "do not support it" in found["gpu"].detail


def test_a_driver_that_does_not_answer(tmp_path: Path) -> None:
    assert findings(machine(tmp_path, CORE, has_driver=True))["gpu"].state == "warn"


def test_a_gpu_that_rtx_does_not_compile_for(tmp_path: Path) -> None:
    profile = load_device("rtx-4060").model_copy(update={"name": "lab", "compute_capability": "9.0"})
    found = {one.topic: one for one in examine(machine(tmp_path, CORE | RTX), (profile,))}["device lab"]
    assert found.state == "warn"
    assert "does not compile for compute capability 9.0" in found.detail


@pytest.mark.parametrize(
    ("modules", "state", "words"),
    [
        ({}, "missing", "no Python module"),
        ({"tensorrt": PIP + "tensorrt/__init__.py"}, "warn", "hides the board's own"),
        ({"tensorrt": APT + "tensorrt/__init__.py"}, "ok", "the board's own TensorRT 10.3.0"),
    ],
)
def test_a_jetson_and_its_tensorrt(tmp_path: Path, modules: dict[str, str], state: str, words: str) -> None:
    board = Gpu("NVIDIA Jetson Orin Nano Developer Kit", "8.7")
    here = machine(
        tmp_path, CORE | {"tensorrt": "10.3.0"}, modules=modules, architecture="aarch64", gpus=(board,), is_jetson=True
    )
    found = findings(here, "jetson-orin-nano", "cpu-arm64")
    assert found["jetson"].state == state
    assert words in found["jetson"].detail
    assert found["device cpu-arm64"].detail.startswith("run here")
    if state == "ok":
        assert found["device jetson-orin-nano"].detail == "run here: build, score, time (TensorRT 10.3.0)"


def test_the_store_and_its_disk(tmp_path: Path) -> None:
    found = findings(machine(tmp_path, CORE, store=tmp_path / "not" / "made" / "yet"))["store"]
    assert "GB free" in found.detail
    assert str(tmp_path / "not" / "made" / "yet") in found.detail


def test_this_machine(repo: Path) -> None:
    found = {one.topic: one for one in examine()}
    assert {"python", "core libraries", "cpu", "gpu", "store"} <= set(found)
    assert {f"device {path.stem}" for path in (repo / "devices").glob("*.yaml")} <= set(found)
    assert all(one.fix for one in found.values() if one.state == "missing")
