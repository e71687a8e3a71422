"""A device: the one we are on, or one that isn't here. `compile`, `score` and `time_pairs` are stages of the page.

`connect` answers with what stands behind a profile: boards over SSH (`SshTarget`), this machine (`Local`), or nothing
(`Offline`), which goes as far as it honestly can: engines compiled ahead of time or graphs
checked, accuracy by float simulation, no time measured. Nothing here loads an engine: that happens in child processes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from edgecnn.backends import openvino, ort
from edgecnn.backends.cpu import read_cpu
from edgecnn.backends.gpu import Gpu, list_gpus
from edgecnn.backends.tensorrt import trt
from edgecnn.measure.bench import PairTimes
from edgecnn.recipe.device import DeviceFacts, DeviceProfile, Scheme
from edgecnn.recipe.recipe import BenchSpec, ScoreSpec
from edgecnn.store.stage import Artifact
from edgecnn.targets.host import Local, Offline
from edgecnn.targets.hosts import HERE, Boards


class Target(Protocol):
    """A device we build for. The scheme is the profile's, adapted to what the device answered."""

    @property
    def profile(self) -> DeviceProfile:
        """What its file says."""

    @property
    def facts(self) -> DeviceFacts:
        """What it answered."""

    @property
    def scheme(self) -> Scheme:
        """`resolve(profile.scheme, facts)`."""

    def compile(self, out: Path, profile: DeviceProfile, facts: DeviceFacts, model: Artifact) -> None:
        """Stage: make the engine of a graph, or check the graph as far as possible; engine.json says which.

        Raises:
            EdgeError: the graph is refused (the node and the words), or INT8 is asked of a device without it.
        """

    def score(self, out: Path, spec: ScoreSpec, facts: DeviceFacts, engine: Artifact, data: Artifact) -> None:
        """Stage: outcomes of a compiled model on the scored split; score.json says whether simulated."""

    def time_pairs(self, out: Path, spec: BenchSpec, facts: DeviceFacts, base: Artifact, engine: Artifact) -> None:
        """Stage: time two compiled models side by side; speed.json says if not, and why."""

    def time_files(self, first: Path, second: Path, spec: BenchSpec) -> PairTimes | None:
        """Time two files (ONNX, or engines of this device) side by side; None where nothing can be timed."""


def connect(profile: DeviceProfile, boards: Boards = HERE) -> Target:
    """Whatever stands behind a profile: the boards given, else what this machine is. Light: no engine is loaded here.

    Raises:
        EdgeError: no board answers, or one is another device than the profile's.
    """
    if boards:
        from edgecnn.targets.ssh import connect_boards

        return connect_boards(profile, boards)
    cpu = read_cpu()
    here = profile.architecture == cpu.architecture
    match profile.backend:
        case "onnxruntime" | "openvino" if not here:
            return offline(profile, f"not run: this machine is {cpu.architecture}")
        case "openvino" if openvino.installed() is None:
            return offline(profile, "not run: OpenVINO is not installed")
        case "onnxruntime" | "openvino":
            version = ort.version() if profile.backend == "onnxruntime" else openvino.version()
            facts = DeviceFacts(reachable=True, backend_version=version, hardware=cpu.name, vnni=cpu.vnni)
            return Local(profile, facts)
        case "tensorrt" | "tensorrt-rtx":
            installed, gpus = trt.installed(profile.backend), list_gpus()
            gpu = next((one for one in gpus if is_device(profile, one)), None)
            if not installed or not here or gpu is None:
                return offline(profile, _absence(profile, gpus))
            version = f"{trt.TITLES[profile.backend]} {installed}"
            return Local(
                profile, DeviceFacts(reachable=True, backend_version=version, hardware=gpu.name, driver=gpu.driver)
            )


def offline(profile: DeviceProfile, why: str = "") -> Offline:
    """A device that isn't here, or is not to be run: further devices of a recipe are compiled for, never run."""
    return Offline(profile, why or "not run: no verdict is asked for")


def is_device(profile: DeviceProfile, gpu: Gpu) -> bool:
    """Whether this GPU is the profile's device: by compute capability, and by name where the profile names a product.

    A 4090 is not an rtx-4060 though both are 8.9, nor a 4060 Ti: a verdict bears the device's name.
    """
    if gpu.compute_capability != profile.compute_capability:
        return False
    words, wanted = set(gpu.name.lower().split()), set(profile.name.lower().split("-"))
    if not wanted & {"rtx", "jetson"}:
        return True
    return (
        wanted <= words
        and not (words - wanted) & {"ti", "laptop"}
        and ("rtx" not in wanted or "super" not in words - wanted)
    )


def _absence(profile: DeviceProfile, gpus: tuple[Gpu, ...]) -> str:
    if gpus:
        return f"not run: the GPU here is {gpus[0].name} (compute capability {gpus[0].compute_capability})"
    board = profile.architecture == "aarch64"
    return "not run: no board" if board else f"not run: no GPU of compute capability {profile.compute_capability} here"
