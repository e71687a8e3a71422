"""An accuracy budget for a model without a recipe: how its images are shared out, and what the climb's end means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from edgecnn.data import Images, load_images
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.io_contract import IoContract
from edgecnn.recipe.load import nearest_hint
from edgecnn.recipe.recipe import MetricName, Promise, QuantizeSpec, RecoverSpec, RungName, ScoreSpec, TaskName
from edgecnn.report import State
from edgecnn.tasks import Drop, load_task
from edgecnn.verdict.accuracy_checks import drop_state, images_needed

if TYPE_CHECKING:
    from edgecnn.quantize.ladder.judge import Selected

HELD = 128  # images read beyond those that calibrate, to compare outputs on
LABELLED = "an image folder with one folder per class, a label table, an .npz with `labels`, or a detector's data.yaml"


def recover_of(text: str, budget: float | None) -> str | RecoverSpec:
    """`auto`, `off`, or the last rung that may be climbed.

    Raises:
        EdgeError: no such rung, or one that only a budget drives.
    """
    if text in ("auto", "off"):
        return text
    if text not in get_args(RungName):
        raise EdgeError(f"--recover: no rung `{text}`", nearest_hint(text, ["auto", "off", *get_args(RungName)]))
    if text in ("mixed", "qat") and budget is None:
        raise EdgeError(
            f"--recover {text} needs an accuracy budget: nothing else says when this rung has given enough",
            "add --max-accuracy-drop and labelled images; or --recover adaround, the last rung that needs no labels",
        )
    return RecoverSpec.model_validate({"stop_at": text})


def promise_of(max_accuracy_drop: float | None, metric: MetricName = "top1") -> Promise:
    """The budget as the quantizer takes it.

    Raises:
        EdgeError: below 0, or half of everything.
    """
    if max_accuracy_drop is not None and not 0.0 <= max_accuracy_drop < 0.5:
        raise EdgeError(
            f"--max-accuracy-drop {max_accuracy_drop:g} is not a fraction from 0 to below 0.5",
            "0.01 allows a drop of one point",
        )
    return Promise(max_accuracy_drop=max_accuracy_drop, score=ScoreSpec(metric=metric))


def calibrating_spec(spec: QuantizeSpec, have: int, *, judged: bool) -> QuantizeSpec:
    """The spec for `have` images in all: where their number is not typed, half of few are left to judge a budget."""
    if not judged or have > spec.images or "images" in spec.model_fields_set:
        return spec
    return spec.model_copy(update={"images": max(1, have // 2)})


def share_out(
    data: Path, contract: IoContract, spec: QuantizeSpec, promise: Promise
) -> tuple[Images, Selected | None, Images | None]:
    """(calibration images, with a budget the labelled images that judge it, others to compare outputs on).

    All in a seeded order. The first `spec.images` calibrate, the next judge, `spec.select_images` or what there is; the
    outputs are compared on what does not calibrate.

    Raises:
        EdgeError: a budget, and no labels or no images left to select with.
    """
    picture = contract.input
    judged = promise.max_accuracy_drop is not None
    limit = spec.images + (spec.select_images if judged else HELD)
    pixels, labels = load_images(data, picture.size, picture.channels, picture.fit, limit=limit, seed=0)
    (shard,) = pixels.shards
    spec = calibrating_spec(spec, len(pixels), judged=judged)
    calibrating, others = Images((shard[: spec.images],)), Images((shard[spec.images :],))
    if not judged:
        return calibrating, None, others
    if labels is None:
        raise EdgeError(
            f"--max-accuracy-drop needs labels, and `{data}` has none", f"give {LABELLED}, or leave the budget out"
        )
    if len(pixels) <= spec.images:
        raise EdgeError(
            f"`{data}` has {len(pixels)} labelled images, and --images {spec.images} of them calibrate: none is left"
            " to judge the accuracy budget with",
            "lower --images, or give more labelled images",
        )
    from edgecnn.quantize.ladder.judge import Selected

    return calibrating, Selected(others, labels[spec.images :]), others


def verdict_of(record: dict[str, Any], task: TaskName) -> tuple[State | None, str]:
    """What quantize.json's climb means for the budget, and a sentence; (None, '') without a budget.

    It fails where the best rung's drop on select is above the budget, passes where the drop's upper bound is within
    it, and is not enough evidence between. The same images chose the rung, so a build's verdict on scored images says
    more.
    """
    recovery = record["recovery"]
    if recovery["state"] == "unasked":
        return None, ""
    limit, least = recovery["budget"], load_task(task).LEAST_IMAGES
    best = next(step for step in record["ladder"] if step["kept"] and step["rung"] == recovery["best"])
    drop = Drop(best["drop"], 0.0, best["lower"], best["upper"], best["images"], best["disc"])
    text = (
        f"drop {100 * drop.point:.2f} points ({100 * drop.lower:.2f} … {100 * drop.upper:.2f}) on"
        f" {drop.images:,} select images, budget {100 * limit:g}"
    )
    state = drop_state(drop.images, drop.lower, drop.upper, limit, least=least)
    if recovery["state"] == "missed":
        return "fail", f"FAIL: {text}; the best rung, `{recovery['best']}`, was written"
    if state == "pass":
        return state, f"PASS: {text}"
    needed = images_needed(drop, limit)
    more = f"; about {max(needed, least, drop.images + 1):,} would decide" if needed else ""
    return "not-enough-evidence", f"NOT ENOUGH EVIDENCE: {text}{more}"
