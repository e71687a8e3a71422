"""The child process of all engine work: load, parse, build, score, time. A native crash here is an error there.

Jobs are JSON: `do` and its parameters, paths as text. See `edgecnn.process.child` for the protocol.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgecnn.backends import Runner, load_backend
from edgecnn.process.child import Json, serve
from edgecnn.process.errors import EdgeError
from edgecnn.process.start import command_of


def work(job: Json) -> Json:
    """Do one job and return its result."""
    match job["do"]:
        case "load":
            return {"inputs": len(load_backend(job["backend"]).load(Path(job["model"])).inputs)}
        case "parse":
            parsed: Json = _tensorrt(job).parse(Path(job["model"]))
            return parsed
        case "build":
            built: Json = _tensorrt(job).build(
                Path(job["model"]), Path(job["engine"]), compute_capability=job["compute_capability"]
            )
            return built
        case "score":
            return _score(job)
        case "time":
            return _time(job)
        case other:
            raise EdgeError(f"the engine process has no job `{other}`")


def _tensorrt(job: Json) -> Any:
    from edgecnn.backends.tensorrt.trt import TensorRT

    return TensorRT(job["backend"])


def _score(job: Json) -> Json:
    from edgecnn.recipe.recipe import ScoreSpec
    from edgecnn.tasks.score import score_here

    runner = _runner(job["backend"], Path(job["engine"]), simulate=job["simulate"])
    score_here(
        runner, Path(job["model"]), Path(job["data"]), ScoreSpec.model_validate(job["spec"]), Path(job["out"]),
        simulate=job["simulate"], detail=job["detail"],
    )  # fmt: skip
    return {}


def _runner(backend: str | None, file: Path, *, simulate: bool) -> Runner:
    from edgecnn.backends.cpu import cores

    match backend:
        case None:
            from edgecnn.backends import ort

            return ort.load(file, threads=cores(), simulate=simulate)
        case "onnxruntime" | "openvino" | "tensorrt" | "tensorrt-rtx":
            return load_backend(backend).load(file, threads=cores(), simulate=simulate)
        case other:
            raise EdgeError(f"no backend `{other}`")


def _time(job: Json) -> Json:
    """Time two files side by side in this process; write their milliseconds to `times`, return the conditions."""
    import numpy as np

    from edgecnn.backends.tensorrt.trt import TITLES
    from edgecnn.measure.bench import time_pairs
    from edgecnn.measure.timing_input import feeds, undecided_by
    from edgecnn.recipe.recipe import BenchSpec

    spec = BenchSpec.model_validate(job["spec"])
    backend, paths = load_backend(job["backend"]), [Path(job[name]) for name in ("first", "second")]
    runners = [backend.load(path, threads=spec.threads) for path in paths]
    if job["backend"] in TITLES:
        from edgecnn.agent.monitor import Monitor
        from edgecnn.agent.timing import Plan, invalid, measure

        samples = Path(job["times"]).with_name("samples.jsonl")
        monitor = Monitor(samples, (*command_of("edgecnn.agent.sampler"), str(samples)))
        plan = Plan.of(job["spec"])
        measured = measure(runners, paths, plan, job["until"], monitor)
        samples.unlink(missing_ok=True)
        np.savez(job["times"], **measured.arrays)
        why = invalid(plan, "recipe", len(measured.arrays["first_ms"]), measured.conditions)
        return {**measured.conditions, "backend": backend.version(), "valid": not why, "invalid_why": why}
    runs = [
        runner.prepared(feeds(runner.inputs, spec.batch, path)) for runner, path in zip(runners, paths, strict=True)
    ]
    times = time_pairs(runs[0], runs[1], spec, undecided_by(job["until"]))
    np.savez(job["times"], first_ms=times.first_ms, second_ms=times.second_ms)
    return {**times.conditions, "backend": backend.version()}


if __name__ == "__main__":
    serve(work)
