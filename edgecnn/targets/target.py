"""A device: the one we are on, or one that isn't here. `compile`, `score` and `time_pairs` are stages of the page.

`connect` answers with what stands behind a profile: boards over SSH (`SshTarget`), this machine's CPU (`Local`), its
GPU (`LocalGpu`), or nothing (`Offline`), which goes as far as it honestly can: engines compiled ahead of time or graphs
checked, accuracy by float simulation, no time measured. Nothing here loads an engine: that happens in child processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgecnn.backends import openvino, ort
from edgecnn.backends.cpu import read_cpu
from edgecnn.backends.gpu import Gpu, list_gpus
from edgecnn.backends.tensorrt import trt
from edgecnn.measure.bench import PairTimes
from edgecnn.process.versions import ENGINES, decided_by
from edgecnn.recipe.device import DeviceFacts, DeviceProfile, Scheme, resolve
from edgecnn.recipe.recipe import BenchSpec, ScoreSpec
from edgecnn.store.stage import Artifact
from edgecnn.targets import engine_io, jobs
from edgecnn.targets.engine_io import EngineCheck
from edgecnn.targets.hosts import HERE, Boards
from edgecnn.targets.offline import Offline
from edgecnn.targets.score import score_file


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
    match profile.backend:
        case "onnxruntime":
            if profile.architecture == cpu.architecture:
                facts = DeviceFacts(reachable=True, backend_version=ort.version(), hardware=cpu.name, vnni=cpu.vnni)
                return Local(profile, facts)
            return offline(profile, f"not run: this machine is {cpu.architecture}")
        case "openvino":
            if profile.architecture != cpu.architecture:
                return offline(profile, f"not run: this machine is {cpu.architecture}")
            if openvino.installed() is None:
                return offline(profile, "not run: OpenVINO is not installed")
            facts = DeviceFacts(reachable=True, backend_version=openvino.version(), hardware=cpu.name, vnni=cpu.vnni)
            return Local(profile, facts)
        case "tensorrt" | "tensorrt-rtx":
            version, gpus = trt.installed(profile.backend), list_gpus()
            for gpu in gpus:
                if version and profile.architecture == cpu.architecture and is_device(profile, gpu):
                    title = f"{trt.TITLES[profile.backend]} {version}"
                    return LocalGpu(
                        profile,
                        DeviceFacts(reachable=True, backend_version=title, hardware=gpu.name, driver=gpu.driver),
                        gpu,
                    )
            return offline(profile, _absence(profile, gpus))


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


# Part of an INT8 score's words, by whether the CPU has VNNI (None: not x86).
_VNNI = {True: ", VNNI", False: ", no VNNI: sums saturate at 16 bits, so the accuracy is this CPU's own", None: ""}


def weights_detail(scheme: Scheme, facts: DeviceFacts) -> str:
    """What stands beside an INT8 score of a CPU: its weights' bits, and whether its sums can saturate."""
    bits = 7 if scheme.weights == "int8-per-channel-7bit" else 8
    return f"{bits}-bit weights{_VNNI[facts.vnni]}"


@dataclass(frozen=True)
class Local:
    """This machine's CPU under onnxruntime or OpenVINO: the graph itself is the engine.

    The facts, which are in every key, hold the engine's version.
    """

    profile: DeviceProfile
    facts: DeviceFacts

    @property
    def scheme(self) -> Scheme:
        """See Target."""
        return resolve(self.profile.scheme, self.facts)

    @decided_by("onnxruntime", "onnxruntime-gpu", rooms=ENGINES)
    def compile(self, out: Path, profile: DeviceProfile, facts: DeviceFacts, model: Artifact) -> None:
        """See Target. The graph is loaded once, so that a graph the engine refuses is refused here."""
        graph, quantized = engine_io.take_graphs(out, profile, model.path)
        jobs.load(out, profile.backend, graph)
        done = EngineCheck(f"{facts.backend_version} loads the graph", True, "")
        title = facts.backend_version.split()[0]
        engine_io.write_engine(
            out, profile, quantized, built=True, runnable=True, checks=(done,), note=f"{title} runs the graph itself"
        )

    @decided_by("onnxruntime", "onnxruntime-gpu", "faster-coco-eval", rooms=("tasks", "data", *ENGINES))
    def score(self, out: Path, spec: ScoreSpec, facts: DeviceFacts, engine: Artifact, data: Artifact) -> None:
        """See Target. The real INT8 kernels of this CPU."""
        quantized = engine_io.read_engine(engine.path).quantized
        detail = weights_detail(self.scheme, facts) if quantized else ""
        score_file(out, spec, engine.path / "model.onnx", data.path, backend=self.profile.backend, detail=detail)

    @decided_by("onnxruntime", "onnxruntime-gpu", rooms=ENGINES)
    def time_pairs(self, out: Path, spec: BenchSpec, facts: DeviceFacts, base: Artifact, engine: Artifact) -> None:
        """See Target."""
        files = (base.path / "model.onnx", engine.path / "model.onnx")
        jobs.write_speed(out, jobs.time_in_child(out, self.profile.backend, files, spec, facts, "speed"), spec, facts)

    def time_files(self, first: Path, second: Path, spec: BenchSpec) -> PairTimes | None:
        """See Target."""
        return jobs.time_files(self.profile.backend, (first, second), spec, self.facts)


@dataclass(frozen=True)
class LocalGpu:
    """The GPU in this machine under TensorRT or TensorRT for RTX."""

    profile: DeviceProfile
    facts: DeviceFacts
    gpu: Gpu

    @property
    def scheme(self) -> Scheme:
        """See Target."""
        return resolve(self.profile.scheme, self.facts)

    def compile(self, out: Path, profile: DeviceProfile, facts: DeviceFacts, model: Artifact) -> None:
        """See Target."""
        graph, quantized = engine_io.take_graphs(out, profile, model.path)
        seconds = jobs.build(out, profile, graph)
        done = EngineCheck(facts.backend_version, True, "parsed and built")
        engine_io.write_engine(
            out, profile, quantized, built=True, runnable=True, checks=(done,), note=f"built for {facts.hardware}",
            engine=f"{profile.name}.engine", seconds=seconds,
        )  # fmt: skip

    @decided_by("faster-coco-eval", rooms=("tasks", "data", *ENGINES))
    def score(self, out: Path, spec: ScoreSpec, facts: DeviceFacts, engine: Artifact, data: Artifact) -> None:
        """See Target."""
        score_file(
            out, spec, engine.path / "model.onnx", data.path, backend=self.profile.backend,
            engine=engine.path / f"{self.profile.name}.engine",
        )  # fmt: skip

    def time_pairs(self, out: Path, spec: BenchSpec, facts: DeviceFacts, base: Artifact, engine: Artifact) -> None:
        """See Target."""
        name = f"{self.profile.name}.engine"
        files = (base.path / name, engine.path / name)
        jobs.write_speed(out, jobs.time_in_child(out, self.profile.backend, files, spec, facts, "speed"), spec, facts)

    def time_files(self, first: Path, second: Path, spec: BenchSpec) -> PairTimes | None:
        """See Target. ONNX files are built first."""
        return jobs.time_files(self.profile.backend, (first, second), spec, self.facts, self.profile)
