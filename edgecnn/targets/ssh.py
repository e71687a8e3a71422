"""Boards over SSH as a Target: engines are built, images scored and pairs timed there; what it means is computed here.

The stages leave what those of a local device leave.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgecnn.agent.answers import read_arrays
from edgecnn.agent.files import digest_of
from edgecnn.backends.gpu import Gpu
from edgecnn.backends.tensorrt import rtx_gpus, trt
from edgecnn.measure.bench import PairTimes, percentiles
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError
from edgecnn.process.versions import ENGINES, decided_by
from edgecnn.recipe.device import DeviceFacts, DeviceProfile, Scheme, resolve
from edgecnn.recipe.io_contract import IoContract, read_contract
from edgecnn.recipe.recipe import BenchSpec, ScoreSpec
from edgecnn.store.stage import Artifact
from edgecnn.targets import engine_io, jobs
from edgecnn.targets.engine_io import EngineCheck
from edgecnn.targets.fleet import Board, Done, Fleet, Json
from edgecnn.targets.host import weights_detail
from edgecnn.targets.hosts import Boards
from edgecnn.targets.score_ssh import score_on
from edgecnn.targets.target import is_device

if TYPE_CHECKING:
    from edgecnn.agent.pack import Agent


def connect_boards(profile: DeviceProfile, boards: Boards, agent: Agent | None = None) -> SshTarget:
    """Ask the boards what they are.

    Args:
        agent: what runs there; default the one of this edgecnn.

    Raises:
        EdgeError: none answers, or one is not the profile's device, or they are not alike.
    """
    fleet = open_fleet(boards, agent)
    answered = fleet.each(lambda board: dict(board.facts))
    found = [Done(one.host, facts_of(profile, boards, one)) for one in answered]
    first = found[0]
    for other in found[1:]:
        if other.result != first.result:
            raise EdgeError(
                f"`{other.host}` and `{first.host}` are not alike: {_difference(first.result, other.result)}",
                "the boards of a fleet need the same hardware, software and power mode; build for each of them alone",
            )
    # A board that was dead until now was never looked at: what wakes later stays out of this build.
    return SshTarget(profile, first.result, replace(fleet, hosts=tuple(one.host for one in answered)))


def open_fleet(boards: Boards, agent: Agent | None = None) -> Fleet:
    """The boards, to be connected to when there is work."""
    from edgecnn.agent.pack import pack_agent
    from edgecnn.board import jobs as link

    packed = agent or pack_agent()
    return Fleet(boards.hosts, lambda host: link.Board.connect(host, limits=boards.limits, agent=packed))


def gpu_of(answer: Mapping[str, Any]) -> Gpu | None:
    """A board's GPU, by the board's name where it has one: a Jetson's GPU has no name that a shop would know."""
    gpu = answer["gpu"]
    if gpu is None:
        return None
    name = answer["board"] or gpu["name"]
    return Gpu(name, gpu["compute_capability"], gpu.get("memory_mb"), gpu["driver"])


def facts_of(profile: DeviceProfile, boards: Boards, described: Done[Json]) -> DeviceFacts:
    """A board's answer as the facts that enter every key.

    Raises:
        EdgeError: it is another device than the profile's, or lacks the engine, or the engine doesn't know its GPU.
    """
    host, answer = described.host, described.result
    probe = f"`edgecnn devices probe {host}` shows what it is, and with --write makes a device file of it"
    if answer["machine"] != profile.architecture:
        raise EdgeError(f"`{host}` is {answer['machine']}, `{profile.name}` is {profile.architecture}", probe)
    gpu = gpu_of(answer)
    needs_gpu = profile.backend in ("tensorrt", "tensorrt-rtx")
    if needs_gpu and (gpu is None or not is_device(profile, gpu)):
        what = f"{gpu.name} (compute capability {gpu.compute_capability})" if gpu else "a machine without NVIDIA GPU"
        raise EdgeError(f"`{host}` is not `{profile.name}` but {what}", probe)
    version = answer["backends"].get(profile.backend)
    if version is None:
        raise EdgeError(f"`{host}` has no {profile.backend} for its python3 ({answer['python']})", _install(profile))
    rtx_gpus.refuse(profile.backend, profile.capabilities, version)
    common = {
        "reachable": True, "backend_version": version, "power_mode": answer["power_mode"],
        "board": ", ".join(boards.hosts),
    }  # fmt: skip
    if needs_gpu and gpu:
        l4t = f"L4T {answer['l4t']}" if answer["l4t"] else ""
        return DeviceFacts(**common, hardware=gpu.name, driver=gpu.driver or l4t)
    return DeviceFacts(**common, hardware=answer["cpu"], vnni=answer["vnni"])


def _install(profile: DeviceProfile) -> str:
    if profile.backend == "tensorrt" and profile.architecture == "aarch64":
        return "on the board: sudo apt install python3-libnvinfer (JetPack's own TensorRT)"
    package = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx-cu13"}.get(profile.backend, profile.backend)
    return f"on the board: pip install --user {package}"


def _difference(one: DeviceFacts, other: DeviceFacts) -> str:
    pairs = zip(one.leaves(), other.leaves(), strict=True)
    return "; ".join(
        f"{a[0].removeprefix('facts.').replace('_', ' ')} {b[1] or 'none'} and {a[1] or 'none'}"
        for a, b in pairs
        if a[1] != b[1]
    )


@dataclass(frozen=True)
class SshTarget:
    """Boards of one device behind SSH."""

    profile: DeviceProfile
    facts: DeviceFacts
    fleet: Fleet

    @property
    def scheme(self) -> Scheme:
        """See Target."""
        return resolve(self.profile.scheme, self.facts)

    def compile(self, out: Path, profile: DeviceProfile, facts: DeviceFacts, model: Artifact) -> None:
        """See Target. Built on the first board that can; a fleet's others are given the same engine."""
        graph, quantized = engine_io.take_graphs(out, profile, model.path)
        engine = out / f"{profile.name}.engine"
        done = self.fleet.first(lambda board: _compile(board, profile, graph, engine))
        answer = done.result
        if answer["engine"] is None:
            title = facts.backend_version.split()[0]
            check = EngineCheck(f"{facts.backend_version} on {done.host} loads the graph", True, "")
            note, name = f"{title} runs the graph itself, on {done.host}", None
        else:
            check = EngineCheck(facts.backend_version, True, f"parsed and built on {done.host}")
            note, name = f"built on {done.host} ({facts.hardware})", engine.name
        engine_io.write_engine(
            out, profile, quantized, built=True, runnable=True, checks=(check,), note=note, engine=name,
            seconds=answer["seconds"],
        )  # fmt: skip

    @decided_by("faster-coco-eval", rooms=("tasks", "data", *ENGINES))
    def score(self, out: Path, spec: ScoreSpec, facts: DeviceFacts, engine: Artifact, data: Artifact) -> None:
        """See Target. The images and the engine travel once; the answers come back, and are judged here."""
        made = engine_io.read_engine(engine.path)
        graph, model = engine.path / "model.onnx", engine.path / (made.engine or "model.onnx")
        detail = weights_detail(self.scheme, facts) if made.quantized and made.engine is None else ""
        score_on(self.fleet, out, spec, graph, model, data.path, backend=self.profile.backend, detail=detail)

    def time_pairs(self, out: Path, spec: BenchSpec, facts: DeviceFacts, base: Artifact, engine: Artifact) -> None:
        """See Target. Every living board is timed; the slowest one's pairs are the figure, all are in speed.json."""
        files = [stage.path / (engine_io.read_engine(stage.path).engine or "model.onnx") for stage in (base, engine)]
        contract = read_contract(engine.path / "model.onnx")
        times = self._time(out, files[0], files[1], spec, "speed", contract)
        jobs.write_speed(out, times, spec, facts)

    def time_files(self, first: Path, second: Path, spec: BenchSpec) -> PairTimes | None:
        """See Target. ONNX files are built there first."""
        for file in (first, second):
            if not file.is_file():
                raise EdgeError(f"no file `{file}` to time")
        with tempfile.TemporaryDirectory(prefix="edgecnn-") as folder:
            return self._time(Path(folder), first, second, spec, "regression")

    def _time(
        self, out: Path, first: Path, second: Path, spec: BenchSpec, until: Literal["speed", "regression"],
        contract: IoContract | None = None,
    ) -> PairTimes:  # fmt: skip
        asked = {"profile", "power_mode", "lock_clocks"}
        job = {
            "do": "time", "backend": self.profile.backend, "until": until,
            "spec": spec.raised().model_dump(mode="json", exclude=asked), "profile": spec.profile,
            "power_mode": spec.power_mode, "lock_clocks": spec.lock_clocks,
            "io": contract.model_dump(mode="json") if contract else None,
        }  # fmt: skip
        done = self.fleet.each(lambda board: _time(board, self.profile, job, (first, second), out))
        slowest = max(done, key=lambda one: float(np.median(one.result.second_ms)))
        each = {one.host: _summary(one.result) for one in done}
        here = {"hardware": self.facts.hardware, "board": slowest.host, "boards": each}
        return replace(slowest.result, conditions={**slowest.result.conditions, **here})


def _compile(board: Board, profile: DeviceProfile, graph: Path, engine: Path | None = None) -> Json:
    digest = digest_of(graph)
    # Only TensorRT for RTX is told for which GPU, the other builds for the one it is on.
    capability = profile.compute_capability if profile.backend == "tensorrt-rtx" else None
    job = {
        "do": "compile", "backend": profile.backend, "graph": digest, "name": graph.name,
        "compute_capability": capability,
    }  # fmt: skip
    answer: Json = board.run(job, {digest: graph}, step=f"compile {graph.name}")
    if answer["engine"] is not None and engine is not None:
        fetched = engine.parent / "resume" / engine.name  # half of it is there for the next try of a stage that fails
        board.fetch(answer["engine"], answer["size"], fetched)
        fetched.replace(engine)
    return answer


def _time(board: Board, profile: DeviceProfile, job: Json, files: tuple[Path, Path], out: Path) -> PairTimes:
    ready, inputs = [], {}
    for file in files:
        digest = digest_of(file)
        if profile.backend in trt.TITLES and file.suffix == ".onnx":
            digest = _compile(board, profile, file)["engine"]  # it stays there
        else:
            inputs[digest] = file
        ready.append(digest)
    folder = out / f"pairs-{hashlib.sha256(board.host.encode()).hexdigest()[:12]}"
    folder.mkdir(exist_ok=True)
    answer = board.run({**job, "first": ready[0], "second": ready[1]}, inputs, out=folder, step="time")
    pairs = _read_pairs(folder / "pairs.npz", answer["conditions"]["pairs"], board.host)
    shutil.rmtree(folder)
    # The verdict is of the engine alone; the same with its transfers, and from images to outputs, stand beside it.
    sides = {
        f"{kind}_ms": {one: percentiles(pairs[f"{one}_{kind}_ms"]) for one in ("first", "second")}
        for kind in ("io", "e2e")
        if f"first_{kind}_ms" in pairs
    }
    if answer.get("restored") is False:
        progress.current().note(
            f"{board.host}: its power mode or clocks are not restored yet: the next job there restores them"
        )
    return PairTimes(pairs["first_ms"], pairs["second_ms"], {**answer["conditions"], **sides})


def _read_pairs(path: Path, count: int, host: str) -> dict[str, Any]:
    """Milliseconds of each pair: `first_ms` and `second_ms`, float64 (count,), and those of the other ways to time.

    Raises:
        EdgeError: they aren't there, not as many as the board said, or no times.
    """
    try:
        pairs = read_arrays(path)
        if not pairs.keys() >= {"first_ms", "second_ms"} or len(pairs["first_ms"]) != count:
            raise ValueError(f"it holds {', '.join(map(repr, pairs))[:200]}, not {count} pairs")
        for name, values in pairs.items():
            other = name.replace("second", "first")
            if values.dtype != np.float64 or values.ndim != 1 or not len(values) or len(values) != len(pairs[other]):
                raise ValueError(f"`{name}` is {values.dtype} {values.shape}")
            if not np.all(np.isfinite(values)) or np.any(values <= 0):
                raise ValueError(f"`{name}` has times that are not above 0 ms")
    except (ValueError, KeyError, TypeError) as error:
        raise EdgeError(f"`{host}` returned timings that cannot be read: {error}", "run it again") from error
    return pairs


def _summary(times: PairTimes) -> Json:
    """A board's own figures, for speed.json."""
    kept = ("pairs", "power_mode", "clocks_locked", "temperature_c", "throttled", "valid", "invalid_why")
    own = {key: times.conditions[key] for key in kept if key in times.conditions}
    return {"float": percentiles(times.first_ms), "int8": percentiles(times.second_ms), **own}
