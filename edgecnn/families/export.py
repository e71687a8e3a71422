"""The export stage: a trained network becomes a float ONNX file with the normalization inside."""

from __future__ import annotations

from pathlib import Path

from edgecnn.families import LIBRARIES
from edgecnn.families.onnx import deliver
from edgecnn.process.child import run_child
from edgecnn.recipe.recipe import ExportSpec, ModelSpec
from edgecnn.store.stage import Artifact, decided_by


@decided_by("torch", *LIBRARIES, "onnxscript", "onnx", "onnx-ir", rooms=("families", "measure", "recipe"))
def export(out: Path, spec: ExportSpec, model_spec: ModelSpec, model: Artifact) -> None:
    """Write model.onnx (opset 19, IR 9, metadata `edgecnn.io`); its names follow the torch modules.

    Input `images`: uint8 (N, S, S, C), or float32 (N, C, S, S) of values 0..1. Output `logits`: float32 (N, classes).
    N is `batch` (dynamic) or fixed. BatchNorm is folded into the convolution before it. The same weights give the
    same bytes, whatever the folder. Its answers are compared with torch's under onnxruntime before it is delivered.

    Raises:
        EdgeError: the network can't be exported, or the file does not answer as the network does.
    """
    if model_spec.own_file:
        deliver(out, model.path)
        return
    scratch = out / "resume"  # removed by the store: the log carries times and paths
    scratch.mkdir(exist_ok=True)
    job = {"spec": spec.model_dump(), "family": model_spec.family, "model": str(model.path), "out": str(out)}
    run_child("edgecnn.families.onnx_graph", job, scratch / "export.log")
