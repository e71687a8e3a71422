"""The training loop: epochs of a network on images, a checkpoint after each; a killed run continues from its last.

What is learned an `Objective` says. On a CPU the result is a function of the job: deterministic kernels, order and
augmentation from (seed, epoch, index), torch's generator reseeded every epoch, as many threads as the run began with.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from edgecnn.data import Index, open_images
from edgecnn.families.trained import WEIGHTS, write_state
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import TrainSpec
from edgecnn.training import checkpoint
from edgecnn.training.draws import seed_of, shuffled
from edgecnn.training.feed import Batches, Numbers, Pictures, epoch_batches, in_order
from edgecnn.training.job import TrainJob
from edgecnn.training.ranks import Ranks, pick_device
from edgecnn.training.schedule import Average, learning_rate, make_optimizer

LOOK_EVERY = 16  # steps between looks at the loss: each look waits for the GPU
EVALUATE_BATCH = 256
History = list[dict[str, Any]]


class Objective(Protocol):
    """What a task has a network learn of images, and how well the network does: made for one run."""

    @property
    def metric(self) -> str:
        """Name of what chooses the best epoch; greater is better."""

    def augment(self, pixels: torch.Tensor, numbers: Numbers, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images uint8 (N, C, S, S) by their numbers in the index → (augmented images, what is to be learned of them).

        Both depend on (seed, epoch, number) alone.
        """

    def loss(self, net: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """A scalar, of what `augment` answered."""

    def evaluate(self, net: nn.Module, batches: Iterable[tuple[torch.Tensor, Numbers]]) -> list[float]:
        """[metric, mean loss] of a network in eval mode on images as they are; the loss decides between equals."""

    def describe(self, value: float) -> str:
        """A metric's value for people, such as `top-1 98.20 %`."""


@dataclass
class Run:
    """What changes while training, and what it is trained with."""

    train: TrainSpec
    section: str  # as the recipe names these settings
    objective: Objective
    net: nn.Module  # bare: its names are those of the weights file
    stepped: nn.Module  # the same, in DistributedDataParallel where there are several processes
    device: torch.device
    ranks: Ranks
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Average | None
    precision: torch.dtype | None  # autocast's type; None is plain float32
    epoch: int = 0  # finished epochs
    best_epoch: int = 0
    best: tuple[float, float] = (-1.0, 0.0)  # the metric and minus the loss on select; the greater wins
    history: History = field(default_factory=list)

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated and delivered."""
        return self.average.net if self.average else self.net


def train_network(job: TrainJob, net: nn.Module, index: Index, ranks: Ranks, objective: Objective) -> History:
    """Train, keep the best epoch by the objective on `select`, and write weights.safetensors and last.safetensors.

    Of epochs with the same metric the one with the smaller loss on `select` wins, then the earlier.

    Raises:
        EdgeError: a loss that is not a number, an image that can't be read.
    """
    train, resume = job.train, job.out / "resume"
    resume.mkdir(exist_ok=True)
    device = pick_device(train, ranks)
    kept = checkpoint.load(resume)
    _prepare_torch(device, train.threads or (kept["threads"] if kept else None))
    run = _begin(job, net, ranks, device, objective)
    if kept:
        _restore(run, kept)
        if ranks.first:
            progress.current().note(f"train: continues after epoch {run.epoch} of {train.epochs}")
    opened = open_images(job.images, index)
    images, select = (
        Pictures(name, opened, index.splits[name], job.model.image_size, index, workers=train.workers, device=device,
                 cache_bytes=job.cache_bytes)
        for name in ("train", "select")
    )  # fmt: skip
    if ranks.first:
        progress.current().note(f"train: {_conditions(run)}, {len(images.numbers)} images")
    with progress.current().task("train", train.epochs) as task:
        while run.epoch < train.epochs and not _given_up(run):
            start = time.monotonic()
            torch.manual_seed(seed_of(train.seed, run.epoch, ranks.rank))
            row = _epoch(run, images, task)
            row["seconds"] = time.monotonic() - start
            found = evaluate(run.judged, objective, select, select.numbers)
            _finish_epoch(run, row, *ranks.agreed(found, device))
            if ranks.first:
                state = run.judged.state_dict() if run.best_epoch == run.epoch else None
                checkpoint.save(resume, _content(run), run.best_epoch, state)
            value = run.history[-1][f"select_{objective.metric}"]
            task.update(run.epoch, f"loss {row['loss']:.3f}, select {objective.describe(value)}")
    if ranks.first:
        shutil.copyfile(checkpoint.best_file(resume, run.best_epoch), job.out / WEIGHTS)
        write_state(job.out / "last.safetensors", run.judged.state_dict())
    return run.history


def _prepare_torch(device: torch.device, threads: int | None) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    else:
        torch.use_deterministic_algorithms(True)
    if threads is not None:
        torch.set_num_threads(threads)  # sums are split by thread: another count, other last bits


def _begin(job: TrainJob, net: nn.Module, ranks: Ranks, device: torch.device, objective: Objective) -> Run:
    train = job.train
    net = net.to(device, memory_format=torch.channels_last if train.channels_last else torch.contiguous_format)
    stepped = net
    if ranks.world > 1:
        stepped = nn.parallel.DistributedDataParallel(net, device_ids=[ranks.local] if device.type == "cuda" else None)
    precision = None
    if train.amp and device.type == "cuda":
        precision = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return Run(
        train, job.settings, objective, net, stepped, device, ranks, make_optimizer(train, net),
        torch.amp.GradScaler(device.type, enabled=precision == torch.float16),
        Average(net, train.ema) if train.ema else None, precision,
    )  # fmt: skip


def _epoch(run: Run, images: Pictures, task: progress.Task) -> dict[str, Any]:
    """One epoch; answers its mean loss, last learning rate and the number of images that this process saw."""
    train = run.train
    order = shuffled(train.seed, run.epoch, len(images.numbers))
    batches = epoch_batches(order, train.batch, run.ranks.rank, run.ranks.world)
    steps = -(-len(batches) // train.accumulate)
    losses = torch.zeros(len(batches), device=run.device)
    rate = 0.0
    run.stepped.train()
    for number, (places, pixels) in enumerate(zip(batches, images.batches(batches), strict=True)):
        step, place = divmod(number, train.accumulate)
        group = min(train.accumulate, len(batches) - step * train.accumulate)
        pixels, targets = run.objective.augment(pixels, images.numbers[places], run.epoch)
        with torch.autocast(run.device.type, run.precision, enabled=run.precision is not None):
            loss = run.objective.loss(run.stepped, pixels, targets)
        run.scaler.scale(loss / group).backward()
        losses[number] = loss.detach()
        if place == group - 1:
            rate = learning_rate(train, run.epoch * steps + step, steps)
            _step(run, rate, run.epoch * steps + step)
        if (number + 1) % LOOK_EVERY == 0 or number + 1 == len(batches):
            shown = _look(run, losses[: number + 1])
            task.update(run.epoch + (number + 1) / len(batches), f"epoch {run.epoch + 1}, loss {shown:.3f}")
    return {"loss": float(losses.mean()), "lr": rate, "images": sum(len(places) for places in batches)}


def _step(run: Run, rate: float, step: int) -> None:
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    if run.train.clip_norm:
        run.scaler.unscale_(run.optimizer)
        nn.utils.clip_grad_norm_(run.net.parameters(), run.train.clip_norm)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    if run.average:
        run.average.update(run.net, step)


def _look(run: Run, losses: torch.Tensor) -> float:
    """The mean loss so far. Raises an EdgeError at the first that is not a finite number."""
    if not bool(torch.isfinite(losses[-LOOK_EVERY:]).all()):
        step = int((~torch.isfinite(losses)).nonzero()[0])
        kept = f"the checkpoint of epoch {run.epoch} is kept" if run.epoch else "no epoch was finished"
        raise EdgeError(
            f"the loss is not a number (epoch {run.epoch + 1}, step {step + 1}); {kept}",
            f"lower `{run.section}.lr` (now {run.train.rate:g}), set `{run.section}.clip_norm: 1.0`, "
            f"or lengthen `{run.section}.warmup_epochs`",
        )
    return float(losses.mean())


@torch.no_grad()
def evaluate(net: nn.Module, objective: Objective, images: Batches, numbers: Numbers) -> list[float]:
    """`Objective.evaluate` of a network, in eval mode meanwhile, on images that have these numbers in the index."""
    training = net.training
    net.eval()
    batches = in_order(len(numbers), EVALUATE_BATCH)
    pairs = zip(images.batches(batches), (numbers[places] for places in batches), strict=True)
    found = objective.evaluate(net, pairs)
    net.train(training)
    return found


def _finish_epoch(run: Run, row: dict[str, Any], value: float, loss: float) -> None:
    run.epoch += 1
    run.history.append(
        {
            "epoch": run.epoch,
            "loss": row["loss"],
            f"select_{run.objective.metric}": value,
            "select_loss": loss,
            "lr": row["lr"],
            "seconds": round(row["seconds"], 3),
            "images_per_s": round(row["images"] * run.ranks.world / row["seconds"], 1),
            "conditions": _conditions(run),
        }
    )
    if run.best_epoch == 0 or (value, -loss) > run.best:
        run.best, run.best_epoch = (value, -loss), run.epoch


def _given_up(run: Run) -> bool:
    patience = run.train.early_stop
    return patience is not None and run.epoch - run.best_epoch >= patience


def _stateful(run: Run) -> dict[str, Any]:
    parts = {"net": run.net, "optimizer": run.optimizer, "scaler": run.scaler}
    return {**parts, "average": run.average.net} if run.average else parts


def _content(run: Run) -> checkpoint.Content:
    facts = {"epoch": run.epoch, "best_epoch": run.best_epoch, "best": list(run.best), "history": run.history}
    states = {name: part.state_dict() for name, part in _stateful(run).items()}
    return {**facts, "threads": torch.get_num_threads(), **states}


def _restore(run: Run, content: checkpoint.Content) -> None:
    run.epoch, run.best_epoch = content["epoch"], content["best_epoch"]
    run.best, run.history = (content["best"][0], content["best"][1]), content["history"]
    for name, part in _stateful(run).items():
        part.load_state_dict(content[name])


def _conditions(run: Run) -> str:
    where = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "CPU"
    number = {torch.bfloat16: "bfloat16", torch.float16: "float16", None: "float32"}[run.precision]
    threads = f", {torch.get_num_threads()} threads" if run.device.type == "cpu" else ""
    many = f" x {run.ranks.world}" if run.ranks.world > 1 else ""
    return f"{where}{many}{threads}, {number}"
