"""A device that isn't here: how far a build goes without it."""

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


@dataclass(frozen=True)
class Offline:
    """A device that isn't here."""

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
        match profile.backend:
            case "onnxruntime":
                jobs.load(out, "onnxruntime", graph)
                done = EngineCheck(f"{ort.version()} of this machine loads the graph", True, "")
                engine_io.write_engine(
                    out, profile, quantized, built=False, runnable=False, checks=(done,), note=self.why
                )
            case "openvino":
                self._load_only(out, graph, quantized)
            case "tensorrt-rtx":
                self._compile_ahead(out, graph, quantized)
            case "tensorrt":
                self._check_only(out, graph, quantized)

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

    def _load_only(self, out: Path, graph: Path, quantized: bool) -> None:
        if openvino.installed():
            jobs.load(out, "openvino", graph)
            check = EngineCheck(f"{openvino.version()} of this machine loads the graph", True, "")
        else:
            check = EngineCheck("OpenVINO loads the graph", None, f"not done: {openvino.INSTALL}")
        engine_io.write_engine(
            out, self.profile, quantized, built=False, runnable=False, checks=(check,), note=self.why
        )

    def _compile_ahead(self, out: Path, graph: Path, quantized: bool) -> None:
        version = trt.installed("tensorrt-rtx")
        if not version:
            note = "engine: not built (TensorRT for RTX is not installed)"
            undone = EngineCheck("TensorRT for RTX parser", None, f"not done: {trt.INSTALL['tensorrt-rtx']}")
            engine_io.write_engine(
                out, self.profile, quantized, built=False, runnable=False, checks=(undone,), note=note
            )
            return
        seconds = jobs.build(out, self.profile, graph)
        short = _short(version)
        capability = f"compute capability {self.profile.compute_capability}"
        checks = (
            EngineCheck(f"TensorRT for RTX {short} parser", True, "accepted"),
            EngineCheck(f"TensorRT for RTX {short} compiler", True, f"{capability}; compiled, not run"),
        )
        engine_io.write_engine(
            out, self.profile, quantized, built=True, runnable=False, checks=checks,
            note=f"compiled for {capability}, {self.why}", engine=f"{self.profile.name}.engine", seconds=seconds,
        )  # fmt: skip

    def _check_only(self, out: Path, graph: Path, quantized: bool) -> None:
        checks = []
        if self.profile.tensorrt_rules:
            from edgecnn.backends.tensorrt import rules as trt_rules

            passed = trt_rules.refuse(graph)
            checks.append(EngineCheck(f"TensorRT {self.profile.tensorrt_rules} rules", True, passed))
        unseen = ""
        if version := trt.installed("tensorrt-rtx"):
            front = _without_plugin(graph, out)
            jobs.parse(out, "tensorrt-rtx", front or graph)
            checks.insert(0, EngineCheck(f"TensorRT for RTX {_short(version)} parser", True, "accepted"))
            unseen = "; the parser here has no plugins and saw the graph in front of EfficientNMS_TRT" if front else ""
        else:
            checks.insert(0, EngineCheck("TensorRT for RTX parser", None, f"not done: {trt.INSTALL['tensorrt-rtx']}"))
        engine_io.write_engine(
            out, self.profile, quantized, built=False, runnable=False, checks=tuple(checks),
            note=f"engine: not built (no board){unseen}",
        )  # fmt: skip


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


def _short(version: str) -> str:
    return ".".join(version.split(".")[:2])
