"""The recipe: one frozen Spec per section. Past this file there is no dict and no string to take apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from edgecnn.errors import EdgeError
from edgecnn.spec import FILE_NAME, Spec

Task = Literal["classify"]
FamilyName = Literal["small", "torchvision", "timm"]
DataFormat = Literal["digits", "image-folder", "label-table", "arrays"]
RangeMethod = Literal["auto", "minmax", "percentile", "entropy", "mse"]
MetricName = Literal["top1", "top5"]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class DataSpec(Spec):
    """Labelled images and how they are split. `train`/`select`/`scored` name folders or files under `root`."""

    section: ClassVar[str] = "data"
    format: DataFormat
    root: Path | None = None
    train: str | None = None  # None: everything under root is one pool
    select: str | None = None  # None: select_fraction of the training images, stratified
    scored: str | None = None  # None: scored_fraction of the pool, stratified
    scored_fraction: Fraction = 1 / 3
    select_fraction: Fraction = 0.1
    calibrate: PositiveInt = 512  # images of train kept for calibration, in a seeded order
    color: Literal["rgb", "gray"] = "rgb"
    fit: Literal["crop", "stretch", "letterbox"] = "crop"  # crop: short side to image_size, then the centre
    skip_corrupt: bool = False
    seed: int = 0

    @model_validator(mode="after")
    def _root(self) -> DataSpec:
        if self.format == "digits":
            if self.root or self.train or self.select or self.scored:
                raise ValueError("`format: digits` is built in and takes no root, train, select or scored")
            if self.color != "gray":
                raise ValueError("`format: digits` is grayscale: write `color: gray`")
        elif self.root is None:
            raise ValueError(f"`format: {self.format}` needs `root`")
        if (self.select or self.scored) and not self.train:
            raise ValueError("`select` or `scored` is declared, so `train` must be declared too")
        return self

    def leaves(self) -> Iterator[tuple[str, object]]:
        """As every Spec; a root that is a label table also yields its images, which are part of the data."""
        yield from super().leaves()
        if self.format == "label-table" and self.root is not None and self.root.is_file():
            from edgecnn.data.tables import table_files

            for name, path in table_files(self.root):
                yield f"data.root: {name}", path


class Normalization(Spec):
    """(value / 255 - mean) / std, one number per channel."""

    mean: tuple[float, ...]
    std: tuple[PositiveFloat, ...]

    @model_validator(mode="after")
    def _lengths(self) -> Normalization:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers and std has {len(self.std)}")
        return self


IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class ModelSpec(Spec):
    """Which network. `weights`: a file (Path), a name that the family's library knows (str), or none."""

    section: ClassVar[str] = "model"
    family: FamilyName
    name: str
    weights: Path | str | None = None
    image_size: Annotated[int, Field(ge=4, le=4096)]
    normalize: Literal["imagenet", "half", "unit"] | Normalization = "imagenet"
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    width: PositiveFloat = 1.0  # family small only: multiplies the channels

    @model_validator(mode="after")
    def _width(self) -> ModelSpec:
        if self.width != 1.0 and self.family != "small":
            raise ValueError(f"`width` is for `family: small`; `{self.family}` fixes it by the model's name")
        return self

    def normalization(self, channels: int) -> Normalization:
        """The numbers for this many channels; `imagenet` in grayscale is the luma-weighted mean of the three."""
        match self.normalize:
            case "imagenet" if channels == 3:
                return IMAGENET
            case "imagenet":
                return Normalization(mean=(0.449,) * channels, std=(0.226,) * channels)
            case "half":
                return Normalization(mean=(0.5,) * channels, std=(0.5,) * channels)
            case "unit":
                return Normalization(mean=(0.0,) * channels, std=(1.0,) * channels)
            case Normalization() as given:
                return given


class DistillSpec(Spec):
    """Distillation from the teacher's logits.

    `logits`: Hinton et al. 2015, cross-entropy of softened outputs scaled by temperature². `dist`: Huang et al. 2022,
    Pearson correlation between and within classes.
    """

    method: Literal["logits", "dist"] = "logits"
    temperature: PositiveFloat = 4.0
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.7  # weight of the distillation term; 1 - alpha of the labels


class TrainSpec(Spec):
    """The training run. `epochs: 0` takes the weights as they are."""

    section: ClassVar[str] = "train"
    epochs: Annotated[int, Field(ge=0)] = 0
    batch: PositiveInt = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat = 0.001
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9  # sgd only
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 1.0
    schedule: Literal["cosine", "constant"] = "cosine"
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None  # decay per step of the averaged weights
    amp: bool = False  # mixed precision on a GPU; on a CPU it changes nothing
    channels_last: bool = True
    accumulate: PositiveInt = 1  # batches per optimizer step
    clip_norm: PositiveFloat | None = None
    augment: Literal["none", "shift", "flip", "standard", "strong"] = "standard"
    early_stop: PositiveInt | None = None  # epochs without a better select metric
    workers: Annotated[int, Field(ge=0)] = 0
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: PositiveInt | None = None  # of a CPU run; None: all cores. Another count, other last bits
    distill: DistillSpec | None = None


class TeacherSpec(ModelSpec):
    """The large network that teaches; `train` as for the student, or weights as they are."""

    section: ClassVar[str] = "teacher"
    train: TrainSpec = TrainSpec()

    @model_validator(mode="after")
    def _not_taught(self) -> TeacherSpec:
        if self.train.distill:
            raise ValueError("a teacher is not distilled: `teacher.train.distill` has no teacher of its own")
        return self


class Student(Spec):
    """Model and train sections together: what the train stage is given."""

    section: ClassVar[str] = ""
    model: ModelSpec
    train: TrainSpec


class ExportSpec(Spec):
    """The ONNX file's input and batch. Normalization is always inside the graph."""

    section: ClassVar[str] = "export"
    input: Literal["uint8-nhwc", "float01-nchw"] = "uint8-nhwc"
    batch: Literal["dynamic"] | PositiveInt = "dynamic"


class QuantizeSpec(Spec):
    """Static INT8. `images` calibration images are the first of the calibrate split."""

    section: ClassVar[str] = "quantize"
    precision: Literal["int8"] = "int8"
    images: PositiveInt = 256
    ranges: RangeMethod = "auto"
    keep_float: tuple[str, ...] = ()  # node names, exact, that stay float

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
    """What is scored on the scored split."""

    section: ClassVar[str] = "score"
    metric: MetricName = "top1"
    batch: PositiveInt = 64


class BenchSpec(Spec):
    """Interleaved timing: until both `min_pairs` and `min_seconds`, doubled up to `max_seconds` while undecided."""

    section: ClassVar[str] = "bench"
    batch: PositiveInt = 1
    threads: PositiveInt = 1  # intra-op threads of a CPU engine
    warmup_ms: PositiveInt = 200
    min_pairs: PositiveInt = 200
    min_seconds: PositiveFloat = 3.0
    max_seconds: PositiveFloat = 30.0


class Budgets(Spec):
    """Promises that the verdict decides. None: not asked, reported only."""

    section: ClassVar[str] = "budgets"
    max_accuracy_drop: Annotated[float, Field(ge=0.0, lt=0.5)] | None = None  # fraction of 1: 0.010 is one point
    max_p99_ms: PositiveFloat | None = None
    min_speedup: PositiveFloat | None = None  # against the device's best float engine
    max_size_mb: PositiveFloat | None = None  # of the INT8 ONNX file, 10^6 bytes


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
    def student(self) -> Student:
        """Model and train sections as one input of the train stage."""
        return Student(model=self.model, train=self.train)
