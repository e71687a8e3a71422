"""The parent's side of `targets.child`: start a job in the engine process, and file what it answers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgecnn.backends import BackendName
from edgecnn.measure.bench import PairTimes, conditions, percentiles
from edgecnn.process.child import run_child
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.device import DeviceFacts, DeviceProfile
from edgecnn.recipe.recipe import BenchSpec

CHILD = "edgecnn.targets.child"


def load(out: Path, backend: BackendName, graph: Path) -> None:
    """Load a graph once, so that one which the backend refuses is refused now. Log: build.log."""
    _run("load", out, backend=backend, model=str(graph))


def parse(out: Path, backend: BackendName, graph: Path) -> None:
    """Give a graph to a TensorRT parser.

    Raises:
        EdgeError: refused: the node and the parser's words.
    """
    _run("parse", out, backend=backend, model=str(graph))


def _run(do: str, out: Path, **job: Any) -> dict[str, Any]:
    return run_child(CHILD, {"do": do, **job}, out / "build.log")


def build(out: Path, profile: DeviceProfile, graph: Path) -> float:
    """Make `<device>.engine`; only TensorRT for RTX is told for which GPU, the other builds for the one it is on."""
    capability = profile.compute_capability if profile.backend == "tensorrt-rtx" else None
    engine = out / f"{profile.name}.engine"
    answer = _run(
        "build", out, backend=profile.backend, model=str(graph), engine=str(engine), compute_capability=capability
    )
    return float(answer["seconds"])


def time_in_child(
    out: Path, backend: BackendName, files: tuple[Path, Path], spec: BenchSpec, facts: DeviceFacts,
    until: Literal["speed", "regression"],
) -> PairTimes:  # fmt: skip
    """Time two files in one child process. `until`: which rule decides whether more pairs are wanted. Log: time.log.

    Raises:
        EdgeError: a power mode or locked clocks are asked of this machine, or the engine failed.
    """
    refuse_modes(spec)
    job = {
        "do": "time", "backend": backend, "first": str(files[0]), "second": str(files[1]), "until": until,
        "spec": spec.raised().model_dump(mode="json"), "times": str(out / "pairs.npz"),
    }  # fmt: skip
    conditions = run_child(CHILD, job, out / "time.log")
    with np.load(out / "pairs.npz") as times:
        pair_times = PairTimes(times["first_ms"], times["second_ms"], {**conditions, "hardware": facts.hardware})
    (out / "pairs.npz").unlink()
    return pair_times


def refuse_modes(spec: BenchSpec) -> None:
    """Refuse what is asked of a board: this machine's power mode and clocks are left alone.

    Raises:
        EdgeError: always then; it names the keys.
    """
    asked = [key for key in ("power_mode", "lock_clocks") if getattr(spec, key)]
    if asked:
        keys = " and ".join(f"`bench.{key}`" for key in asked)
        raise EdgeError(
            f"{keys} is set, but the device is this machine, whose modes edgecnn leaves alone",
            "give the board with --host USER@BOARD, or set the mode yourself and leave the key out",
        )


def time_files(
    backend: BackendName, files: tuple[Path, Path], spec: BenchSpec, facts: DeviceFacts,
    profile: DeviceProfile | None = None,
) -> PairTimes:  # fmt: skip
    """Time two files of anywhere. With a TensorRT `profile`, ONNX files are built into engines first."""
    with tempfile.TemporaryDirectory(prefix="edgecnn-") as folder:
        ready = []
        for number, file in enumerate(files):
            if not file.is_file():
                raise EdgeError(f"no file `{file}` to time")
            if profile is not None and file.suffix == ".onnx":
                out = Path(folder, str(number))
                out.mkdir()
                build(out, profile, file)
                file = out / f"{profile.name}.engine"  # what is timed is the engine of it
            ready.append(file)
        return time_in_child(Path(folder), backend, (ready[0], ready[1]), spec, facts, "regression")


def write_speed(
    out: Path, times: PairTimes | None, spec: BenchSpec, facts: DeviceFacts, why: str | None = None
) -> None:
    """Write speed.json, and times.npz where something was measured."""
    on_gpu = times is not None and times.conditions.get("timer") == "device"
    what = "GPU time by CUDA events" if on_gpu else "engine time only"
    content: dict[str, Any] = {"measured": times is not None, "why": why, "what": what}
    if times is None:
        nothing = {"pairs": 0, "seconds": 0.0, **conditions(spec, 0), "p99_invalid_why": "nothing was measured"}
        content |= {**nothing, "clocks_locked": False, "p99_valid": False}
        content |= {"hardware": facts.hardware, "backend": facts.backend_version}
    else:
        content |= times.conditions
        content |= {"float": percentiles(times.first_ms), "int8": percentiles(times.second_ms)}
        np.savez(out / "times.npz", float_ms=times.first_ms, int8_ms=times.second_ms)
    (out / "speed.json").write_text(json.dumps(content, indent=1))
