"""Scores of model files on this host, each in a child process."""

from __future__ import annotations

from pathlib import Path

from edgecnn.backends import BackendName
from edgecnn.process.child import run_child
from edgecnn.process.versions import ENGINES, decided_by
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.store.stage import Artifact
from edgecnn.targets.jobs import CHILD


@decided_by("onnxruntime", "onnxruntime-gpu", "faster-coco-eval", rooms=("tasks", "data", *ENGINES))
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
    run_child(CHILD, job, out / "score.log")
