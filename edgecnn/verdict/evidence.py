"""What a verdict rests on: the artifacts of a build, parsed once."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecnn.process.errors import EdgeError
from edgecnn.recipe.tasks import task_of_metric
from edgecnn.records import EngineFile, IndexFile, QuantizeFile, ScoreFile, SpeedFile, TypedPart, parsed
from edgecnn.report import LayerError
from edgecnn.store.stage import Artifact
from edgecnn.tasks import Arrays, Task, load_task
from edgecnn.tasks.compared import Compared, Scored

Array = NDArray[Any]


@dataclass(frozen=True)
class Evidence:
    """Stages the verdict reads: `reference` scores FP32 on the host, `before` the float engine, `after` INT8."""

    data: Artifact
    plain: Artifact
    int8: Artifact
    base: Artifact
    engine: Artifact
    reference: Artifact
    before: Artifact
    after: Artifact
    speed: Artifact

    def artifacts(self) -> tuple[Artifact, ...]:
        """All of them, in the order of the page."""
        return tuple(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True)
class Measured:
    """The evidence, read: everything that figures and checks need."""

    task: Task
    compared: Compared
    base: EngineFile
    engine: EngineFile
    speed: SpeedFile
    float_ms: Array  # (pairs,), empty where not measured
    int8_ms: Array
    quantize: QuantizeFile
    float_typed: TypedPart | None  # None where the float graph is not typed
    layers: tuple[LayerError, ...]
    classes: tuple[str, ...]
    data_digest: str
    plain_bytes: int  # size of the float ONNX
    int8_bytes: int

    @property
    def metric(self) -> str:
        """The metric that the models were scored by."""
        return self.compared.after.file.metric


def read_evidence(evidence: Evidence) -> Measured:
    """Read the artifacts.

    Raises:
        EdgeError: one lacks a file, or the three scores are not of the same images.
    """
    task, compared = compare(evidence)
    speed = parsed(SpeedFile, evidence.speed.path / "speed.json")
    times = _arrays(evidence.speed.path / "times.npz") if speed.measured else {}
    quantize = parsed(QuantizeFile, evidence.int8.path / "quantize.json")
    return Measured(
        task=task,
        compared=compared,
        base=parsed(EngineFile, evidence.base.path / "engine.json"),
        engine=parsed(EngineFile, evidence.engine.path / "engine.json"),
        speed=speed,
        float_ms=times.get("float_ms", np.empty(0)),
        int8_ms=times.get("int8_ms", np.empty(0)),
        quantize=quantize,
        float_typed=parsed(TypedPart, typed) if (typed := evidence.base.path / "typed.json").exists() else None,
        layers=tuple(
            LayerError(**{**layer.model_dump(), "sqnr_db": finite(layer.sqnr_db)}) for layer in quantize.layers
        ),
        classes=parsed(IndexFile, evidence.data.path / "index.json").classes,
        data_digest=scored_digest(evidence.data),
        plain_bytes=(evidence.plain.path / "model.onnx").stat().st_size,
        int8_bytes=(evidence.int8.path / "model.onnx").stat().st_size,
    )


def compare(evidence: Evidence) -> tuple[Task, Compared]:
    """The three scores, and the task that they are of.

    Raises:
        EdgeError: one lacks a file, or they are not of the same images.
    """
    data = evidence.data.path
    folders = [part.path for part in (evidence.reference, evidence.before, evidence.after)]
    files = [parsed(ScoreFile, folder / "score.json") for folder in folders]
    task = load_task(task_of_metric(files[0].metric))
    scores = [
        Scored(file, task.read(folder / "outcomes.npz", data)) for file, folder in zip(files, folders, strict=True)
    ]
    for name, scored in zip(("score-float", "score-int8"), scores[1:], strict=True):
        if not task.same_targets(scores[0].outcomes, scored.outcomes):
            raise EdgeError(
                f"`{name}` and `score-reference` are not of the same images", "run `edgecnn clean` and build again"
            )
    reference, before, after = scores
    return task, Compared(reference, before, after, data)


def scored_digest(data: Artifact) -> str:
    """Hex SHA-256 of the scored images, labels and their order: two runs with the same one can be paired."""
    known: dict[str, str] = {}
    if (data.path / "stage.json").exists():
        known = data.json("stage.json")["files"]  # the store has hashed them already
    content = hashlib.sha256()
    for path in sorted(data.path.glob("scored[-_]*.np[yz]")):
        digest = known.get(path.name) or hashlib.sha256(path.read_bytes()).hexdigest()
        content.update(f"{path.name}\0{digest}\n".encode())
    return content.hexdigest()


def collect_outcomes(evidence: Evidence) -> Arrays:
    """Per-image outcomes of a build: what a run's outcomes.npz holds and a baseline keeps."""
    task, compared = compare(evidence)
    return task.kept(compared)


def outcomes_bytes(outcomes: Mapping[str, Array]) -> bytes:
    """An .npz file; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: outcomes[name] for name in sorted(outcomes)})  # type: ignore[arg-type]  # the stub takes names for a flag
    return buffer.getvalue()


def finite(value: float | None) -> float | None:
    """None for what JSON cannot hold (an exact layer has infinite SQNR)."""
    return value if value is not None and np.isfinite(value) else None


def _arrays(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
