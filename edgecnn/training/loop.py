"""The training loop: epochs of a network on images, a checkpoint after each; a killed run continues from its last.

On a CPU the result is a function of the job: deterministic kernels, order and augmentation from (seed, epoch, index),
torch's generator reseeded every epoch, and as many threads as the run began with.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgecnn.data import Index, open_images
from edgecnn.families.trained import WEIGHTS, write_state
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import TrainSpec
from edgecnn.training import checkpoint
from edgecnn.training.augment import augment
from edgecnn.training.distill import Teacher, distillation_loss, load_teacher
from edgecnn.training.draws import seed_of, shuffled
from edgecnn.training.feed import Batches, Normalizer, Pictures, epoch_batches, in_order
from edgecnn.training.job import TrainJob
from edgecnn.training.ranks import Ranks, pick_device
from edgecnn.training.schedule import Average, learning_rate, make_optimizer

LOOK_EVERY = 16  # steps between looks at the loss: each look waits for the GPU
EVALUATE_BATCH = 256
History = list[dict[str, Any]]
Feed = Callable[[torch.Tensor], torch.Tensor]  # uint8 (N, C, S, S) → what the network takes


@dataclass
class Run:
    """What changes while training, and what it is trained with."""

    train: TrainSpec
    section: str  # as the recipe names these settings
    net: nn.Module  # bare: its names are those of the weights file
    stepped: nn.Module  # the same, in DistributedDataParallel where there are several processes
    device: torch.device
    ranks: Ranks
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Average | None
    precision: torch.dtype | None  # autocast's type; None is plain float32
    teacher: Teacher | None
    normalizer: Feed
    epoch: int = 0  # finished epochs
    best_epoch: int = 0
    best: tuple[float, float] = (-1.0, 0.0)  # top-1 and minus the loss on select; the greater wins
    history: History = field(default_factory=list)

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated and delivered."""
        return self.average.net if self.average else self.net


def train_network(
    job: TrainJob, net: nn.Module, index: Index, ranks: Ranks, teacher: Teacher | None = None, feed: Feed | None = None
) -> History:
    """Train, keep the best epoch by top-1 on `select`, and write weights.safetensors and last.safetensors.

    Of epochs with the same top-1 the one with the smaller loss on `select` wins, then the earlier.

    Args:
        teacher: whom to distil from; None: the job's, if it has one.
        feed: what the network is fed; None: images normalized as the job's model says.

    Raises:
        EdgeError: a loss that is not a number, an image that can't be read, a teacher of other classes.
    """
    train, resume = job.train, job.out / "resume"
    resume.mkdir(exist_ok=True)
    device = pick_device(train, ranks)
    kept = checkpoint.load(resume)
    _prepare_torch(device, train.threads or (kept["threads"] if kept else None))
    run = _begin(job, net, index, ranks, device, teacher, feed)
    if kept:
        _restore(run, kept)
        if ranks.first:
            progress.current().note(f"train: continues after epoch {run.epoch} of {train.epochs}")
    opened = open_images(job.images, index)
    size = job.model.image_size
    numbers, looked = index.splits["train"], index.splits["select"]
    images = Pictures(
        "train", opened, numbers, size, index, workers=train.workers, device=device, cache_bytes=job.cache_bytes
    )  # fmt: skip
    select = Pictures(
        "select", opened, looked, size, index, workers=train.workers, device=device, cache_bytes=job.cache_bytes
    )  # fmt: skip
    targets = torch.from_numpy(index.labels[numbers]).to(device)
    truth = torch.from_numpy(index.labels[looked]).to(device)
    if ranks.first:
        progress.current().note(f"train: {_conditions(run)}, {len(numbers)} images")
    with progress.current().task("train", train.epochs) as task:
        while run.epoch < train.epochs and not _given_up(run):
            start = time.monotonic()
            torch.manual_seed(seed_of(train.seed, run.epoch, ranks.rank))
            loss, rate, seen = _epoch(run, images, targets, numbers, task)
            seconds = time.monotonic() - start
            top1, select_loss = ranks.agreed(evaluate(run.judged, select, truth, run.normalizer), device)
            _finish_epoch(run, loss, rate, top1, select_loss, seen, seconds)
            if ranks.first:
                best = run.best_epoch == run.epoch
                content, state = _content(run), run.judged.state_dict() if best else None
                checkpoint.save(resume, content, run.best_epoch, state)
            task.update(run.epoch, _text(loss, top1))
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


def _begin(
    job: TrainJob, net: nn.Module, index: Index, ranks: Ranks, device: torch.device, teacher: Teacher | None,
    feed: Feed | None,
) -> Run:  # fmt: skip
    train = job.train
    layout = torch.channels_last if train.channels_last else torch.contiguous_format
    net = net.to(device, memory_format=layout)
    stepped = net
    if ranks.world > 1:
        stepped = nn.parallel.DistributedDataParallel(net, device_ids=[ranks.local] if device.type == "cuda" else None)
    precision = None
    if train.amp and device.type == "cuda":
        precision = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if teacher is None and train.distill and job.teacher:
        teacher = load_teacher(job.teacher, index.classes, device, train.channels_last)
    return Run(
        train, job.settings, net, stepped, device, ranks, make_optimizer(train, net),
        torch.amp.GradScaler(device.type, enabled=precision == torch.float16),
        Average(net, train.ema) if train.ema else None, precision, teacher,
        feed or Normalizer(job.model.normalization(index.channels), device, train.channels_last),
    )  # fmt: skip


def _epoch(
    run: Run, images: Pictures, targets: torch.Tensor, numbers: Any, task: progress.Task
) -> tuple[float, float, int]:
    """One epoch; answers its mean loss, last learning rate and the number of images that this process saw."""
    train = run.train
    order = shuffled(train.seed, run.epoch, len(numbers))
    batches = epoch_batches(order, train.batch, run.ranks.rank, run.ranks.world)
    steps = -(-len(batches) // train.accumulate)
    losses = torch.zeros(len(batches), device=run.device)
    rate = 0.0
    run.stepped.train()
    for number, (places, pixels) in enumerate(zip(batches, images.batches(batches), strict=True)):
        step, place = divmod(number, train.accumulate)
        group = min(train.accumulate, len(batches) - step * train.accumulate)
        pixels = augment(train.augment, pixels, train.seed, run.epoch, numbers[places])
        loss = _loss(run, pixels, targets[torch.from_numpy(places).to(run.device)])
        run.scaler.scale(loss / group).backward()
        losses[number] = loss.detach()
        if place == group - 1:
            rate = learning_rate(train, run.epoch * steps + step, steps)
            _step(run, rate, run.epoch * steps + step)
        if (number + 1) % LOOK_EVERY == 0 or number + 1 == len(batches):
            shown = _look(run, losses[: number + 1])
            task.update(run.epoch + (number + 1) / len(batches), f"epoch {run.epoch + 1}, loss {shown:.3f}")
    return float(losses.mean()), rate, sum(len(places) for places in batches)


def _loss(run: Run, pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    spec = run.train.distill
    with torch.autocast(run.device.type, run.precision, enabled=run.precision is not None):
        student = run.stepped(run.normalizer(pixels))
        teacher = run.teacher.logits(pixels) if run.teacher else None
    loss = functional.cross_entropy(student.float(), targets, label_smoothing=run.train.label_smoothing)
    if spec and teacher is not None:
        loss = (1 - spec.alpha) * loss + spec.alpha * distillation_loss(spec, student.float(), teacher.float())
    return loss


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
def evaluate(net: nn.Module, images: Batches, truth: torch.Tensor, normalizer: Feed) -> list[float]:
    """[top-1 as a fraction, mean cross-entropy] of a network in eval mode, float32."""
    training = net.training
    net.eval()
    right, loss = 0, 0.0
    batches = in_order(len(truth), EVALUATE_BATCH)
    for places, pixels in zip(batches, images.batches(batches), strict=True):
        logits = net(normalizer(pixels))
        targets = truth[places[0] : places[-1] + 1]
        right += int((logits.argmax(1) == targets).sum())
        loss += float(functional.cross_entropy(logits, targets, reduction="sum"))
    net.train(training)
    return [right / max(1, len(truth)), loss / max(1, len(truth))]


def _finish_epoch(
    run: Run, loss: float, rate: float, top1: float, select_loss: float, seen: int, seconds: float
) -> None:
    run.epoch += 1
    run.history.append(
        {
            "epoch": run.epoch,
            "loss": loss,
            "select_top1": top1,
            "select_loss": select_loss,
            "lr": rate,
            "seconds": round(seconds, 3),
            "images_per_s": round(seen * run.ranks.world / seconds, 1),
            "conditions": _conditions(run),
        }
    )
    if run.best_epoch == 0 or (top1, -select_loss) > run.best:
        run.best, run.best_epoch = (top1, -select_loss), run.epoch


def _given_up(run: Run) -> bool:
    patience = run.train.early_stop
    return patience is not None and run.epoch - run.best_epoch >= patience


def _content(run: Run) -> checkpoint.Content:
    return {
        "epoch": run.epoch,
        "best_epoch": run.best_epoch,
        "best": list(run.best),
        "history": run.history,
        "threads": torch.get_num_threads(),
        "net": run.net.state_dict(),
        "average": run.average.net.state_dict() if run.average else None,
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
    }


def _restore(run: Run, content: checkpoint.Content) -> None:
    run.epoch, run.best_epoch = content["epoch"], content["best_epoch"]
    run.best, run.history = (content["best"][0], content["best"][1]), content["history"]
    run.net.load_state_dict(content["net"])
    if run.average:
        run.average.net.load_state_dict(content["average"])
    run.optimizer.load_state_dict(content["optimizer"])
    run.scaler.load_state_dict(content["scaler"])


def _conditions(run: Run) -> str:
    where = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "CPU"
    number = {torch.bfloat16: "bfloat16", torch.float16: "float16", None: "float32"}[run.precision]
    threads = f", {torch.get_num_threads()} threads" if run.device.type == "cpu" else ""
    many = f" x {run.ranks.world}" if run.ranks.world > 1 else ""
    return f"{where}{many}{threads}, {number}"


def _text(loss: float, top1: float) -> str:
    return f"loss {loss:.3f}, select top-1 {100 * top1:.2f} %"
