"""The train stage: a network with its weights, trained here or taken as they are. Light; torch lives in its child."""

from __future__ import annotations

from pathlib import Path

from edgecnn.families import LIBRARIES
from edgecnn.families.onnx import take
from edgecnn.process.child import run_child
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import DataSpec, ModelSpec, Student, TeacherSpec
from edgecnn.store.stage import Artifact, decided_by
from edgecnn.training.job import TrainJob


@decided_by("torch", *LIBRARIES, "pillow", rooms=("training", "families", "data", "tasks", "recipe"))
def train(out: Path, spec: Student | TeacherSpec, images: DataSpec, data: Artifact, teacher: Artifact | None) -> None:
    """Write weights.safetensors (the best epoch's, averaged if EMA is on), model.json and history.json.

    With `epochs: 0` the weights are taken as they are. Otherwise `last.safetensors` (the last epoch's) is written too,
    and after each epoch a checkpoint in `out/resume/`, from which a killed run continues; on one CPU machine it ends
    with the same bytes as an unbroken one. Training happens in a child process.

    A file of the user's own (`family: onnx`) is taken as it is, as model.onnx.

    Raises:
        EdgeError: nothing to take, weights that don't fit, a loss that is not a number, no GPU where one is asked for.
    """
    taught = isinstance(spec, Student)
    section, model = ("model", spec.model) if isinstance(spec, Student) else ("teacher", spec)
    if model.own_file:
        take(out, model, images, data.path)
        return
    if spec.train.epochs == 0 and model.weights is None:
        raise EdgeError(
            f"`{section}` has nothing to run: no weights and no training",
            f"give `{section}.weights`, or `{'' if taught else 'teacher.'}train.epochs` above 0",
        )
    scratch = out / "resume"
    scratch.mkdir(exist_ok=True)
    plain = {name: getattr(model, name) for name in ModelSpec.model_fields if name != "weights"}
    job = TrainJob.model_validate(
        {
            "role": section,
            "model": plain,
            "weights_file": model.weights if isinstance(model.weights, Path) else None,
            "weights_name": model.weights if isinstance(model.weights, str) else None,
            "train": spec.train,
            "images": images,
            "data": data.path,
            "teacher": teacher.path if teacher else None,
            "out": out,
        }
    )
    run_child("edgecnn.training.child", job.model_dump(mode="json"), scratch / "train.log")
