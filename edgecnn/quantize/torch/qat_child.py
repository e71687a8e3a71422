"""The child process of quantization-aware training: `python -m edgecnn.quantize.torch.qat_child JOB.json`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
import torch

from edgecnn.data import Images, images, read_index
from edgecnn.families.trained import WEIGHTS
from edgecnn.families.weights import read_weights
from edgecnn.process import progress
from edgecnn.process.child import Json, serve
from edgecnn.process.errors import EdgeError
from edgecnn.quantize.ladder import checkpoint
from edgecnn.quantize.ladder.candidate import Candidate
from edgecnn.quantize.torch.quantized import Feed, GraphNet
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.io_contract import IoContract, read_contract
from edgecnn.training.classify import Classify
from edgecnn.training.distill.teacher import Teacher
from edgecnn.training.feed import Numbers
from edgecnn.training.job import QatJob
from edgecnn.training.loop import evaluate, train_network
from edgecnn.training.ranks import joined, pick_device

RESULT = "finetuned.npz"


class Prepared:
    """The select split as it was prepared: uint8 at model size."""

    def __init__(self, arrays: Images, device: torch.device) -> None:
        self.arrays, self.device = arrays, device

    def batches(self, batches: list[Numbers]) -> Iterator[torch.Tensor]:
        """See `Batches.batches`; the places of a batch follow each other."""
        for places in batches:
            pixels = torch.from_numpy(self.arrays.batch(int(places[0]), int(places[-1]) + 1))
            yield pixels.to(self.device).permute(0, 3, 1, 2)


def work(job_json: Json) -> Json:
    """Train a candidate's graph and write finetuned.npz; see `finetune_quantized`."""
    job = QatJob.model_validate(job_json)
    index = read_index(job.data)
    contract = _contract(job)
    output = contract.outputs[0].name
    candidate, scheme = _start(job)
    with joined() as ranks:
        device = pick_device(job.train, ranks)
        feed = Feed(contract, device)
        net = GraphNet(candidate.model, output, (candidate, scheme))
        teacher = None
        if job.train.distill:
            layout = torch.channels_last if job.train.channels_last else torch.contiguous_format
            reference = GraphNet(_graph(job.reference), output).eval().requires_grad_(False)
            teacher = Teacher(reference.to(device, memory_format=layout), job.model.image_size, feed)
        objective = Classify(job.train, index.labels, feed, device, teacher)
        select, numbers = Prepared(images(job.data, "select"), device), index.splits["select"]
        before = evaluate(net.to(device), objective, select, numbers)
        net.refit()
        history = train_network(job, net, index, ranks, objective)
        if ranks.first:
            net.load_state_dict(read_weights(job.out / WEIGHTS))
            after = evaluate(net, objective, select, numbers)
            told = {"before": before, "after": after, "epochs": len(history)}
            checkpoint.write(job.out / RESULT, net.learned(), candidate.model, told)
            progress.current().note(
                f"qat: top-1 on select {100 * before[0]:.2f} % → {100 * after[0]:.2f} % in {len(history)} epochs"
            )
    return {"epochs": len(history)}


def _graph(path: Path) -> ir.Model:
    model: ir.Model = ir.serde.deserialize_model(onnx.load(str(path)))
    return model


def _start(job: QatJob) -> tuple[Candidate, Scheme]:
    found = checkpoint.read(job.placement, _graph(job.graph))
    if found is None:
        raise EdgeError(f"`{job.placement}` holds no candidate", "quantize again")
    return found[0], Scheme.model_validate(found[1]["scheme"])


def _contract(job: QatJob) -> IoContract:
    contract = read_contract(job.graph)
    if contract is None:
        raise EdgeError("the graph to be trained has no `edgecnn.io` metadata", "export it with edgecnn")
    if contract.task != "classify":
        raise EdgeError(
            f"quantization-aware training is for `task: classify`; this graph is of `task: {contract.task}`",
            "stop the ladder before: `recover: {stop_at: mixed}`",
        )
    return contract


if __name__ == "__main__":
    serve(work)
