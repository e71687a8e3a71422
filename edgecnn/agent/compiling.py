"""Build an engine on the board, once: kept under everything that decides it, with the tactics TensorRT timed."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from edgecnn.agent import files
from edgecnn.agent.describe import first_gpu
from edgecnn.agent.power import read_mode
from edgecnn.agent.protocol import Cache, Json, Refusal
from edgecnn.backends import gpu, load_backend
from edgecnn.backends.cpu import cores
from edgecnn.backends.tensorrt import trt
from edgecnn.process import progress
from edgecnn.process.disk import write_json

FLAGS = {"strongly_typed": True, "max_batch": trt.MAX_BATCH}


def compile_graph(cache: Cache, folder: Path, job: Json) -> Json:
    """Make the engine of a graph, or load the graph once where the backend runs it itself.

    Args:
        job: `backend`; `graph`, its digest; `name`, what errors call it;
            `compute_capability`, for TensorRT for RTX, which alone builds for a GPU that it is told.

    Returns:
        `engine`: digest among the kept files, None where the graph is what runs; `size` in bytes; `seconds` that the
        build took when it was made; `cached`: it was there; `version` of the backend.

    Raises:
        EdgeError: the backend isn't here or refuses the graph; its own words are told.
    """
    graph, name = files.checked(cache, job["graph"]), job["backend"]
    start = time.monotonic()
    if name not in trt.TITLES:
        backend = load_backend(name)
        backend.load(graph, threads=cores())
        return {
            "engine": None, "size": graph.stat().st_size, "seconds": time.monotonic() - start, "cached": False,
            "version": backend.version(),
        }  # fmt: skip
    engines = trt.TensorRT(name)
    deciding = _deciding(engines.version(), job)
    note = cache.engines / f"{hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()}.json"
    if (kept := _kept(cache, note)) is not None:
        return {**kept, "cached": True}
    progress.current().note(f"{engines.version()} builds {job.get('name', 'the engine')}")
    fresh = folder / "engine.partial"
    device = f"{deciding['compute_capability']}-{deciding['driver']}-{engines.version()}"
    timings = cache.timing / f"{hashlib.sha256(device.encode()).hexdigest()[:16]}.cache"
    built = engines.build(graph, fresh, compute_capability=_target(job), timing_cache=timings)
    digest, size = files.take_in(cache, fresh)
    made = {"engine": digest, "size": size, "seconds": float(built["seconds"]), "version": engines.version()}
    write_json(note, {**made, "of": deciding})
    return {**made, "cached": False}


def _target(job: Json) -> str | None:
    """The compute capability to build for; None: the GPU here."""
    return job.get("compute_capability") if job["backend"] == "tensorrt-rtx" else None


def _deciding(version: str, job: Json) -> Json:
    """All that an engine depends on; the weights are in the graph, whose hash is here."""
    one, mode = first_gpu() or gpu.Gpu("", ""), read_mode()
    return {
        "graph": job["graph"], "version": version, "gpu": one.name,
        "compute_capability": _target(job) or one.compute_capability,
        "driver": one.driver, "power_mode": mode.name if mode else "", "flags": FLAGS,
    }  # fmt: skip


def _kept(cache: Cache, note: Path) -> Json | None:
    try:
        made = json.loads(note.read_text())
        files.checked(cache, made["engine"])
        return {part: made[part] for part in ("engine", "size", "seconds", "version")}
    except (OSError, ValueError, KeyError, Refusal):
        note.unlink(missing_ok=True)
        return None  # dropped to save space, or damaged: built again
