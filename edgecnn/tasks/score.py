"""A Runner over the scored images → outcomes image by image. The only readers of the scored split."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edgecnn.measure.feeding import ImageBatches, answered_batches
from edgecnn.measure.io_contract import IoContract, read_contract
from edgecnn.process.child import run_child
from edgecnn.process.errors import EdgeError
from edgecnn.process.versions import ENGINES, decided_by
from edgecnn.recipe.device import BackendName
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.store.stage import Artifact
from edgecnn.tasks import Outcomes, Reader, Targets, Task, load_task

if TYPE_CHECKING:
    from edgecnn.backends import Runner


@decided_by("onnxruntime", "onnxruntime-gpu", "faster-coco-eval", rooms=("tasks", "data", *ENGINES))
def score_reference(out: Path, spec: ScoreSpec, plain: Artifact, data: Artifact) -> None:
    """Stage: the float model under onnxruntime on this host, FP32, all optimizations on."""
    score_file(out, spec, plain.path / "model.onnx", data.path, backend=None)


def score_file(
    out: Path, spec: ScoreSpec, model: Path, data: Path, *, backend: BackendName | None, simulate: bool = False,
    engine: Path | None = None, detail: str = "",
) -> None:  # fmt: skip
    """Score one model in a child process; write score.json and outcomes.npz into `out`.

    Args:
        model: the ONNX file, whose contract says how images are fed.
        backend: who runs it; None is onnxruntime on the best provider of this host (CUDA, else CPU).
        simulate: evaluate the Q/DQ graph in float; the score is marked so.
        engine: run this engine file in place of the ONNX file.
        detail: added to the score's `how`.

    Raises:
        EdgeError: no contract, images and labels don't fit, logits that aren't finite, or the engine failed.
    """
    job = {
        "do": "score", "model": str(model), "engine": str(engine or model), "data": str(data), "out": str(out),
        "backend": backend, "simulate": simulate, "spec": spec.model_dump(mode="json"), "detail": detail,
    }  # fmt: skip
    run_child("edgecnn.targets.child", job, out / "score.log")


def score_here(
    runner: Runner, model: Path, data: Path, spec: ScoreSpec, out: Path, *, simulate: bool, detail: str,
    images: ImageBatches | None = None,
) -> None:  # fmt: skip
    """The child's side of `score_file`, and what judges a board's answers.

    Args:
        images: what the runner is fed in place of the scored images of `data`.
    """

    from edgecnn.data import images as prepared_images

    start = time.monotonic()
    contract = read_contract(model)
    if contract is None:
        raise EdgeError(
            f"`{model}` has no `edgecnn.io` metadata, so nobody knows how to feed it images", "export it with edgecnn"
        )
    task = load_task(contract.task)
    targets, images = task.targets(data, "scored"), prepared_images(data, "scored") if images is None else images
    reader, outcomes = judged(runner, task, contract, images, targets, spec)
    task.write(outcomes, out / "outcomes.npz")
    content = {
        **reader.figures(outcomes), "n": len(outcomes), "how": f"{runner.how}, {detail}" if detail else runner.how,
        "simulated": simulate, "seconds": round(time.monotonic() - start, 3),
    }  # fmt: skip
    (out / "score.json").write_text(json.dumps(content, indent=1))


def judged(
    runner: Runner, task: Task, contract: IoContract, images: ImageBatches, targets: Targets, spec: ScoreSpec
) -> tuple[Reader, Outcomes]:
    """Run every image and judge the answers; a model with a fixed batch is fed that batch, the last one filled up.

    Raises:
        EdgeError: no images, images and labels differ in number, or answers that can't be judged.
    """
    count = len(images)
    if count == 0 or count != len(targets):
        raise EdgeError(f"the scored split has {count} images and {len(targets)} labels", "prepare the data again")
    reader = task.reader(contract, spec, targets, final=True)
    for numbers, answers in answered_batches(runner, contract.feed, images, spec.batch):
        reader.take(answers, numbers)
    return reader, reader.outcomes()
