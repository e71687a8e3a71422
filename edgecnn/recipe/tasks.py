"""What a recipe may say of each task: one row a task. What computes it is a room in `edgecnn/tasks`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskName = Literal["classify", "detect"]
DataFormat = Literal["digits", "image-folder", "label-table", "arrays", "yolo", "coco", "voc"]
MetricName = Literal["top1", "top5", "map50_95", "map50"]
FamilyName = Literal["small", "torchvision", "timm", "ultralytics", "onnx"]
DistillName = Literal["logits", "dist", "feature"]
Fit = Literal["crop", "stretch", "letterbox"]


@dataclass(frozen=True)
class Traits:
    """What a recipe's keys may hold for a task; the first fit is its default."""

    labels: str  # what its data formats hold, for messages
    formats: tuple[DataFormat, ...]
    metrics: tuple[MetricName, ...]
    families: tuple[FamilyName, ...]
    fits: tuple[Fit, ...]
    distill: tuple[DistillName, ...]
    boxes: bool = False  # answers are boxes that are suppressed: `export.nms`
    auto: bool = False  # its trainer chooses where `train.optimizer: auto` and `lr: null` say so


TASKS: dict[TaskName, Traits] = {
    "classify": Traits(
        labels="labels of whole images",
        formats=("digits", "image-folder", "label-table", "arrays"),
        metrics=("top1", "top5"),
        families=("small", "torchvision", "timm", "onnx"),
        fits=("crop", "stretch", "letterbox"),
        distill=("logits", "dist"),
    ),
    "detect": Traits(
        labels="boxes",
        formats=("yolo", "coco", "voc"),
        metrics=("map50_95", "map50"),
        families=("ultralytics", "onnx"),
        fits=("letterbox",),
        distill=("feature",),
        boxes=True,
        auto=True,
    ),
}


def task_of_format(form: object) -> TaskName:
    """The task whose labels a data format holds."""
    return next((name for name, traits in TASKS.items() if form in traits.formats), "classify")


def task_of_metric(metric: str) -> TaskName:
    """The task that a metric is of."""
    return next((name for name, traits in TASKS.items() if metric in traits.metrics), "classify")
