"""A Runner over the scored images → one outcome per image. The only readers of the scored split."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgecnn.measure.feeding import ImageBatches, answered_batches
from edgecnn.measure.io_contract import IoContract, read_contract
from edgecnn.process.child import run_child
from edgecnn.process.errors import EdgeError
from edgecnn.process.versions import decided_by
from edgecnn.recipe.device import BackendName
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.store.stage import Artifact
from edgecnn.tasks.classify.metrics import METRICS

if TYPE_CHECKING:
    from edgecnn.backends import Runner

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Outcomes:
    """Per image, in the order of the scored split: label, predicted class, outcome of the metric, logits (N, C)."""

    label: Labels
    predicted: Labels
    outcome: NDArray[np.float32]
    logits: Logits

    @property
    def value(self) -> float:
        """The metric's value: the mean outcome."""
        return float(np.mean(self.outcome, dtype=np.float64))


@decided_by("onnxruntime", "onnxruntime-gpu", "faster-coco-eval")
def score_reference(out: Path, spec: ScoreSpec, plain: Artifact, data: Artifact) -> None:
    """Stage: the float model under onnxruntime on this host, FP32, all optimizations on."""
    score_file(out, spec, plain.path / "model.onnx", data.path, backend=None)


def score_file(
    out: Path, spec: ScoreSpec, model: Path, data: Path, *, backend: BackendName | None, simulate: bool = False,
    engine: Path | None = None, detail: str = "",
) -> None:  # fmt: skip
    """Score one model in a child process; write score.json and outcomes.npz into `out`.

    Args:
        model: the ONNX file, whose contract says how images are fed.
        backend: who runs it; None is onnxruntime on the best provider of this host (CUDA, else CPU).
        simulate: evaluate the Q/DQ graph in float; the score is marked so.
        engine: run this engine file in place of the ONNX file.
        detail: added to the score's `how`.

    Raises:
        EdgeError: no contract, images and labels don't fit, logits that aren't finite, or the engine failed.
    """
    job = {
        "do": "score", "model": str(model), "engine": str(engine or model), "data": str(data), "out": str(out),
        "backend": backend, "simulate": simulate, "spec": spec.model_dump(mode="json"), "detail": detail,
    }  # fmt: skip
    run_child("edgecnn.targets.child", job, out / "score.log")


def score_here(
    runner: Runner, model: Path, data: Path, spec: ScoreSpec, out: Path, *, simulate: bool, detail: str,
    images: ImageBatches | None = None,
) -> None:  # fmt: skip
    """The child's side of `score_file`, and what judges a board's answers.

    Args:
        images: what the runner is fed in place of the scored images of `data`.
    """
    from edgecnn import data as data_room

    start = time.monotonic()
    contract = read_contract(model)
    if contract is None:
        raise EdgeError(
            f"`{model}` has no `edgecnn.io` metadata, so nobody knows how to feed it images", "export it with edgecnn"
        )
    how = f"{runner.how}, {detail}" if detail else runner.how
    images = data_room.images(data, "scored") if images is None else images
    if contract.task == "detect":
        from edgecnn.tasks.detect.boxes import boxes
        from edgecnn.tasks.detect.host_latency import HostTimes
        from edgecnn.tasks.detect.score_boxes import score_detector, write_detections

        truth, times = boxes(data, "scored"), HostTimes()
        found = score_detector(runner, contract, images, truth, spec, times)
        write_detections(
            out, found, truth, contract.classes, spec, how=how, simulated=simulate, seconds=time.monotonic() - start,
            host=times.document(contract, truth),
        )  # fmt: skip
        return
    scored = score_runner(runner, contract, images, data_room.labels(data, "scored"), spec)
    write_score(out, scored, spec, how=how, simulated=simulate, seconds=time.monotonic() - start)


def score_runner(
    runner: Runner, contract: IoContract, images: ImageBatches, labels: Labels, spec: ScoreSpec
) -> Outcomes:
    """Run every image and judge it by the metric.

    A model with a fixed batch is fed that batch, the last one filled up with zeros. Logits are the first output of the
    contract.

    Raises:
        EdgeError: labels and images differ in number, no images, the wrong number of classes, or logits not finite.
    """
    count = len(images)
    if count == 0 or count != len(labels):
        raise EdgeError(f"the scored split has {count} images and {len(labels)} labels", "prepare the data again")
    parts = []
    for numbers, answers in answered_batches(runner, contract.feed, images, spec.batch):
        logits = np.asarray(answers[contract.outputs[0].name], np.float32)
        parts.append(logits.reshape(len(logits), -1)[: len(numbers)])
    return judge(np.concatenate(parts), np.asarray(labels, np.int64), spec, len(contract.classes))


def judge(logits: Logits, labels: Labels, spec: ScoreSpec, classes: int) -> Outcomes:
    """Per-image outcomes of logits (N, C) against labels (N,).

    Raises:
        EdgeError: C isn't the number of classes, or a logit isn't finite.
    """
    if logits.shape[1] != classes:
        raise EdgeError(f"the model gives {logits.shape[1]} logits, its contract names {classes} classes")
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        raise EdgeError(
            f"the model's logits are not finite for {len(bad)} of {len(logits)} images, first image {bad[0]}",
            "a NaN or infinity is in the weights, or a scale or an FP16 part overflows",
        )
    outcome = METRICS[spec.metric].outcomes(logits, labels)
    return Outcomes(labels, logits.argmax(axis=1).astype(np.int64), outcome, logits)


def write_score(out: Path, scored: Outcomes, spec: ScoreSpec, *, how: str, simulated: bool, seconds: float) -> None:
    """Write outcomes.npz (the same bytes for the same outcomes) and score.json."""
    np.savez(
        out / "outcomes.npz",
        label=scored.label,
        predicted=scored.predicted,
        outcome=scored.outcome,
        logits=scored.logits,
    )
    content = {
        "metric": spec.metric, "value": scored.value, "unit": METRICS[spec.metric].unit, "n": len(scored.label),
        "how": how, "simulated": simulated, "seconds": round(seconds, 3),
    }  # fmt: skip
    (out / "score.json").write_text(json.dumps(content, indent=1))
