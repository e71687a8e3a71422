"""A Runner over the scored images → outcomes image by image. The only readers of the scored split."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edgecnn.measure.feeding import ImageBatches, answered_batches
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.io_contract import IoContract, read_contract
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.tasks import Outcomes, Reader, Targets, Task, load_task

if TYPE_CHECKING:
    from edgecnn.backends import Runner


def score_here(
    runner: Runner, model: Path, data: Path, spec: ScoreSpec, out: Path, *, simulate: bool, detail: str,
    images: ImageBatches | None = None,
) -> None:  # fmt: skip
    """The child's side of `targets.score.score_file`, and what judges a board's answers.

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
