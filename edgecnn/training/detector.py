"""Training of a detector by Ultralytics' own trainer, driven by the recipe: their losses, augmentation and averaging.

Their run folder lies in the stage's `resume/` folder, so a killed run continues from its last epoch; their console is
replaced by our progress. They see the training images as files made for them (`detector_files`), whatever the format of
the dataset, and look at the `select` split after every epoch, never at the scored one.
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

from edgecnn.data import Index
from edgecnn.data.tables import listed
from edgecnn.families.pickled import read_torch
from edgecnn.families.trained import WEIGHTS, write_state
from edgecnn.families.ultralytics import CLASSES, DISTILS, TRAINS_BF16, DetectionTrainer, read_checkpoint
from edgecnn.process import progress
from edgecnn.process.disk import write_json
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import TrainSpec
from edgecnn.tasks.detect.boxes import read_boxes
from edgecnn.training.detector_files import described, image_file, write_dataset, write_teacher
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
    catch_up(history, last)
    if len(history) < job.train.epochs and not given_up(history, job.train):
        continued = history and last.exists()
        if continued and ranks.first:
            progress.current().note(f"train: continues after epoch {len(history)} of {job.train.epochs}")
        settings = overrides(job, index, resume, teacher, ranks, last if continued else None)
        trainer = Trainer(net, index, settings)
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
    half = train.amp and gpu and torch.cuda.is_bf16_supported(including_emulation=False) and TRAINS_BF16
    if train.amp and gpu and not half and ranks.first:
        without = "this GPU has no bfloat16" if TRAINS_BF16 else "this version of Ultralytics trains in no bfloat16"
        progress.current().note(f"train: {without}; trained in float32")
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
        "optimizer": {"auto": "auto", "adamw": "AdamW", "sgd": "SGD"}[train.optimizer],
        "lr0": chosen_rate(train, len(index.classes)),
        "warmup_bias_lr": 0.0,  # as `auto` has it: their 0.1 destroys what a pretrained network knows
        "lrf": 0.01 if train.schedule == "cosine" else 1.0,
        "cos_lr": train.schedule == "cosine",
        "momentum": train.momentum,
        "weight_decay": train.weight_decay,
        "warmup_epochs": train.warmup_epochs,
        "nbs": train.batch * train.accumulate,
        "patience": train.early_stop or 0,
        "close_mosaic": min(CLOSE_MOSAIC, train.epochs // 2),
        # Its own check of half precision fetches a network; bfloat16 needs none.
        "amp": "bf16" if half else False,
        "seed": train.seed,
        "deterministic": True,
        "plots": False,
        "verbose": False,
        "augmentations": [],  # none of a library that may be installed beside
        **AUGMENT[train.augment],
    }
    if teacher is not None and train.distill is not None:
        if not DISTILS:
            raise EdgeError("this version of Ultralytics can't distil", "pip install --upgrade ultralytics")
        settings |= {"distill_model": str(teacher), "dis": train.distill.gain}
    if last is not None:
        settings["resume"] = str(last)
    return settings


def chosen_rate(train: TrainSpec, classes: int) -> float:
    """`lr`, or what Ultralytics' trainer takes for that optimizer; with `optimizer: auto` it takes no other number."""
    if train.lr is not None:
        return train.lr
    return 0.01 if train.optimizer == "sgd" else round(0.002 * 5 / (4 + classes), 6)


class Trainer(DetectionTrainer):
    """Ultralytics' trainer of a network that is made already, on our dataset, without its plots and last validation."""

    def __init__(self, net: nn.Module, index: Index, settings: dict[str, Any]) -> None:
        self.given, self.index, self.folder = net, index, Path(settings["data"]).parent
        self.history: History = []
        self.history_file = Path()
        threads = torch.get_num_threads()
        super().__init__(overrides=settings)
        torch.set_num_threads(threads)  # theirs takes another number of CPU threads with the device

    def get_dataset(self) -> dict[str, Any]:
        """Ours as it is: theirs would look for it elsewhere too, and fetch a font and the dataset."""
        return described(self.folder, self.index)

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Theirs, of every image that was given.

        Raises:
            EdgeError: it dropped some; they are named.
        """
        dataset = super().build_dataset(img_path, mode, batch)
        taken = set(dataset.im_files)
        numbers = self.index.splits["train" if mode == "train" else "select"].tolist()
        dropped = [str(self.index.files[n]) for n in numbers if str(image_file(self.folder, n)) not in taken]
        if dropped:
            raise EdgeError(
                f"Ultralytics' trainer drops {len(dropped)} of {len(numbers)} images: {listed(dropped)}",
                "look at these images and their boxes, or remove them",
            )
        return dataset

    def read_results_csv(self) -> dict[str, Any]:
        """Nothing: the history is kept beside."""
        return {}

    def save_model(self) -> Any:
        """Write the checkpoints beside and rename them, so that a kill leaves a whole one."""
        best, last = self.wdir / "best.pt", self.wdir / "last.pt"
        finished = {path: path.with_suffix(".partial") for path in (best, last)}
        self.best, self.last = finished[best], finished[last]
        try:
            done = super().save_model()
        finally:
            self.best, self.last = best, last
        for path, partial in finished.items():
            if partial.exists():
                os.replace(partial, path)
        return done

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
            # The place of the names, and whether values are a tensor or a dict, differ among their versions.
            items = run.label_loss_items(run.tloss, prefix="train")
            losses = {name.removeprefix("train/").partition("_")[0]: float(value) for name, value in items.items()}
            if not all(np.isfinite(value) for value in losses.values()):
                raise EdgeError(
                    f"epoch {run.epoch + 1}: the loss is not a number",
                    f"lower `{job.settings}.lr`, or set `{job.settings}.amp` to false",
                )
            score = float(run.metrics.get(MAP, 0.0))
            seconds = round(time.monotonic() - clock[0], 3)
            clock[0] = time.monotonic()
            trainer.history.append({"epoch": run.epoch + 1, "map50_95": score, "losses": losses, "seconds": seconds})
            write_json(trainer.history_file, trainer.history)
            task.update(len(trainer.history), f"mAP50-95 {100 * score:.1f} on select")

        def told(run: Any) -> None:
            rate = min(group["initial_lr"] for group in run.optimizer.param_groups)
            progress.current().note(f"train: {type(run.optimizer).__name__}, learning rate {rate:g}")

        clock = [time.monotonic()]
        if ranks.first:
            trainer.add_callback("on_pretrain_routine_end", told)
            trainer.add_callback("on_model_save", saved)
        task.update(started, "")
        trainer.train()


def catch_up(history: History, last: Path) -> None:
    """Add the epoch that a run was killed after: its checkpoint is written before its row of the history."""
    if not last.exists():
        return
    content = read_torch(last, CLASSES, trusted=False)
    if content["epoch"] == len(history):
        score = float(content["train_metrics"].get(MAP, 0.0))
        history.append({"epoch": len(history) + 1, "map50_95": score, "losses": {}, "seconds": 0.0})


def given_up(history: History, train: TrainSpec) -> bool:
    """Early stop was reached before the run was killed."""
    if not train.early_stop or not history:
        return False
    best = int(np.argmax([row["map50_95"] for row in history]))
    return len(history) - 1 - best >= train.early_stop
