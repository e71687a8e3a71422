"""What the train stage tells its child process."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgecnn.recipe.recipe import DataSpec, ModelSpec, QatSpec, TeacherSpec, TrainSpec
from edgecnn.recipe.spec import Spec

# Decoded training images are kept in memory up to this; above it they are decoded anew in each epoch.
CACHE_BYTES = 2 << 30


class TrainJob(Spec):
    """One training run. JSON can't tell a weights file from a library's name, so they travel apart."""

    role: Literal["model", "teacher"] = "model"  # its section in the recipe
    model: ModelSpec  # its `weights` is None
    weights_file: Path | None
    weights_name: str | None
    train: TrainSpec
    images: DataSpec
    data: Path
    teacher: Path | None
    out: Path
    cache_bytes: int = CACHE_BYTES

    @property
    def weighted_model(self) -> ModelSpec:
        """The model with its weights where they belong."""
        fields = {name: getattr(self.model, name) for name in ModelSpec.model_fields}
        fields["weights"] = self.weights_file or self.weights_name
        return ModelSpec.model_validate(fields) if self.role == "model" else TeacherSpec.model_validate(fields)

    @property
    def settings(self) -> str:
        """How the recipe calls the train settings."""
        return "train" if self.role == "model" else "teacher.train"


class QatJob(TrainJob):
    """One quantization-aware training of a graph; `model` says only which images the graph takes."""

    weights_file: Path | None = None
    weights_name: str | None = None
    train: QatSpec
    teacher: None = None
    graph: Path  # float ONNX: what is trained
    placement: Path  # a candidate of that graph, as quantize/checkpoint.py writes it
    reference: Path  # float ONNX: what it must answer like

    @property
    def settings(self) -> str:
        """How the recipe calls the train settings."""
        return QatSpec.section
