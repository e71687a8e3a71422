"""The recipe: one frozen Spec per section. Past this file there is no dict and no string to take apart."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from edgecnn.process.errors import EdgeError
from edgecnn.recipe.sections import (
    IMAGENET,
    DataSpec,
    DistillSpec,
    Fraction,
    ModelSpec,
    Normalization,
    Student,
    TeacherSpec,
    Threads,
    TrainSpec,
    detector_defaults,
)
from edgecnn.recipe.spec import FILE_NAME, Spec
from edgecnn.recipe.tasks import TASKS, DataFormat, FamilyName, MetricName, TaskName

__all__ = [
    "IMAGENET", "BenchSpec", "Budgets", "DataFormat", "DataSpec",
    "DistillSpec", "EffortName", "ExportSpec", "FamilyName", "MetricName", "ModelSpec", "NmsName", "Normalization",
    "Promise", "QatSpec", "QuantizeSpec", "RangeMethod", "Recipe", "RecoverSpec", "RungName", "ScoreSpec", "Student",
    "SuppressSpec", "TaskName", "TeacherSpec", "TrainSpec",
]  # fmt: skip

RangeMethod = Literal["auto", "minmax", "percentile", "entropy", "mse"]
NmsName = Literal["none", "onnx", "tensorrt"]
# How long the rungs that need no labels may take.
EffortName = Literal["fast", "balanced", "thorough"]
# The recovery ladder, cheapest rung first.
RungName = Literal["ranges", "equalize", "bias", "clip", "adaround", "mixed", "qat"]


class ExportSpec(Spec):
    """The ONNX file's input and batch. Normalization is always inside the graph.

    `nms`, of detectors: `none` answers boxes and scores, which edgecnn suppresses in numpy, alike on every device;
    `onnx` ends the graph with NonMaxSuppression (onnxruntime, OpenVINO), `tensorrt` with the plugin EfficientNMS_TRT,
    both by confidence, iou and max_detections of `score`.
    """

    section: ClassVar[str] = "export"
    input: Literal["uint8-nhwc", "float01-nchw"] = "uint8-nhwc"
    """Element type and layout of the image input: raw pixels, or 0..1 planes."""
    batch: Literal["dynamic"] | PositiveInt = "dynamic"
    """Batch dimension of the ONNX file."""
    nms: NmsName = "none"
    """Where a detector's boxes are suppressed: `none` is numpy, after the engine."""


class RecoverSpec(Spec):
    """How far the recovery ladder may climb."""

    stop_at: RungName = "qat"
    """Last rung that may be climbed."""


class QatSpec(TrainSpec):
    """Quantization-aware training, the ladder's last rung: `train`, with what suits a network that is trained already.

    `lr` is relative: of a weight, to the largest of its output channel; of a step size, to itself. The float model is
    the teacher.
    """

    section: ClassVar[str] = "quantize.qat"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimizer."""
    epochs: PositiveInt = 5
    """Passes over the training images."""
    lr: PositiveFloat = 0.001
    """Peak learning rate, relative to each weight's channel or step size."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight decay."""
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.1
    """Epochs over which the learning rate rises to `lr`."""
    distill: DistillSpec | None = DistillSpec(alpha=1.0)
    """How to learn from the float model."""


class QuantizeSpec(Spec):
    """Static INT8. `images` calibration images are the first of the calibrate split."""

    section: ClassVar[str] = "quantize"
    precision: Literal["int8"] = "int8"
    """Number type of quantized layers."""
    images: PositiveInt = 256
    """Calibration images, the first of those that `data.calibrate` keeps; left out, fewer will do."""
    ranges: RangeMethod = "auto"
    """How activation ranges are calibrated; `auto` takes the best of the others, tensor by tensor."""
    keep_float: tuple[str, ...] = ()
    """Nodes that stay float, by their exact ONNX names."""
    recover: Literal["auto", "off"] | RecoverSpec = "auto"
    """Recovery: `auto`, `off` (calibrated ranges alone), or `{stop_at: RUNG}`. Rungs beyond those of `effort` are
    climbed only while the accuracy budget is missed."""
    effort: EffortName = "balanced"
    """Which rungs that need no labels are always climbed: `fast` equalize, `balanced` bias too, `thorough` all."""
    select_images: PositiveInt = 5000
    """Maximum number of select images that judge a rung."""
    qat: QatSpec = QatSpec()
    """Quantization-aware training, the last rung."""

    @field_validator("recover", mode="before")
    @classmethod
    def _no_bare_rung(cls, value: object) -> object:
        if isinstance(value, str) and value in get_args(RungName):
            raise ValueError(f"`quantize.recover` names the rung `{value}`: write `recover: {{stop_at: {value}}}`")
        return value

    @property
    def stop_at(self) -> RungName:
        """The last rung that may be climbed; `ranges` where recovery is off."""
        match self.recover:
            case "auto":
                return "qat"
            case "off":
                return "ranges"
            case RecoverSpec() as bounded:
                return bounded.stop_at

    def with_images(self, have: int) -> QuantizeSpec:
        """The spec for `have` images: their number where `images` was not typed, which then means "at most".

        Raises:
            EdgeError: more were asked for than there are; it names both numbers.
        """
        if self.images <= have:
            return self
        if "images" in self.model_fields_set or not have:
            raise EdgeError(
                f"`quantize.images` asks for {self.images} calibration images, but there are {have}",
                f"lower `quantize.images` to {have} or give more images",
            )
        return self.model_copy(update={"images": have})


class ScoreSpec(Spec):
    """What is scored on the scored split. `confidence`, `iou` and `max_detections` are a detector's, for its metric."""

    section: ClassVar[str] = "score"
    metric: MetricName = "top1"
    """What accuracy means: top1 or top5 of a classifier, map50_95 or map50 of a detector."""
    batch: PositiveInt = 64
    """Images per batch while scoring."""
    confidence: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.001
    """Boxes at or below this score are dropped before suppression; detectors only."""
    iou: Fraction = 0.7
    """Of two boxes of a class that overlap more than this, the one with the lower score is dropped; detectors only."""
    max_detections: PositiveInt = 300
    """Maximum number of boxes kept on an image; detectors only."""


class SuppressSpec(Spec):
    """Suppression inside the graph: by which operators, and the score section's numbers."""

    section: ClassVar[str] = "nms"
    by: Literal["onnx", "tensorrt"]
    confidence: float
    iou: float
    max_detections: int


class BenchSpec(Spec):
    """Interleaved timing: until both `min_pairs` and `min_seconds`, doubled up to `max_seconds` while undecided.

    `power_mode` and `lock_clocks` are a board's: set before it is timed, restored afterwards.
    """

    section: ClassVar[str] = "bench"
    batch: PositiveInt = 1
    """Images per timed call."""
    threads: Threads = 1
    """Threads that a CPU engine uses within one operator."""
    warmup_ms: PositiveInt = 200
    """Milliseconds that each engine runs before it is timed."""
    min_pairs: PositiveInt = 200
    """Minimum number of pairs of runs (float, INT8) to time."""
    min_seconds: PositiveFloat = 3.0
    """Minimum duration of the timing, in seconds."""
    max_seconds: PositiveFloat = 30.0
    """Maximum duration of the timing, in seconds, while a budget is undecided."""
    profile: Literal["quick", "mlperf"] | None = None
    """Raises the three numbers above: `quick` 1,024 pairs and 10 s, `mlperf` 1,024 pairs and 600 s."""
    power_mode: str | None = None
    """Power mode of a board while it is timed, by the name that its `nvpmodel` gives it; restored."""
    lock_clocks: bool = False
    """Lock a board's clocks while it is timed; restored."""

    def raised(self) -> BenchSpec:
        """With the numbers raised to what the profile asks: 1,024 pairs and 10 s, of mlperf (single stream) 600 s."""
        if self.profile is None:
            return self
        seconds, most = (10.0, 600.0) if self.profile == "quick" else (600.0, 3600.0)
        least = {"min_pairs": max(self.min_pairs, 1024), "min_seconds": max(self.min_seconds, seconds)}
        return self.model_copy(update={**least, "max_seconds": max(self.max_seconds, most)})


class Budgets(Spec):
    """Promises that the verdict decides. None: not asked, reported only."""

    section: ClassVar[str] = "budgets"
    max_accuracy_drop: Annotated[float, Field(ge=0.0, lt=0.5)] | None = None
    """Maximum accuracy drop of INT8 against float, as a fraction of 1: 0.010 is one point."""
    min_accuracy: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Minimum accuracy of float and of INT8 on the scored images, as a fraction of 1: 0.90 is 90 %."""
    max_p99_ms: PositiveFloat | None = None
    """Maximum 99th percentile of INT8 latency, in milliseconds."""
    min_speedup: PositiveFloat | None = None
    """Minimum speed-up of INT8 over the device's best float engine."""
    max_size_mb: PositiveFloat | None = None
    """Maximum size of the INT8 ONNX file, in MB of 10^6 bytes."""


class Promise(Spec):
    """What the quantizer must hold: the drop allowed (None: none asked) and how the select split is scored."""

    section: ClassVar[str] = "budgets"
    max_accuracy_drop: float | None = None
    score: ScoreSpec = ScoreSpec()


class Recipe(Spec):
    """One model, one dataset, one device; everything a build may read."""

    name: Annotated[str, Field(pattern=FILE_NAME)]
    """Name of the build; names its folder under runs/."""
    task: TaskName = "classify"
    """Labels of whole images, or boxes."""
    data: DataSpec
    """Labelled images, and how they are split."""
    model: ModelSpec
    """The network to train and quantize."""
    teacher: TeacherSpec | None = None
    """A larger network that `train.distill` learns from."""
    train: TrainSpec = TrainSpec()
    """The training run."""
    export: ExportSpec = ExportSpec()
    """The ONNX file's input, batch and suppression."""
    quantize: QuantizeSpec = QuantizeSpec()
    """Calibration and recovery of the INT8 model."""
    score: ScoreSpec = ScoreSpec()
    """The accuracy metric and its settings."""
    bench: BenchSpec = BenchSpec()
    """How latency is measured."""
    device: str
    """Device of the verdict: a name from `edgecnn devices list`, or a device file."""
    compile_for: tuple[str, ...] = ()
    """Further devices whose engines are compiled or checked beside it; no verdict."""
    budgets: Budgets = Budgets()
    """What the verdict promises."""

    @model_validator(mode="before")
    @classmethod
    def _detector(cls, values: object) -> object:
        model = values.get("model") if isinstance(values, dict) else None
        if isinstance(values, dict) and isinstance(model, dict) and model.get("family") == "ultralytics":
            return {**values, "train": detector_defaults(values.get("train", {}))}
        return values

    @model_validator(mode="after")
    def _task_agrees(self) -> Recipe:
        traits = TASKS[self.task]
        if self.data.task != self.task:
            rows = (f"{one.labels} ({', '.join(one.formats)}) are for `task: {name}`" for name, one in TASKS.items())
            raise ValueError(f"`task: {self.task}` does not fit `data.format: {self.data.format}`; {', '.join(rows)}")
        for section, model in (("model", self.model), ("teacher", self.teacher)):
            if model and model.family not in traits.families:
                raise ValueError(
                    f"`task: {self.task}` does not go with `{section}.family: {model.family}`; "
                    f"write {' or '.join(traits.families)}"
                )
        for section, train in (("train", self.train), ("teacher.train", self.teacher and self.teacher.train)):
            if train and not traits.auto and (train.optimizer == "auto" or train.lr is None):
                raise ValueError(f"`{section}` of `task: {self.task}` has no `auto`: name `optimizer` and `lr`")
            if train and train.optimizer == "auto" and train.lr is not None:
                raise ValueError(f"`{section}.optimizer: auto` chooses `lr` too: leave it out, or name an optimizer")
        method = self.train.distill and self.train.distill.method
        for key, value, fitting in (
            ("score.metric", self.score.metric, traits.metrics),
            ("data.fit", self.data.fit, traits.fits),
            ("train.distill.method", method, (None, *traits.distill)),
        ):
            if value not in fitting:
                raise ValueError(
                    f"`{key}: {value}` is not for `task: {self.task}`; write {' or '.join(filter(None, fitting))}"
                )
        if self.export.nms != "none" and not traits.boxes:
            raise ValueError(f"`export.nms: {self.export.nms}` suppresses boxes, and `task: {self.task}` has none")
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        if self.train.distill and not self.teacher:
            raise ValueError("`train.distill` needs a `teacher` section")
        if self.teacher and not self.train.distill:
            raise ValueError(
                "a `teacher` is given but `train.distill` is not: write how to distil, or remove the teacher"
            )
        if self.train.epochs == 0 and self.train.distill:
            raise ValueError("`train.distill` is given but `train.epochs` is 0: nothing would be trained")
        asked = "images" in self.quantize.model_fields_set  # else as many as there are, at most its default
        if asked and self.quantize.images > self.data.calibrate:
            raise ValueError(
                f"`quantize.images` {self.quantize.images} is more than `data.calibrate` {self.data.calibrate} keeps"
            )
        if self.model.own_file and self.train.epochs:
            raise ValueError("`family: onnx` is not trained: leave `train.epochs` at 0")
        if self.model.own_file and self.graph != ExportSpec():
            raise ValueError("`family: onnx` is not exported: leave `export.input` and `export.batch` out")
        if self.model.decode and not TASKS[self.task].boxes:
            raise ValueError(f"`model.decode` is how boxes are read, and `task: {self.task}` has none")
        if self.teacher and self.teacher.own_file:
            raise ValueError("`teacher.family: onnx` can't teach: its network is a file, not one that torch can run")
        channels = 1 if self.data.color == "gray" else 3
        for section, model in (("model", self.model), ("teacher", self.teacher)):
            if model and len(model.normalization(channels).mean) != channels:
                raise ValueError(
                    f"`{section}.normalize` must have {channels} numbers for `data.color: {self.data.color}`"
                )
        return self

    @property
    def graph(self) -> ExportSpec:
        """What the export stage acts on: suppression comes last, behind the quantized graph."""
        return self.export.model_copy(update={"nms": "none"})

    @property
    def suppression(self) -> SuppressSpec | None:
        """What ends a detector's graph; None where numpy suppresses."""
        score = self.score
        return None if self.export.nms == "none" else SuppressSpec(
            by=self.export.nms, confidence=score.confidence, iou=score.iou, max_detections=score.max_detections
        )  # fmt: skip

    @property
    def student(self) -> Student:
        """Model and train sections as one input of the train stage."""
        return Student(model=self.model, train=self.train)

    @property
    def promise(self) -> Promise:
        """The accuracy budget and what decides it as one input of the quantize stage: without a budget nothing does."""
        if self.budgets.max_accuracy_drop is None:
            return Promise()
        # How many images one inference takes changes no answer.
        score = self.score.model_copy(update={"batch": ScoreSpec().batch})
        return Promise(max_accuracy_drop=self.budgets.max_accuracy_drop, score=score)
