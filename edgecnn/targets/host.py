"""What stands behind a profile on this machine: its CPU or GPU, or a device that isn't here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgecnn.backends import openvino, ort
from edgecnn.backends.tensorrt import trt
from edgecnn.measure.bench import PairTimes
from edgecnn.process.versions import ENGINES, decided_by
from edgecnn.recipe.device import DeviceFacts, DeviceProfile, Scheme, resolve
from edgecnn.recipe.recipe import BenchSpec, ScoreSpec
from edgecnn.store.stage import Artifact
from edgecnn.targets import engine_io, jobs
from edgecnn.targets.engine_io import EngineCheck
from edgecnn.targets.score import score_file

# Part of an INT8 score's words, by whether the CPU has VNNI (None: not x86).
_VNNI = {True: ", VNNI", False: ", no VNNI: sums saturate at 16 bits, so the accuracy is this CPU's own", None: ""}


def weights_detail(scheme: Scheme, facts: DeviceFacts) -> str:
    """What stands beside an INT8 score of a CPU: its weights' bits, and whether its sums can saturate."""
    bits = 7 if scheme.weights == "int8-per-channel-7bit" else 8
    return f"{bits}-bit weights{_VNNI[facts.vnni]}"


@dataclass(frozen=True)
class Local:
    """This machine: its CPU under onnxruntime or OpenVINO, which run the graph itself, or its GPU under TensorRT.

    The facts, which are in every key, hold the engine's version.
    """

    profile: DeviceProfile
    facts: DeviceFacts

    @property
    def scheme(self) -> Scheme:
        """See Target."""
        return resolve(self.profile.scheme, self.facts)

    def _engine(self) -> str | None:
        """The file that is built, None where the graph is what runs."""
        return f"{self.profile.name}.engine" if self.profile.backend in trt.TITLES else None

    def _runs(self, stage: Artifact) -> Path:
        return stage.path / (self._engine() or "model.onnx")

    @decided_by("onnxruntime", "onnxruntime-gpu", rooms=ENGINES)
    def compile(self, out: Path, profile: DeviceProfile, facts: DeviceFacts, model: Artifact) -> None:
        """See Target. A graph that isn't built is loaded once, so that one the backend refuses is refused here."""
        graph, quantized = engine_io.take_graphs(out, profile, model.path)
        version, seconds = facts.backend_version, 0.0
        if engine := self._engine():
            seconds = jobs.build(out, profile, graph)
            check, note = EngineCheck(version, True, "parsed and built"), f"built for {facts.hardware}"
        else:
            jobs.load(out, profile.backend, graph)
            check, note = (
                EngineCheck(f"{version} loads the graph", True, ""),
                f"{version.split()[0]} runs the graph itself",
            )
        engine_io.write_engine(
            out, profile, quantized, built=True, runnable=True, checks=(check,), note=note, engine=engine,
            seconds=seconds,
        )  # fmt: skip

    @decided_by("onnxruntime", "onnxruntime-gpu", "faster-coco-eval", rooms=("tasks", "data", *ENGINES))
    def score(self, out: Path, spec: ScoreSpec, facts: DeviceFacts, engine: Artifact, data: Artifact) -> None:
        """See Target. The real INT8 kernels of this CPU, or the engine."""
        detail = ""
        if self._engine() is None and engine_io.read_engine(engine.path).quantized:
            detail = weights_detail(self.scheme, facts)
        score_file(
            out, spec, engine.path / "model.onnx", data.path, backend=self.profile.backend, detail=detail,
            engine=self._runs(engine),
        )  # fmt: skip

    @decided_by("onnxruntime", "onnxruntime-gpu", rooms=ENGINES)
    def time_pairs(self, out: Path, spec: BenchSpec, facts: DeviceFacts, base: Artifact, engine: Artifact) -> None:
        """See Target."""
        files = (self._runs(base), self._runs(engine))
        jobs.write_speed(out, jobs.time_in_child(out, self.profile.backend, files, spec, facts, "speed"), spec, facts)

    def time_files(self, first: Path, second: Path, spec: BenchSpec) -> PairTimes | None:
        """See Target. For a GPU, ONNX files are built first."""
        profile = self.profile if self._engine() else None
        return jobs.time_files(self.profile.backend, (first, second), spec, self.facts, profile)


@dataclass(frozen=True)
class Offline:
    """A device that isn't here: how far a build goes without it. `why`: in words, as `not run: no board`."""

    profile: DeviceProfile
    why: str

    @property
    def facts(self) -> DeviceFacts:
        """What can be told without the device: which programs here stand for it."""
        rtx, version = trt.installed("tensorrt-rtx"), ""
        parser = f"TensorRT for RTX {rtx}" if rtx else "TensorRT for RTX not installed"
        match self.profile.backend:
            case "onnxruntime":
                version = f"{ort.version()} (float simulation only)"
            case "openvino":
                version = f"{openvino.version()} (float simulation by {ort.version()} only)"
            case "tensorrt-rtx":
                version = f"{parser} (parser and compiler only)" if rtx else parser
            case "tensorrt":
                rules = f" + TensorRT {self.profile.tensorrt_rules} rules" if self.profile.tensorrt_rules else ""
                version = f"{parser} (parser only){rules}"
        return DeviceFacts(reachable=False, backend_version=version, hardware=f"{self.profile.name} ({self.why})")

    @property
    def scheme(self) -> Scheme:
        """See Target."""
        return resolve(self.profile.scheme, self.facts)

    @decided_by("onnx", "onnxruntime", "onnxruntime-gpu", "openvino", rooms=ENGINES)
    def compile(self, out: Path, profile: DeviceProfile, facts: DeviceFacts, model: Artifact) -> None:
        """See Target."""
        graph, quantized = engine_io.take_graphs(out, profile, model.path)
        seconds = None
        match profile.backend:
            case "onnxruntime" | "openvino":
                checks, note = [self._load(out, graph)], self.why
            case "tensorrt-rtx" if trt.installed("tensorrt-rtx"):
                seconds = jobs.build(out, profile, graph)
                capability = f"compute capability {profile.compute_capability}"
                compiled = EngineCheck(
                    f"{_parser().removesuffix('parser')}compiler", True, f"{capability}; compiled, not run"
                )
                checks = [EngineCheck(_parser(), True, "accepted"), compiled]
                note = f"compiled for {capability}, {self.why}"
            case "tensorrt-rtx":
                checks, note = [_no_parser()], "engine: not built (TensorRT for RTX is not installed)"
            case _:
                checks, note = self._check(out, graph)
        engine_io.write_engine(
            out, profile, quantized, built=seconds is not None, runnable=False, checks=tuple(checks), note=note,
            engine=None if seconds is None else f"{profile.name}.engine", seconds=seconds or 0.0,
        )  # fmt: skip

    @decided_by("onnxruntime", "onnxruntime-gpu", "faster-coco-eval", rooms=("tasks", "data", *ENGINES))
    def score(self, out: Path, spec: ScoreSpec, facts: DeviceFacts, engine: Artifact, data: Artifact) -> None:
        """See Target. The graph evaluated in float, which stands for the device and is marked `simulated`."""
        model = engine.path / "model.onnx"
        score_file(out, spec, _without_plugin(model, out) or model, data.path, backend=None, simulate=True)

    def time_pairs(self, out: Path, spec: BenchSpec, facts: DeviceFacts, base: Artifact, engine: Artifact) -> None:
        """See Target. Measures nothing and says so."""
        jobs.write_speed(out, None, spec, facts, self.why.removeprefix("not run: "))

    def time_files(self, first: Path, second: Path, spec: BenchSpec) -> PairTimes | None:
        """See Target."""
        return None

    def _load(self, out: Path, graph: Path) -> EngineCheck:
        backend = self.profile.backend
        if backend == "openvino" and not openvino.installed():
            return EngineCheck("OpenVINO loads the graph", None, f"not done: {openvino.INSTALL}")
        jobs.load(out, backend, graph)
        version = openvino.version() if backend == "openvino" else ort.version()
        return EngineCheck(f"{version} of this machine loads the graph", True, "")

    def _check(self, out: Path, graph: Path) -> tuple[list[EngineCheck], str]:
        """What can be told of a graph for TensorRT without one: the parser of TensorRT for RTX, and the rules."""
        checks, unseen = [_no_parser()], ""
        rules = self.profile.tensorrt_rules
        if rules:
            from edgecnn.backends.tensorrt import rules as trt_rules

            checks.append(EngineCheck(f"TensorRT {rules} rules", True, trt_rules.refuse(graph)))
        if trt.installed("tensorrt-rtx"):
            front = _without_plugin(graph, out)
            jobs.parse(out, "tensorrt-rtx", front or graph)
            checks[0] = EngineCheck(_parser(), True, "accepted")
            unseen = "; the parser here has no plugins and saw the graph in front of EfficientNMS_TRT" if front else ""
        return checks, f"engine: not built (no board){unseen}"


def _parser() -> str:
    """`TensorRT for RTX 1.2 parser`."""
    return f"TensorRT for RTX {'.'.join((trt.installed('tensorrt-rtx') or '').split('.')[:2])} parser"


def _no_parser() -> EngineCheck:
    return EngineCheck("TensorRT for RTX parser", None, f"not done: {trt.INSTALL['tensorrt-rtx']}")


def _without_plugin(graph: Path, out: Path) -> Path | None:
    """The graph in front of its suppression plugin, in a scratch folder of the stage; None where it has none."""
    from edgecnn.quantize.write.suppression import bare

    content = bare(graph)
    if content is None:
        return None
    scratch = out / "resume"  # removed by the store
    scratch.mkdir(exist_ok=True)
    (scratch / graph.name).write_bytes(content)
    return scratch / graph.name
