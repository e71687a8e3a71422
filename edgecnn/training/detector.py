"""Training of a detector by Ultralytics' own trainer, driven by the recipe: their losses, augmentation and averaging.

Their run folder lies in the stage's `resume/` folder, so a killed run continues from its last epoch; their console is
replaced by our progress. They see the training images as links with YOLO label files made from our boxes, whatever the
format of the dataset, and look at the `select` split after every epoch, never at the scored one.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgecnn import progress
from edgecnn.data import Index
from edgecnn.data.boxes import Boxes, read_boxes
from edgecnn.data.openers import image_folder
from edgecnn.errors import EdgeError
from edgecnn.families.trained import WEIGHTS, read_trained, write_state
from edgecnn.families.ultralytics import DetectionTrainer, read_checkpoint
from edgecnn.recipe import DataSpec, TrainSpec
from edgecnn.training.job import TrainJob
from edgecnn.training.loop import History
from edgecnn.training.ranks import Ranks, pick_device

MAP = "metrics/mAP50-95(B)"
CLOSE_MOSAIC = 10  # last epochs without mosaic, Ultralytics' default; at most half of the run
AUGMENT: dict[str, dict[str, float]] = {
    "none": dict.fromkeys(("mosaic", "hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr"), 0.0),
    "flip": {**dict.fromkeys(("mosaic", "hsv_h", "hsv_s", "hsv_v", "translate", "scale"), 0.0), "fliplr": 0.5},
    "shift": {**dict.fromkeys(("mosaic", "hsv_h", "hsv_s", "hsv_v", "scale", "fliplr"), 0.0), "translate": 0.1},
    "standard": {},  # Ultralytics' own defaults
    "strong": {"mixup": 0.15, "scale": 0.9, "degrees": 5.0},
}


def train_detector(job: TrainJob, net: nn.Module, index: Index, ranks: Ranks) -> History:
    """Train `net`; write weights.safetensors (the best epoch by mAP50-95 on select, averaged) and last.safetensors.

    Raises:
        EdgeError: a setting that Ultralytics' trainer does not have, a loss that is not a number, a teacher that does
            not fit.
    """
    refuse_foreign(job.train, job.settings)
    resume = job.out / "resume"
    run, done = resume / "run", resume / "epochs.json"
    history: History = json.loads(done.read_text()) if done.exists() else []
    if ranks.first:
        write_dataset(resume / "dataset", job.images, index, read_boxes(job.data / "boxes.npz"))
    ranks.wait()
    teacher = write_teacher(resume / "teacher.pt", job.teacher, index) if job.teacher else None
    if job.train.threads:
        torch.set_num_threads(job.train.threads)
    best, last = run / "weights" / "best.pt", run / "weights" / "last.pt"
    if len(history) < job.train.epochs and not given_up(history, job.train):
        continued = history and last.exists()
        if continued and ranks.first:
            progress.current().note(f"train: continues after epoch {len(history)} of {job.train.epochs}")
        trainer = Trainer(net, overrides(job, index, resume, teacher, ranks, last if continued else None))
        trainer.history, trainer.history_file = history, done
        _run(trainer, job, ranks)
    if ranks.first:
        write_state(job.out / WEIGHTS, read_checkpoint(best if best.exists() else last))
        write_state(job.out / "last.safetensors", read_checkpoint(last))
    return history


def refuse_foreign(train: TrainSpec, section: str) -> None:
    """Refuse what Ultralytics' trainer decides by itself.

    Raises:
        EdgeError: a recipe sets it.
    """
    fixed = {
        "label_smoothing": (train.label_smoothing, 0.0, "its detection losses have none"),
        "ema": (train.ema, None, "it always averages the weights"),
        "clip_norm": (train.clip_norm, None, "it always clips gradients to 10"),
    }
    for key, (value, default, why) in fixed.items():
        if value != default:
            raise EdgeError(f"`{section}.{key}` does not apply to `family: ultralytics`: {why}", "leave it out")


def overrides(
    job: TrainJob, index: Index, resume: Path, teacher: Path | None, ranks: Ranks, last: Path | None
) -> dict[str, Any]:
    """The recipe in the words of Ultralytics' settings."""
    train = job.train
    device = pick_device(train, ranks)
    gpu = device.type == "cuda"
    if train.amp and gpu and not torch.cuda.is_bf16_supported(including_emulation=False) and ranks.first:
        progress.current().note("train: this GPU has no bfloat16; trained in float32")
    settings: dict[str, Any] = {
        "task": "detect",
        "mode": "train",
        "model": f"{job.model.name}.yaml",
        "data": str(resume / "dataset" / "data.yaml"),
        "epochs": train.epochs,
        "batch": train.batch,
        "imgsz": index.image_size,
        "device": ",".join(str(number) for number in range(ranks.world)) if gpu else "cpu",
        "workers": train.workers,
        "project": str(resume),
        "name": "run",
        "exist_ok": True,
        "optimizer": {"adamw": "AdamW", "sgd": "SGD"}[train.optimizer],
        "lr0": train.lr,
        "lrf": 0.01 if train.schedule == "cosine" else 1.0,
        "cos_lr": train.schedule == "cosine",
        "momentum": train.momentum,
        "weight_decay": train.weight_decay,
        "warmup_epochs": train.warmup_epochs,
        "nbs": train.batch * train.accumulate,
        "patience": train.early_stop or 0,
        "close_mosaic": min(CLOSE_MOSAIC, train.epochs // 2),
        # Its own check of half precision fetches a network; bfloat16 needs none.
        "amp": "bf16" if train.amp and gpu and torch.cuda.is_bf16_supported(including_emulation=False) else False,
        "seed": train.seed,
        "deterministic": True,
        "plots": False,
        "verbose": False,
        **AUGMENT[train.augment],
    }
    if teacher is not None and train.distill is not None:
        settings |= {"distill_model": str(teacher), "dis": train.distill.gain}
    if last is not None:
        settings["resume"] = str(last)
    return settings


class Trainer(DetectionTrainer):
    """Ultralytics' trainer of a network that is made already, without its plots and its last validation."""

    def __init__(self, net: nn.Module, settings: dict[str, Any]) -> None:
        self.given = net
        self.history: History = []
        self.history_file = Path()
        super().__init__(overrides=settings)

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
        """The given network; with the weights of a checkpoint when a run continues."""
        model = self.given.train()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        if weights is not None:
            model.load_state_dict(weights.float().state_dict())
        return model

    def _setup_ddp(self) -> None:
        """The group of processes is joined already; only the device is chosen."""
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device("cuda", local)
        torch.cuda.set_device(self.device)

    def final_eval(self) -> None:
        """Nothing: the best epoch is scored by the pages of the build, and its checkpoint kept as it is."""


def _run(trainer: Trainer, job: TrainJob, ranks: Ranks) -> None:
    started = len(trainer.history)
    with progress.current().task("train", job.train.epochs) as task:

        def saved(run: Any) -> None:  # after the epoch was looked at on select and its checkpoint written
            losses = {name.partition("_")[0]: float(value) for name, value in (run.tloss or {}).items()}
            if not all(np.isfinite(value) for value in losses.values()):
                raise EdgeError(
                    f"epoch {run.epoch + 1}: the loss is not a number",
                    f"lower `{job.settings}.lr`, or set `{job.settings}.amp` to false",
                )
            score = float(run.metrics.get(MAP, 0.0))
            seconds = round(time.monotonic() - clock[0], 3)
            clock[0] = time.monotonic()
            trainer.history.append({"epoch": run.epoch + 1, "map50_95": score, "losses": losses, "seconds": seconds})
            partial = trainer.history_file.with_suffix(".partial")
            partial.write_text(json.dumps(trainer.history))
            os.replace(partial, trainer.history_file)
            task.update(len(trainer.history), f"mAP50-95 {100 * score:.1f} on select")

        clock = [time.monotonic()]
        if ranks.first:
            trainer.add_callback("on_model_save", saved)
        task.update(started, "")
        trainer.train()


def given_up(history: History, train: TrainSpec) -> bool:
    """Early stop was reached before the run was killed."""
    if not train.early_stop or not history:
        return False
    best = int(np.argmax([row["map50_95"] for row in history]))
    return len(history) - 1 - best >= train.early_stop


def write_dataset(folder: Path, spec: DataSpec, index: Index, boxes: Boxes) -> None:
    """A YOLO dataset of the train and select splits: links to the images, label files, lists, data.yaml."""
    import yaml

    root = image_folder(spec)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    for part in ("train", "select"):
        lines = []
        for number in index.splits[part].tolist():
            source = (root / (index.files[number] or "")).absolute()
            link = folder / "images" / f"{number:07d}{source.suffix.lower()}"
            if not link.is_symlink():
                link.symlink_to(source)
            (folder / "labels" / f"{number:07d}.txt").write_text(label_text(boxes, number))
            lines.append(str(link.absolute()))
        (folder / f"{part}.txt").write_text("\n".join(lines) + "\n")
    content = {
        "path": str(folder.absolute()), "train": "train.txt", "val": "select.txt", "nc": len(index.classes),
        "names": list(index.classes), "channels": index.channels,
    }  # fmt: skip
    (folder / "data.yaml").write_text(yaml.safe_dump(content, allow_unicode=True))


def label_text(boxes: Boxes, number: int) -> str:
    """The lines of one image's label file; crowd and difficult boxes are not trained on."""
    height, width = (float(side) for side in boxes.sizes[number])
    found, kinds, crowd = boxes.of(number)
    lines = []
    for (x1, y1, x2, y2), kind, group in zip(found.astype(np.float64), kinds, crowd, strict=True):
        if not group:
            centre = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height)
            lines.append(f"{kind} {centre[0]:.8f} {centre[1]:.8f} {(x2 - x1) / width:.8f} {(y2 - y1) / height:.8f}")
    return "\n".join(lines)


def write_teacher(path: Path, folder: Path, index: Index) -> Path:
    """The teacher as a file that Ultralytics' distillation reads.

    Raises:
        EdgeError: it is no detector of these classes.
    """
    trained = read_trained(folder)
    if trained.card.family != "ultralytics" or trained.card.classes != index.classes:
        raise EdgeError(
            f"the teacher knows {len(trained.card.classes)} classes, the data has {len(index.classes)}",
            "train the teacher on this data (`teacher.train.epochs`), or take one of these classes",
        )
    content = {"model": trained.net, "ema": None, "train_args": {}, "epoch": -1, "date": None, "version": "0"}
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, path)
    return path
