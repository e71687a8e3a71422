"""Classification: one label an image; logits are right or wrong, and the metric is the share of right ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgecnn.data.index import labels as read_labels
from edgecnn.measure import stats
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.io_contract import IoContract
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.tasks import Arrays, Drop
from edgecnn.tasks.classify.figures import (
    class_figures,
    figures,
    float_note,
    host_figures,
    paired_figures,
    parts,
)
from edgecnn.tasks.classify.metrics import ANSWERS, METRICS, Labels, Logits
from edgecnn.tasks.classify.outcomes import Classified, discordant, paired_drop
from edgecnn.tasks.classify.prepare import prepare, watch
from edgecnn.tasks.compared import Compared

__all__ = [
    "BOUNDS_BY", "LEAST_IMAGES", "bounds", "class_figures", "content", "drop", "drop_text", "figures", "float_note",
    "host_figures", "keep", "kept", "nothing_proved", "paired_figures", "parts", "prepare", "read", "reader",
    "refuse_useless", "restore", "same_targets", "slim", "take", "targets", "watch", "write",
]  # fmt: skip

LEAST_IMAGES = 200
BOUNDS_BY = "Wilson bounds"
UNIT = "fraction of images"
_LABEL_HINT = (
    "labels are class numbers of the model's outputs, from 0; the folders of an image folder are numbered in sorted"
    " order; do size, colour and normalization (--input) fit the model?"
)


class LogitsReader:
    """Reads the first output of the contract: one row of logits for each image. See `Reader`."""

    def __init__(self, contract: IoContract, spec: ScoreSpec, labels: Labels, *, final: bool = False) -> None:
        self.contract, self.metric, self.labels, self.final = contract, spec.metric, labels, final
        self.rows: list[Logits] = []
        self.numbers: list[int] = []

    def take(self, answers: Mapping[str, Any], numbers: Sequence[int]) -> None:
        """See Reader."""
        wanted = self.contract.outputs[0].name if self.contract.outputs else ""
        if wanted not in answers:
            raise EdgeError(
                f"the logits are to be output `{wanted}`, but the graph's outputs are {', '.join(answers)}",
                "correct the model's `edgecnn.io` metadata",
            )
        logits = np.asarray(answers[wanted])
        # A map whose largest value decides, or answers of a batch under each other, would be counted as something.
        rows = logits.ndim > 1 and len(logits) >= len(numbers) and max(logits.shape[1:]) == prod(logits.shape[1:])
        if logits.dtype.kind in "iub" or not rows:
            raise EdgeError(
                f"output `{wanted}` is {logits.dtype} of shape {logits.shape}, not one row of logits for each image",
                "export the logits as the first output, or leave the accuracy budget out",
            )
        self.rows.append(logits.reshape(len(logits), -1)[: len(numbers)].astype(np.float32))
        self.numbers += numbers

    def outcomes(self) -> Classified:
        """Logits judged by the metric.

        Raises:
            EdgeError: not the number of classes, a label that is not one of them, or, of a score, logits not finite.
        """
        logits, labels = np.concatenate(self.rows), np.asarray(self.labels[self.numbers], np.int64)
        count, classes = logits.shape[1], len(self.contract.classes)
        if self.final and count != classes:
            raise EdgeError(f"the model gives {count} logits, its contract names {classes} classes")
        if labels.max() >= count or labels.min() < 0:
            strange = labels.max() if labels.max() >= count else labels.min()
            raise EdgeError(
                f"label {strange} is not a class of the model, which gives {count} logits", _LABEL_HINT
            )  # fmt: skip
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if self.final and len(bad):
            raise EdgeError(
                f"the model's logits are not finite for {len(bad)} of {len(logits)} images, first image {bad[0]}",
                "a NaN or infinity is in the weights, or a scale or an FP16 part overflows",
            )
        outcome = METRICS[self.metric](logits, labels)
        return Classified(labels, logits.argmax(axis=1).astype(np.int64), outcome, logits)

    def figures(self, outcomes: Classified) -> dict[str, Any]:
        """See Reader."""
        return {"metric": self.metric, "value": outcomes.value, "unit": UNIT}


reader = LogitsReader


def targets(data: Path, split: Literal["select", "scored"]) -> Labels:
    """Class numbers, int64 (N,)."""
    return read_labels(data, split)


def take(targets: Labels, numbers: NDArray[Any]) -> Labels:
    """See Task."""
    taken: Labels = np.asarray(targets, np.int64)[numbers]
    return taken


def content(targets: Labels) -> Iterator[bytes]:
    """See Task."""
    yield targets.tobytes()


def keep(contract: IoContract, spec: ScoreSpec) -> dict[str, Any]:
    """Every logit."""
    return {}


def slim(outcomes: Classified) -> Classified:
    """Without the logits."""
    return replace(outcomes, logits=None)


def refuse_useless(outcomes: Classified, contract: IoContract, spec: ScoreSpec) -> None:
    """A drop of a model that knows nothing is no loss, and nothing can be lost against it.

    Images so few that not even a faultless model could show it say nothing of this one; nor do they stop a climb.

    Raises:
        EdgeError: the model is not better than a constant answer.
    """
    constant, right, count = constant_answer(outcomes.label, spec.metric), int(outcomes.right.sum()), len(outcomes)
    shown, best = (stats.wilson_interval(share, count, 0.90)[0] for share in (right, count))  # one-sided 95 %
    if shown <= constant / count < best or right <= constant:
        raise EdgeError(
            f"the float model is right on {right} of {count} labelled images, which is not better than a constant"
            f" answer ({constant / count:.1%}): an accuracy budget against it proves nothing",
            f"{_LABEL_HINT} Or give more labelled images, a trained model, or no accuracy budget",
        )


def constant_answer(labels: Labels, metric: str) -> int:
    """Images on which the most frequent classes, as many as the metric lets an image have, are right."""
    return int(np.sort(np.unique(labels, return_counts=True)[1])[-ANSWERS[metric] :].sum())


def bounds(outcomes: Classified, metric: str) -> stats.Bounds:
    """Wilson's."""
    right, n = int(outcomes.right.sum()), len(outcomes)
    return stats.Bounds(right / n, *stats.wilson_interval(right, n, 0.90))


def drop(first: Classified, second: Classified, metric: str, *, quick: bool = False) -> Drop:
    """By one-sided 95 % Tango bounds."""
    return paired_drop(first.right, second.right)


def drop_text(first: Classified, second: Classified, metric: str, names: tuple[str, str]) -> str:
    """The counts and McNemar's mid-p."""
    b, c = discordant(first, second)
    return (
        f"{b} images right only with {names[0]}, {c} only with {names[1]}, of {len(first):,};"
        f" McNemar mid-p {stats.mcnemar_mid_p(b, c):.3g} (for information)"
    )


def nothing_proved(outcomes: Classified, metric: str, *, sure: bool = False) -> str:
    """Why right and wrong answers prove nothing: a constant answer is right as often; '' where they do."""
    n, right = len(outcomes), int(outcomes.right.sum())
    constant = constant_answer(outcomes.label, metric)
    if right > constant and (not sure or stats.wilson_interval(right, n, 0.90)[0] > constant / n):
        return ""
    return (
        f"right on {right:,} of {n:,} images, no better than one constant answer ({constant:,}): that proves nothing;"
        " is the model trained, and do labels and preprocessing fit it?"
    )


def write(outcomes: Classified, path: Path) -> None:
    """label, predicted, outcome, logits."""
    np.savez(path, **{name: value for name, value in vars(outcomes).items() if value is not None})


def read(path: Path, data: Path) -> Classified:
    """See Task; the labels are in the file."""
    with np.load(path, allow_pickle=False) as file:
        return Classified(*(file[name] for name in ("label", "predicted", "outcome", "logits")))


def kept(compared: Compared) -> Arrays:
    """label, and of each model outcome and predicted class; all (N,)."""
    found: Arrays = {"label": compared.reference.outcomes.label}
    for name, scores in compared.by_name().items():
        found[f"{name}_outcome"] = scores.outcomes.outcome
        found[f"{name}_predicted"] = scores.outcomes.predicted
    return found


def restore(kept: Arrays) -> Classified:
    """See Task."""
    needed = ("label", "int8_predicted", "int8_outcome")
    if missing := [name for name in needed if name not in kept]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    images = len(np.atleast_1d(kept["label"]))
    if not images or any(values.shape != (images,) for values in kept.values()):
        raise ValueError("its arrays are not one value for each image")
    if any(values.dtype.kind not in "fiub" for values in kept.values()):
        raise ValueError("its arrays are not numbers")
    if not all(np.isin(values, (0, 1)).all() for name, values in kept.items() if name.endswith("_outcome")):
        raise ValueError("its outcomes are not 1 for right and 0 for wrong")
    if any(kept[name].dtype.kind not in "iu" or (kept[name] < 0).any() for name in ("label", "int8_predicted")):
        raise ValueError("its labels and answers are not class numbers")
    return Classified(*(kept[name] for name in needed))


def same_targets(first: Classified, second: Classified) -> bool:
    """See Task."""
    return np.array_equal(first.label, second.label)
