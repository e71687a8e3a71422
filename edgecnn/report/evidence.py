"""What a verdict rests on: the artifacts of a build, parsed once."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from edgecnn.device import Scheme
from edgecnn.errors import EdgeError
from edgecnn.report import CompiledCheck, LayerError
from edgecnn.store import Artifact

M = TypeVar("M", bound=BaseModel)
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


class _File(BaseModel):
    """A stage's JSON: what the verdict reads of it; other keys are the stage's own."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ScoreFile(_File):
    """score.json. `value` is a fraction of 1."""

    metric: str
    value: float
    n: int
    how: str
    simulated: bool


class SpeedFile(_File):
    """speed.json; where `measured` is False only `why` is sure to be there."""

    measured: bool
    why: str | None = None
    when: str = ""
    pairs: int = 0
    seconds: float = 0.0
    batch: int = 1
    threads: int | None = None
    hardware: str = ""
    backend: str = ""
    what: str = ""
    clocks_locked: bool = False
    p99_valid: bool = False
    p99_invalid_why: str | None = None
    load_average: float | None = None


class EngineFile(_File):
    """engine.json of a compile stage."""

    device: str
    built: bool
    runnable: bool
    engine: str | None = None
    checks: tuple[CompiledCheck, ...] = ()
    note: str = ""
    size_bytes: int | None = None


class CalibrationPart(_File):
    """How the ranges were found."""

    images: int
    digest: str


class CoveragePart(_File):
    """Shares of the graph computed in INT8, 0 to 1."""

    macs: float
    activation_bytes: float


class LayerPart(_File):
    """One layer of quantize.json."""

    name: str
    op: str
    macs: int = 0
    int8: bool
    why_float: str | None = None
    sqnr_db: float | None = None


class QuantizeFile(_File):
    """quantize.json."""

    scheme: Scheme
    ranges: str
    calibration: CalibrationPart
    coverage: CoveragePart
    layers: tuple[LayerPart, ...] = ()
    sqnr_db: float | None = None


class _IndexFile(_File):
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Scores:
    """One model's answers, image by image: outcome (N,) 1.0 right or 0.0 wrong, predicted (N,) class, logits (N, C)."""

    file: ScoreFile
    label: Array
    predicted: Array
    outcome: Array
    logits: Array

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,) whether the image counts as right."""
        return np.asarray(self.outcome > 0.5)


@dataclass(frozen=True)
class Measured:
    """The evidence, read: everything that figures and checks need."""

    reference: Scores
    before: Scores
    after: Scores
    base: EngineFile
    engine: EngineFile
    speed: SpeedFile
    float_ms: Array  # (pairs,), empty where not measured
    int8_ms: Array
    quantize: QuantizeFile
    layers: tuple[LayerError, ...]
    classes: tuple[str, ...]
    data_digest: str
    plain_bytes: int  # size of the float ONNX
    int8_bytes: int


def read_evidence(evidence: Evidence) -> Measured:
    """Read the artifacts.

    Raises:
        EdgeError: one lacks a file, or the three scores are not of the same images.
    """
    reference, before, after = (
        read_scores(part.path) for part in (evidence.reference, evidence.before, evidence.after)
    )
    for name, scores in (("score-float", before), ("score-int8", after)):
        if not np.array_equal(scores.label, reference.label):
            raise EdgeError(
                f"`{name}` and `score-reference` are not of the same images", "run `edgecnn clean` and build again"
            )
    speed = parsed(SpeedFile, evidence.speed.path / "speed.json")
    times = _arrays(evidence.speed.path / "times.npz") if speed.measured else {}
    quantize = parsed(QuantizeFile, evidence.int8.path / "quantize.json")
    return Measured(
        reference=reference,
        before=before,
        after=after,
        base=parsed(EngineFile, evidence.base.path / "engine.json"),
        engine=parsed(EngineFile, evidence.engine.path / "engine.json"),
        speed=speed,
        float_ms=times.get("float_ms", np.empty(0)),
        int8_ms=times.get("int8_ms", np.empty(0)),
        quantize=quantize,
        layers=tuple(
            LayerError(**{**layer.model_dump(), "sqnr_db": finite(layer.sqnr_db)}) for layer in quantize.layers
        ),
        classes=parsed(_IndexFile, evidence.data.path / "index.json").classes,
        data_digest=scored_digest(evidence.data),
        plain_bytes=(evidence.plain.path / "model.onnx").stat().st_size,
        int8_bytes=(evidence.int8.path / "model.onnx").stat().st_size,
    )


def read_scores(folder: Path) -> Scores:
    """The file and outcomes of a score stage's folder."""
    arrays = _arrays(folder / "outcomes.npz")
    return Scores(
        parsed(ScoreFile, folder / "score.json"),
        *(arrays[name] for name in ("label", "predicted", "outcome", "logits")),
    )


def scored_digest(data: Artifact) -> str:
    """Hex SHA-256 of the scored images, labels and their order: two runs with the same one can be paired."""
    known: dict[str, str] = {}
    if (data.path / "stage.json").exists():
        known = data.json("stage.json")["files"]  # the store has hashed them already
    content = hashlib.sha256()
    for path in sorted(data.path.glob("scored*.npy")):
        digest = known.get(path.name) or hashlib.sha256(path.read_bytes()).hexdigest()
        content.update(f"{path.name}\0{digest}\n".encode())
    return content.hexdigest()


def collect_outcomes(reference: Path, before: Path, after: Path) -> dict[str, Array]:
    """Per-image outcomes from three score folders, all of shape (N,): what outcomes.npz holds and a baseline keeps."""
    scores = {"reference": read_scores(reference), "float": read_scores(before), "int8": read_scores(after)}
    found: dict[str, Array] = {"label": scores["reference"].label}
    for name, part in scores.items():
        found[f"{name}_outcome"] = part.outcome
        found[f"{name}_predicted"] = part.predicted
    return found


def outcomes_bytes(outcomes: Mapping[str, Array]) -> bytes:
    """An .npz file; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: outcomes[name] for name in sorted(outcomes)})  # type: ignore[arg-type]  # the stub takes names for a flag
    return buffer.getvalue()


def parsed(kind: type[M], path: Path) -> M:
    """A stage's JSON file as its model.

    Raises:
        EdgeError: missing, or not what the stage writes.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise EdgeError(f"cannot read `{path}`: {error.strerror}", "run `edgecnn clean` and build again") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise EdgeError(
            f"`{path}` is damaged: {place}: {first['msg']}", "run `edgecnn clean` and build again"
        ) from error


def finite(value: float | None) -> float | None:
    """None for what JSON cannot hold (an exact layer has infinite SQNR)."""
    return value if value is not None and np.isfinite(value) else None


def _arrays(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
