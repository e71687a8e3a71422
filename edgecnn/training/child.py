"""The training child process: `python -m edgecnn.training.child JOB.json`, or the same under torchrun."""

from __future__ import annotations

import json

import torch
from torch import nn

from edgecnn.data import Index, read_index
from edgecnn.families import load_family
from edgecnn.families.trained import WEIGHTS, ModelCard, write_card, write_state
from edgecnn.process.child import Json, serve
from edgecnn.training.classify import Classify
from edgecnn.training.distill.teacher import load_teacher
from edgecnn.training.draws import seed_of
from edgecnn.training.feed import Normalizer
from edgecnn.training.job import TrainJob
from edgecnn.training.loop import History, train_network
from edgecnn.training.ranks import Ranks, joined, pick_device


def work(job_json: Json) -> Json:
    """Make the network, train it if asked, write the artifact."""
    job = TrainJob.model_validate(job_json)
    index = read_index(job.data)
    model = job.weighted_model
    with joined() as ranks:
        torch.manual_seed(seed_of(job.train.seed, -1))  # before the first epoch: the network's first weights
        net = load_family(model.family).create(model, len(index.classes), index.channels, new_head=job.train.epochs > 0)
        history = _trained(job, net, index, ranks) if job.train.epochs else []
        if ranks.first:
            if not job.train.epochs:
                write_state(job.out / WEIGHTS, net.state_dict())
            card = ModelCard.model_validate(
                {
                    **model.model_dump(include={"family", "name", "dropout", "width", "image_size"}),
                    "classes": index.classes,
                    "channels": index.channels,
                    "color": index.color,
                    "fit": index.fit,
                    "normalization": model.normalization(index.channels),
                }
            )
            write_card(job.out, card)
            (job.out / "history.json").write_text(json.dumps(history, indent=1))
    return {"epochs": len(history)}


def _trained(job: TrainJob, net: nn.Module, index: Index, ranks: Ranks) -> History:
    match job.model.family:
        case "ultralytics":
            from edgecnn.training.detector import train_detector

            return train_detector(job, net, index, ranks)
        case _:
            device = pick_device(job.train, ranks)
            feed = Normalizer(job.model.normalization(index.channels), device, job.train.channels_last)
            teacher = load_teacher(job.teacher, index.classes, device, job.train.channels_last) if job.teacher else None
            return train_network(job, net, index, ranks, Classify(job.train, index.labels, feed, device, teacher))


if __name__ == "__main__":
    serve(work)
