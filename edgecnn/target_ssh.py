"""Boards over SSH as a Target: engines are built, images scored and pairs timed there; what it means is computed here.

The stages leave what those of a local device leave. A score is cut into pieces: each is fetched and kept as it is
done, in the stage's `resume/` folder, so that a rerun after a lost link goes on, and a fleet shares the work.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgecnn import progress
from edgecnn.agent.files import digest_of
from edgecnn.backends import engine_io, jobs, trt
from edgecnn.backends.engine_io import EngineCheck
from edgecnn.backends.gpu import Gpu
from edgecnn.bench import PairTimes, percentiles
from edgecnn.device import DeviceFacts, DeviceProfile, Scheme, resolve
from edgecnn.errors import EdgeError
from edgecnn.fleet import Board, Done, Fleet, Json
from edgecnn.hosts import Boards
from edgecnn.io_contract import IoContract, read_contract
from edgecnn.recipe import BenchSpec, ScoreSpec
from edgecnn.store import Artifact
from edgecnn.target import is_device, weights_detail

if TYPE_CHECKING:
    from edgecnn.agent.pack import Agent

PIECES = 8  # of a score, for each board: what a lost link costs at most is one
PIECE_IMAGES = 256  # but not fewer than so many images: every piece loads the engine


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
                "a fleet is of boards with the same hardware, software and power mode; build for each alone",
            )
    return SshTarget(profile, first.result, fleet)


def open_fleet(boards: Boards, agent: Agent | None = None) -> Fleet:
    """The boards, to be connected to when there is work.

    Raises:
        EdgeError: an unknown link limit.
    """
    from edgecnn.agent.pack import pack_agent
    from edgecnn.board import jobs as link
    from edgecnn.board.limits import LinkLimits

    limits = LinkLimits.read()
    known = set(vars(limits))
    for name, _ in boards.limits:
        if name not in known:
            raise EdgeError(f"no link limit `{name}`", f"valid: {', '.join(sorted(known))}")
    limits, packed = replace(limits, **dict(boards.limits)), agent or pack_agent()
    return Fleet(boards.hosts, lambda host: link.Board.connect(host, limits=limits, agent=packed))


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
        EdgeError: it is another device than the profile's, or lacks the engine.
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
class _Piece:
    """Scored images start..stop: the shards that hold them, the number of the first shard's first image."""

    start: int
    stop: int
    first: int
    shards: tuple[Path, ...]


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

    def score(self, out: Path, spec: ScoreSpec, facts: DeviceFacts, engine: Artifact, data: Artifact) -> None:
        """See Target. The images and the engine travel once; the answers come back, and are judged here."""
        from edgecnn.data import images
        from edgecnn.recorded import Recorded
        from edgecnn.score import score_here

        start = time.monotonic()
        graph = engine.path / "model.onnx"
        contract = read_contract(graph)
        if contract is None:
            raise EdgeError(f"`{graph}` has no `edgecnn.io` metadata", "export it with edgecnn")
        made = engine_io.read_engine(engine.path)
        model = engine.path / (made.engine or "model.onnx")
        count = len(images(data.path, "scored"))
        size = engine_io.fixed_batch(graph) or spec.batch
        pieces = list(cut(data.path, count, size, len(self.fleet.hosts)))
        job = {
            "do": "score", "backend": self.profile.backend, "io": contract.model_dump(mode="json"),
            "batch": spec.batch, "keep": _keep(contract, spec),
        }  # fmt: skip
        digests = {path: digest_of(path) for path in {model, *(shard for piece in pieces for shard in piece.shards)}}
        folder = out / "resume"
        folder.mkdir(exist_ok=True)
        missing = [piece for piece in pieces if _kept(folder, piece) is None]

        def do(board: Board, piece: _Piece) -> None:
            _score(board, piece, {**job, "model": digests[model]}, model, digests, folder)

        self.fleet.spread(missing, do)
        done = [found for piece in pieces if (found := _kept(folder, piece))]
        files = [folder / name for one in done for name in one["files"]]
        how = ", ".join(dict.fromkeys(one["how"] for one in done))
        by_board = _count_by_board(done)
        recorded = Recorded(files, count, f"{how}, on {_boards_text(by_board)}")
        detail = weights_detail(self.scheme, facts) if made.quantized and made.engine is None else ""
        score_here(recorded, graph, data.path, spec, out, simulate=False, detail=detail, images=recorded)
        content = json.loads((out / "score.json").read_text())
        content |= {"seconds": round(time.monotonic() - start, 3), "boards": by_board}
        (out / "score.json").write_text(json.dumps(content, indent=1))

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


def cut(data: Path, count: int, size: int, boards: int) -> Iterator[_Piece]:
    """Pieces of the scored split that begin and end where a run over all of it changes batches.

    Args:
        count: of the images. size: of a batch.
    """
    batches = -(-count // size)
    least = max(1, PIECE_IMAGES // size)
    each = max(least, -(-batches // (PIECES * boards))) * size
    shards = []
    first = 0
    for path in sorted(data.glob("scored-*.npy")):
        here = len(np.load(path, mmap_mode="r", allow_pickle=False))
        shards.append((first, first + here, path))
        first += here
    for start in range(0, count, each):
        stop = min(start + each, count)
        inside = [one for one in shards if one[0] < stop and one[1] > start]
        yield _Piece(start, stop, inside[0][0], tuple(path for *_, path in inside))


def _keep(contract: IoContract, spec: ScoreSpec) -> Json:
    """What of the answers must travel: of a detector's anchors only those that the metric looks at."""
    if {output.meaning for output in contract.outputs} == {"boxes", "scores"}:
        return {"task": "detect", "confidence": spec.confidence}
    return {"task": "classify"}


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
        board.fetch(answer["engine"], answer["size"], engine)
    return answer


def _score(
    board: Board, piece: _Piece, job: Json, model: Path, digests: Mapping[Path, str], folder: Path
) -> None:  # fmt: skip
    """One piece: its answers into `folder`, and last the note that they are whole."""
    part = folder / f"{piece.start:08d}"
    part.mkdir(exist_ok=True)
    answer = board.run(
        {
            **job, "shards": [digests[shard] for shard in piece.shards], "first": piece.first,
            "rows": [piece.start, piece.stop],
        },
        {digests[path]: path for path in (model, *piece.shards)}, out=part, step="score",
    )  # fmt: skip
    names = [f"{part.name}/{file['name']}" for file in answer["files"]]
    note = {"files": names, "how": answer["how"], "board": board.host, "images": piece.stop - piece.start}
    _note(folder, piece).write_text(json.dumps(note))


def _note(folder: Path, piece: _Piece) -> Path:
    return folder / f"{piece.start:08d}-{piece.stop:08d}.json"


def _kept(folder: Path, piece: _Piece) -> Json | None:
    """The note of a piece that is whole."""
    try:
        note: Json = json.loads(_note(folder, piece).read_text())
    except (OSError, ValueError):
        return None
    return note if all((folder / name).is_file() for name in note["files"]) else None


def _count_by_board(done: list[Json]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in done:
        counts[one["board"]] = counts.get(one["board"], 0) + one["images"]
    return counts


def _boards_text(images: Mapping[str, int]) -> str:
    """`orin`, or of several `orin-a (300 images) and orin-b (300 images)`."""
    if len(images) == 1:
        return next(iter(images))
    return " and ".join(f"{host} ({count:,} images)" for host, count in sorted(images.items()))


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
    with np.load(folder / "pairs.npz", allow_pickle=False) as file:
        pairs = {name: file[name] for name in file.files}
    shutil.rmtree(folder)
    # The verdict is of the engine alone; the same with its transfers, and from images to outputs, stand beside it.
    sides = {
        f"{kind}_ms": {one: percentiles(pairs[f"{one}_{kind}_ms"]) for one in ("first", "second")}
        for kind in ("io", "e2e")
        if f"first_{kind}_ms" in pairs
    }
    if answer.get("restored") is False:
        mended = "the next job there restores them"
        progress.current().note(f"{board.host}: its power mode or clocks are not restored yet: {mended}")
    return PairTimes(pairs["first_ms"], pairs["second_ms"], {**answer["conditions"], **sides})


def _summary(times: PairTimes) -> Json:
    """A board's own figures, for speed.json."""
    kept = ("pairs", "power_mode", "clocks_locked", "temperature_c", "throttled", "valid", "invalid_why")
    own = {key: times.conditions[key] for key in kept if key in times.conditions}
    return {"float": percentiles(times.first_ms), "int8": percentiles(times.second_ms), **own}
