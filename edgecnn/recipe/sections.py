"""The recipe's sections up to the trained network: which images, which model, how it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from edgecnn.recipe.spec import Spec
from edgecnn.recipe.tasks import TASKS, DataFormat, DistillName, FamilyName, Fit, TaskName, task_of_format

Part = Literal["train", "select", "scored"]
Threads = Annotated[int, Field(ge=1, le=1024)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class DataSpec(Spec):
    """Labelled images and how they are split. `train`/`select`/`scored` name folders or files under `root`."""

    section: ClassVar[str] = "data"
    format: DataFormat
    """How the images and labels are stored."""
    root: Path | None = None
    """Folder or file of the data; relative to the recipe, else to EDGECNN_DATA."""
    train: str | None = None
    """Folder, file or list of the training images under `root`; left out, everything is one pool, which is split."""
    select: str | None = None
    """Images that choose epochs and recovery rungs; left out, `select_fraction` of the training images, stratified."""
    scored: str | None = None
    """Images that the verdict is of; left out, `scored_fraction` of the pool, stratified."""
    scored_fraction: Fraction = 1 / 3
    """Part of the pool held out for scoring where `scored` is not declared."""
    select_fraction: Fraction = 0.1
    """Part of the training images held out for selection where `select` is not declared."""
    calibrate: PositiveInt = 512
    """Maximum number of training images kept for calibration, in a seeded order."""
    color: Literal["rgb", "gray"] = "rgb"
    """Channels that every image is read with: rgb is 3, gray is 1."""
    fit: Fit = "crop"
    """How an image gets the model's size: `crop` scales the short side and cuts the centre, `stretch` scales both,
    `letterbox` scales the long side and pads. Default: crop; for boxes, letterbox."""
    skip_corrupt: bool = False
    """Leave out images that can't be read, and report them, instead of stopping."""
    seed: int = 0
    """Seed of the splits and of the order of calibration images."""

    @model_validator(mode="before")
    @classmethod
    def _fit(cls, values: object) -> object:
        if isinstance(values, dict) and "fit" not in values:
            return {**values, "fit": TASKS[task_of_format(values.get("format"))].fits[0]}
        return values

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

    @property
    def task(self) -> TaskName:
        """The task whose labels these are."""
        return task_of_format(self.format)

    @property
    def declared(self) -> dict[Part, str]:
        """The sets that are named, in the order of their images' numbers."""
        named: dict[Part, str | None] = {"train": self.train, "select": self.select, "scored": self.scored}
        return {part: name for part, name in named.items() if name}

    @property
    def place(self) -> Path:
        """`root`, which every format but digits has."""
        assert self.root is not None
        return self.root


class Normalization(Spec):
    """(value / 255 - mean) / std, one number per channel."""

    mean: tuple[float, ...]
    """Subtracted from pixels in 0..1, one number per channel."""
    std: tuple[PositiveFloat, ...]
    """Divides after `mean` is subtracted, one number per channel."""

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
    """Library that the network comes from; `onnx`: a file of your own, which is neither trained nor exported."""
    name: str
    """Model name as the family writes it, such as resnet18 or yolov8n; for onnx, any name (default: the file's)."""
    weights: Path | str | None = None
    """A weights file (a path with a slash, or a file beside the recipe), or a name the library knows; none: random."""
    image_size: Annotated[int, Field(ge=4, le=4096)]
    """Side in pixels of the square images that the network takes."""
    normalize: Literal["imagenet", "half", "unit"] | Normalization | None = None
    """Normalization inside the graph: `imagenet`, `half` (-1..1), `unit` (0..1), or numbers; left out, the family's."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout before the classifier while training."""
    width: PositiveFloat = 1.0
    """Multiplies the channels; `family: small` only."""
    input: str | None = None
    """How a file of your own takes images, as `edgecnn quantize --input`; `family: onnx` only."""
    decode: str | None = None
    """Layout of your own detector's output, as `edgecnn quantize --decode`; `family: onnx` only."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("family") == "onnx" and "name" not in values:
            return {**values, "name": Path(str(values.get("weights") or "")).stem}
        return values

    @model_validator(mode="after")
    def _own(self) -> ModelSpec:
        if self.own_file and self.weights is None:
            raise ValueError("`family: onnx` is a file of your own: give it as `weights`")
        if not self.own_file and (self.input is not None or self.decode is not None):
            raise ValueError("`input` and `decode` are for `family: onnx`; other families know them")
        if self.own_file and (self.normalize is not None or self.dropout):
            raise ValueError("`family: onnx` takes the file as it is: describe its input by `input`, not `normalize`")
        return self

    @property
    def own_file(self) -> bool:
        """The network is the user's own file: neither trained nor exported here."""
        return self.family == "onnx"

    @model_validator(mode="after")
    def _normalize(self) -> ModelSpec:
        given = self.normalize
        unit = (
            set(given.mean) == {0.0} and set(given.std) == {1.0}
            if isinstance(given, Normalization)
            else given == "unit"
        )
        if self.family == "ultralytics" and given is not None and not unit:
            raise ValueError("`family: ultralytics` takes images in 0..1: leave `normalize` out")
        return self

    @model_validator(mode="after")
    def _width(self) -> ModelSpec:
        if self.width != 1.0 and self.family != "small":
            raise ValueError(f"`width` is for `family: small`; `{self.family}` fixes it by the model's name")
        return self

    def normalization(self, channels: int) -> Normalization:
        """The numbers for this many channels; `imagenet` in grayscale is the luma-weighted mean of the three."""
        match self.normalize or ("unit" if self.family == "ultralytics" else "imagenet"):
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
    Pearson correlation between and within classes. `feature`, of detectors: the feature maps before the head.
    """

    method: DistillName = "logits"
    """Distillation loss: `logits` or `dist` for classifiers, `feature` for detectors."""
    temperature: PositiveFloat = 4.0
    """Softens both networks' outputs."""
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.7
    """Weight of the distillation term; 1 - alpha is that of the labels."""
    gain: PositiveFloat = 6.0
    """Weight of the `feature` term beside the detector's own losses."""


class TrainSpec(Spec):
    """The training run. `epochs: 0` takes the weights as they are."""

    section: ClassVar[str] = "train"
    epochs: Annotated[int, Field(ge=0)] = 0
    """Passes over the training images; 0 takes the weights as they are."""
    batch: PositiveInt = 64
    """Images per batch."""
    optimizer: Literal["auto", "adamw", "sgd"] = "adamw"
    """Optimizer; `auto`, a detector's default: what its trainer takes for the length of the run."""
    lr: PositiveFloat | None = 0.001
    """Peak learning rate; null, a detector's default: what its trainer takes for the number of classes."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Weight decay, decoupled with adamw; a detector's default is 0.0005."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Momentum of sgd."""
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 1.0
    """Epochs over which the learning rate rises to `lr`; a detector's default, with its own `lr`, is 3."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Part of the label's weight that is spread over all classes."""
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay per step of averaged weights, which are then the result; left out: no averaging."""
    amp: bool = False
    """Mixed precision on a GPU; on a CPU it changes nothing."""
    channels_last: bool = True
    """Memory layout of the training tensors."""
    accumulate: PositiveInt = 1
    """Batches per optimizer step; a detector's default, with its own `lr`, makes 64 images a step."""
    clip_norm: PositiveFloat | None = None
    """Maximum norm of the gradients; left out: not clipped."""
    augment: Literal["none", "shift", "flip", "standard", "strong"] = "standard"
    """Augmentation of the training images."""
    early_stop: PositiveInt | None = None
    """Stop after this many epochs without a better metric on the select images; left out: never."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes that load images; 0 loads in the training process."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` takes a GPU if there is one."""
    threads: Threads | None = None
    """CPU threads; left out: all cores. Another number changes the last bits of the weights."""
    distill: DistillSpec | None = None
    """Learn from the `teacher` section's network; left out: from the labels alone."""

    @property
    def rate(self) -> float:
        """`lr` of a classifier, which is always a number."""
        assert self.lr is not None
        return self.lr


AUTO = (
    "`optimizer: auto` and `lr: null` of train, as Ultralytics' trainer has them: AdamW at 0.002 * 5 / (4 + classes), "
    "in runs of more than 10,000 steps another optimizer at 0.01 (the build tells which); biases warm up from 0, as "
    "all weights do"
)


def detector_defaults(train: object) -> object:
    """A detector's train section as a file has it, with what Ultralytics' trainer takes where nothing is written."""
    if not isinstance(train, dict):
        return train
    chosen: dict[str, object] = {"optimizer": "adamw", "weight_decay": 0.0005}
    if train.get("lr") is None:
        batch = train.get("batch", 64)
        steps = max(1, round(64 / batch)) if isinstance(batch, int) and batch > 0 else 1
        # Their rate is one for 64 images a step, and for their longer warm-up.
        chosen |= {"optimizer": "auto", "lr": None, "accumulate": steps, "warmup_epochs": 3.0}
    return {**chosen, **train}


class TeacherSpec(ModelSpec):
    """The large network that teaches; `train` as for the student, or weights as they are."""

    section: ClassVar[str] = "teacher"
    train: TrainSpec = TrainSpec()
    """The teacher's own training, as the top-level `train`."""

    @model_validator(mode="before")
    @classmethod
    def _detector(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("family") == "ultralytics":
            return {**values, "train": detector_defaults(values.get("train", {}))}
        return values

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
