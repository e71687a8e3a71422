"""What a board's answer becomes: the packed devices it is, the device file written for it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from edgecnn.backends.tensorrt import rtx_gpus
from edgecnn.needs import needs
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.load import load_device, load_recipe
from edgecnn.targets.fleet import Done
from edgecnn.targets.hosts import Boards
from edgecnn.targets.probe import _rows, device_file, fitting_devices
from edgecnn.targets.ssh import facts_of

RTX = "TensorRT for RTX 1.7.1.116"


def answer(capability: str, *engines: str, name: str = "NVIDIA H100 80GB HBM3") -> dict[str, Any]:
    """A desktop machine's."""
    titles = {"onnxruntime": "onnxruntime 1.30.0", "tensorrt-rtx": RTX, "tensorrt": "TensorRT 10.16.0"}
    return {
        "machine": "x86_64", "hostname": "vm", "board": "", "cpu": "a CPU", "vnni": True, "python": "3.12.3", "l4t": "",
        "jetpack": "", "memory_mb": 64_000, "free_memory_mb": 60_000, "disk_free_mb": 1000, "power_modes": [],
        "power_mode": "", "clocks_locked": False, "temperature_c": {}, "gpu_users": [],
        "gpu": {"name": name, "compute_capability": capability, "driver": "580.159.04", "memory_mb": 81_559},
        "backends": {engine: titles[engine] for engine in engines},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("capability", "engines", "backend"),
    [
        ("8.9", ("onnxruntime", "tensorrt-rtx"), "tensorrt-rtx"),
        ("9.0", ("onnxruntime", "tensorrt-rtx"), "onnxruntime"),
        ("9.0", ("onnxruntime", "tensorrt-rtx", "tensorrt"), "tensorrt"),
    ],
)
def test_a_device_file_names_an_engine_that_takes_the_gpu(
    capability: str, engines: tuple[str, ...], backend: str
) -> None:
    content = yaml.safe_load(device_file(answer(capability, *engines), "mine", []))
    assert content["backend"] == backend
    assert ("compute_capability" in content) is (backend != "onnxruntime")


def test_no_engine_takes_the_gpu() -> None:
    with pytest.raises(EdgeError, match="no engine that its python3 finds and its GPU can run"):
        device_file(answer("9.0", "tensorrt-rtx"), "mine", [])


def test_the_card_and_what_does_not_fit_it_are_shown() -> None:
    rows = dict(_rows(answer("9.0", "onnxruntime", "tensorrt-rtx")))
    assert rows["GPU"] == "NVIDIA H100 80GB HBM3, compute capability 9.0, driver 580.159.04"
    assert rows["engines"] == f"onnxruntime 1.30.0, {RTX} (not for this GPU)"
    card = answer("8.9", "tensorrt-rtx", name="NVIDIA GeForce RTX 4060")
    assert dict(_rows(card))["engines"] == RTX
    assert fitting_devices(card) == ["rtx-4060"]


def test_a_gpu_that_the_engine_does_not_know_is_refused_before_anything_runs() -> None:
    profile = load_device("rtx-4060").model_copy(update={"name": "h100", "compute_capability": "9.0"})
    with pytest.raises(EdgeError, match=r"does not compile for compute capability 9\.0") as caught:
        facts_of(profile, Boards(("desk",)), Done("desk", answer("9.0", "tensorrt-rtx")))
    assert "backend: tensorrt" in (caught.value.hint or "")
    with pytest.raises(EdgeError, match=r"does not compile for compute capability 9\.0"):
        needs(load_recipe("quickstart"), profile)


@pytest.mark.parametrize(
    ("name", "version", "unknown"),
    [
        ("tensorrt-rtx", RTX, ("9.0",)), ("tensorrt-rtx", None, ("9.0",)), ("tensorrt-rtx", "1.8.0.1", ()),
        ("tensorrt-rtx", "TensorRT for RTX 2.0.0", ()), ("tensorrt", "TensorRT 10.3.0", ()),
    ],
)  # fmt: skip
def test_a_newer_release_decides_by_itself(name: str, version: str | None, unknown: tuple[str, ...]) -> None:
    assert rtx_gpus.unknown(name, ("8.6", "9.0"), version) == unknown
