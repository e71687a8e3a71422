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

from edgecnn.data import read_index
from edgecnn.data.walk import readable
from edgecnn.process.errors import EdgeError
from edgecnn.report import LayerError
from edgecnn.report.stage_files import EngineFile, IndexFile, QuantizeFile, ScoreFile, SpeedFile, TypedPart, parsed
from edgecnn.store.stage import Artifact
from edgecnn.tasks.detect.average_precision import Matches, match
from edgecnn.tasks.detect.boxes import Boxes, boxes
from edgecnn.tasks.detect.detect import Detections
from edgecnn.tasks.detect.score_boxes import read_detections

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
class BoxScores:
    """One detector's answers, image by image, and how they match the labelled boxes."""

    file: ScoreFile
    found: Detections
    matches: Matches


@dataclass(frozen=True)
class Classified:
    """The same images classified by FP32 on the host, by the float engine and by INT8."""

    reference: Scores
    before: Scores
    after: Scores


@dataclass(frozen=True)
class Detected:
    """The same images searched by FP32 on the host, by the float engine and by INT8; their labelled boxes and names."""

    reference: BoxScores
    before: BoxScores
    after: BoxScores
    truth: Boxes
    names: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """The evidence, read: everything that figures and checks need. `answers` are of the task's kind."""

    answers: Classified | Detected
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


def read_evidence(evidence: Evidence) -> Measured:
    """Read the artifacts.

    Raises:
        EdgeError: one lacks a file, or the three scores are not of the same images.
    """
    answers = _answers(evidence)
    speed = parsed(SpeedFile, evidence.speed.path / "speed.json")
    times = _arrays(evidence.speed.path / "times.npz") if speed.measured else {}
    quantize = parsed(QuantizeFile, evidence.int8.path / "quantize.json")
    return Measured(
        answers=answers,
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


def _answers(evidence: Evidence) -> Classified | Detected:
    folders = (evidence.reference.path, evidence.before.path, evidence.after.path)
    if (evidence.data.path / "scored_boxes.npz").exists():
        truth = boxes(evidence.data.path, "scored")
        index = read_index(evidence.data.path)
        reference, before, after = (read_box_scores(folder, truth, len(index.classes)) for folder in folders)
        names = tuple(readable(index.files[number] or f"image {number}") for number in index.splits["scored"])
        return Detected(reference, before, after, truth, names)
    found = Classified(*(read_scores(folder) for folder in folders))
    for name, scores in (("score-float", found.before), ("score-int8", found.after)):
        if not np.array_equal(scores.label, found.reference.label):
            raise EdgeError(
                f"`{name}` and `score-reference` are not of the same images", "run `edgecnn clean` and build again"
            )
    return found


def read_box_scores(folder: Path, truth: Boxes, classes: int) -> BoxScores:
    """The file and detections of a score stage's folder, matched with the labelled boxes."""
    found = read_detections(folder / "outcomes.npz")
    return BoxScores(parsed(ScoreFile, folder / "score.json"), found, match(found, truth, classes))


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
    for path in sorted([*data.path.glob("scored*.npy"), *data.path.glob("scored_boxes.npz")]):
        digest = known.get(path.name) or hashlib.sha256(path.read_bytes()).hexdigest()
        content.update(f"{path.name}\0{digest}\n".encode())
    return content.hexdigest()


def collect_outcomes(reference: Path, before: Path, after: Path, data: Path | None = None) -> dict[str, Array]:
    """Per-image outcomes from three score folders: what outcomes.npz holds and a baseline keeps.

    Of a classifier: label, and of each model outcome and predicted class, all (N,). Of a detector: the labelled boxes
    (`truth_*`) and each model's detections (`reference_*`, `float_*`, `int8_*`), as `Boxes` and `Detections`.

    Args:
        data: the data folder; its labelled boxes are a detector's.
    """
    if data is not None and (data / "scored_boxes.npz").exists():
        kept = {f"truth_{key}": value for key, value in vars(boxes(data, "scored")).items()}
        for name, folder in (("reference", reference), ("float", before), ("int8", after)):
            kept.update(
                {f"{name}_{key}": value for key, value in vars(read_detections(folder / "outcomes.npz")).items()}
            )
        return kept
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


def finite(value: float | None) -> float | None:
    """None for what JSON cannot hold (an exact layer has infinite SQNR)."""
    return value if value is not None and np.isfinite(value) else None


def _arrays(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
