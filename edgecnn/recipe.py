"""The recipe: one frozen Spec per section. Past this file there is no dict and no string to take apart."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from edgecnn.errors import EdgeError
from edgecnn.sections import (
    DETECTION_FORMATS,
    IMAGENET,
    DataFormat,
    DataSpec,
    DistillSpec,
    FamilyName,
    Fraction,
    ModelSpec,
    Normalization,
    Student,
    Task,
    TeacherSpec,
    TrainSpec,
)
from edgecnn.spec import FILE_NAME, Spec

__all__ = [
    "DETECTION_FORMATS", "DETECTION_METRICS", "IMAGENET", "BenchSpec", "Budgets", "DataFormat", "DataSpec",
    "DistillSpec", "ExportSpec", "FamilyName", "MetricName", "ModelSpec", "NmsName", "Normalization", "Promise",
    "QatSpec", "QuantizeSpec", "RangeMethod", "Recipe", "RecoverSpec", "RungName", "ScoreSpec", "Student",
    "SuppressSpec", "Task", "TeacherSpec", "TrainSpec",
]  # fmt: skip

RangeMethod = Literal["auto", "minmax", "percentile", "entropy", "mse"]
NmsName = Literal["none", "onnx", "tensorrt"]
MetricName = Literal["top1", "top5", "map50_95", "map50"]
DETECTION_METRICS: tuple[MetricName, ...] = ("map50_95", "map50")
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
    batch: Literal["dynamic"] | PositiveInt = "dynamic"
    nms: NmsName = "none"


class RecoverSpec(Spec):
    """How far the recovery ladder may climb while the accuracy budget is missed."""

    stop_at: RungName = "qat"


class QatSpec(TrainSpec):
    """Quantization-aware training, the ladder's last rung: `train`, with what suits a network that is trained already.

    `lr` is relative: of a weight, to the largest of its output channel; of a step size, to itself. The float model is
    the teacher.
    """

    section: ClassVar[str] = "quantize.qat"
    epochs: PositiveInt = 5
    lr: PositiveFloat = 0.001
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.1
    distill: DistillSpec | None = DistillSpec(alpha=1.0)


class QuantizeSpec(Spec):
    """Static INT8. `images` calibration images are the first of the calibrate split."""

    section: ClassVar[str] = "quantize"
    precision: Literal["int8"] = "int8"
    images: PositiveInt = 256
    ranges: RangeMethod = "auto"
    keep_float: tuple[str, ...] = ()  # node names, exact, that stay float
    recover: Literal["auto", "off"] | RecoverSpec = "auto"  # auto: every rung, while the accuracy budget is missed
    select_images: PositiveInt = 5000  # at most so many images of the select split judge a rung
    qat: QatSpec = QatSpec()

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

    def require_images(self, have: int) -> None:
        """Refuse to calibrate on fewer images than asked.

        Raises:
            EdgeError: always then; it names both numbers.
        """
        if self.images > have:
            raise EdgeError(
                f"`quantize.images` asks for {self.images} calibration images, but there are {have}",
                f"lower `quantize.images` to {have} or give more images",
            )


class ScoreSpec(Spec):
    """What is scored on the scored split. `confidence`, `iou` and `max_detections` are a detector's, for its metric."""

    section: ClassVar[str] = "score"
    metric: MetricName = "top1"
    batch: PositiveInt = 64
    confidence: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.001  # boxes at or below it are dropped before suppression
    iou: Fraction = 0.7  # of two boxes of a class that overlap more, the worse is dropped
    max_detections: PositiveInt = 300  # on an image


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
    threads: PositiveInt = 1  # intra-op threads of a CPU engine
    warmup_ms: PositiveInt = 200
    min_pairs: PositiveInt = 200
    min_seconds: PositiveFloat = 3.0
    max_seconds: PositiveFloat = 30.0
    profile: Literal["quick", "mlperf"] | None = None  # raises the three numbers above; None: as they are written
    power_mode: str | None = None  # by the name that the board's `nvpmodel` gives it
    lock_clocks: bool = False

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
    max_accuracy_drop: Annotated[float, Field(ge=0.0, lt=0.5)] | None = None  # fraction of 1: 0.010 is one point
    max_p99_ms: PositiveFloat | None = None
    min_speedup: PositiveFloat | None = None  # against the device's best float engine
    max_size_mb: PositiveFloat | None = None  # of the INT8 ONNX file, 10^6 bytes


class Promise(Spec):
    """What the quantizer must hold: the drop allowed (None: none asked) and how the select split is scored."""

    section: ClassVar[str] = "budgets"
    max_accuracy_drop: float | None = None
    score: ScoreSpec = ScoreSpec()


class Recipe(Spec):
    """One model, one dataset, one device; everything a build may read."""

    name: Annotated[str, Field(pattern=FILE_NAME)]
    task: Task = "classify"
    data: DataSpec
    model: ModelSpec
    teacher: TeacherSpec | None = None
    train: TrainSpec = TrainSpec()
    export: ExportSpec = ExportSpec()
    quantize: QuantizeSpec = QuantizeSpec()
    score: ScoreSpec = ScoreSpec()
    bench: BenchSpec = BenchSpec()
    device: str
    compile_for: tuple[str, ...] = ()
    budgets: Budgets = Budgets()

    @model_validator(mode="after")
    def _task_agrees(self) -> Recipe:
        detect = self.task == "detect"
        if self.data.detection != detect:
            formats = ", ".join(DETECTION_FORMATS)
            raise ValueError(
                f"`task: {self.task}` does not go with `data.format: {self.data.format}`; "
                f"boxes ({formats}) are for `task: detect`, labels of whole images for `task: classify`"
            )
        for section, model in (("model", self.model), ("teacher", self.teacher)):
            if model and (model.family == "ultralytics") != detect:
                raise ValueError(
                    f"`task: {self.task}` does not go with `{section}.family: {model.family}`; detectors are of "
                    "`family: ultralytics`"
                )
        if (self.score.metric in DETECTION_METRICS) != detect:
            fitting = "map50_95 or map50" if detect else "top1 or top5"
            raise ValueError(f"`score.metric: {self.score.metric}` is not for `task: {self.task}`; write {fitting}")
        if self.export.nms != "none" and not detect:
            raise ValueError(f"`export.nms: {self.export.nms}` is for `task: detect`; a classifier has no boxes")
        if detect and self.data.fit != "letterbox":
            raise ValueError(f"detectors take whole images: write `data.fit: letterbox`, not `{self.data.fit}`")
        if self.train.distill and (self.train.distill.method == "feature") != detect:
            fitting = "feature" if detect else "logits or dist"
            raise ValueError(
                f"`train.distill.method: {self.train.distill.method}` is not for `task: {self.task}`; write {fitting}"
            )
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
        if self.quantize.images > self.data.calibrate:
            raise ValueError(
                f"`quantize.images` {self.quantize.images} is more than `data.calibrate` {self.data.calibrate} keeps"
            )
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
