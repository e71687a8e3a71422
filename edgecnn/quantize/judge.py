"""What a candidate loses: the task's metric on labelled select images, never on scored ones.

The float model is scored once. A candidate streams through in small batches: as float simulation, which stands for
TensorRT, or through this CPU's own INT8 kernels where they are what will run it; `how` says which.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from edgecnn.measure import stats
from edgecnn.measure.io_contract import IoContract
from edgecnn.process.errors import EdgeError
from edgecnn.process.progress import track
from edgecnn.quantize.calibrate import ImageSource
from edgecnn.quantize.candidate import Drop
from edgecnn.quantize.judging import Judging
from edgecnn.quantize.sessions import Feeds, open_session, run, run_each
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.recipe import MetricName
from edgecnn.tasks.classify.metrics import METRICS

_PIXELS = 4 * 224 * 224  # of one inference: what a core's caches and memory take well
_MOST = 64  # images in one inference
_LABEL_HINT = (
    "labels are class numbers of the model's outputs, from 0; the folders of an image folder are numbered in sorted"
    " order; do size, colour and normalization (--input) fit the model?"
)


@dataclass(frozen=True)
class Selected:
    """Labelled images that decide: uint8 NHWC, and int64 (N,) class numbers."""

    images: ImageSource
    labels: np.ndarray

    def some(self, most: int) -> list[int]:
        """Up to `most` image numbers, drawn with a fixed seed: the images of a data folder stand in order of class."""
        # RandomState's stream never changes between numpy versions (NEP 19).
        drawn = np.random.RandomState(0).permutation(len(self.labels))[:most]
        return sorted(int(number) for number in drawn)


class SelectJudge(Judging[np.ndarray]):
    """The metric of a classifier, float against INT8 on the same images.

    Args:
        model: the canonical float graph, the reference.
        contract: its input; logits are its first output.
        selected: labelled images of the model's size; `most` of them decide.
        kernels: name of the CPU whose own INT8 kernels run candidates; '' for the float simulation.

    Raises:
        EdgeError: no images; labels that are not classes of the model; the float model is not better than a constant
            answer, so that no drop proves anything.
    """

    def __init__(
        self, model: ir.Model, contract: IoContract, selected: Selected, metric: MetricName, scheme: Scheme, *,
        most: int = 5000, kernels: str = "",
    ) -> None:  # fmt: skip
        if contract.task != "classify":
            raise EdgeError(
                f"an accuracy budget for task `{contract.task}` cannot be judged while quantizing",
                "leave the budget out: the build's verdict scores the model afterwards",
            )
        if len(selected.labels) == 0 or len(selected.labels) != len(selected.images):
            raise EdgeError(f"{len(selected.images)} images and {len(selected.labels)} labels to select with")
        self.contract, self.scheme, self.metric = contract, scheme, METRICS[metric]
        self.source, self.numbers = selected.images, selected.some(most)
        self.labels = np.asarray(selected.labels, np.int64)[self.numbers]
        self.kernels = kernels
        self.output = _output(model, contract)
        self.reference = model
        self.batch = self._batch()
        self.known: dict[str, np.ndarray] = {}
        self.exact = self._score(model, simulate=False, name="select, float")
        self._refuse_chance()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the images and labels that decide, and of how."""
        content = hashlib.sha256(f"{self.how} {self.metric.unit} {self.metric.outcomes.__name__}".encode())
        content.update(self.labels.tobytes())
        for part in self._parts():
            content.update(self._read(part).tobytes())
        return content.hexdigest()

    def _scored(self, quantized: ir.Model) -> np.ndarray:
        return self._score(quantized, simulate=not self.kernels, name="select")

    def _lost(self, first: np.ndarray, second: np.ndarray) -> Drop:
        """By Tango bounds."""
        return paired_drop(first, second)

    def _score(self, model: ir.Model, *, simulate: bool, name: str) -> np.ndarray:
        """(N,) bool: whether each image counts as right."""
        session = open_session(model, simulate=simulate)
        parts = self._parts()
        right = []
        runs = run_each(session, (self._feed(part) for part in parts))
        for part, outputs in track(zip(parts, runs, strict=True), name, len(parts)):
            logits = outputs[self.output]
            if logits.dtype.kind in "iub" or not self._rows(logits.shape, len(part)):
                found = f"`{model.graph.outputs[self.output].name}` is {logits.dtype} of shape {logits.shape}"
                raise EdgeError(
                    f"output {found}, not one row of logits for each image",
                    "export the logits as the first output, or leave the accuracy budget out",
                )
            logits = logits.reshape(len(logits), -1)[: len(part)].astype(np.float32)
            labels = self.labels[part.start : part.stop]
            if labels.max() >= logits.shape[1] or labels.min() < 0:
                raise EdgeError(
                    f"label {labels.max() if labels.max() >= logits.shape[1] else labels.min()} is not a class of the"
                    f" model, which gives {logits.shape[1]} logits", _LABEL_HINT,
                )  # fmt: skip
            right.append(self.metric.outcomes(logits, labels) > 0.5)
        return np.concatenate(right)

    def _rows(self, shape: tuple[int, ...], images: int) -> bool:
        """Whether an output of this shape is (N, classes), but for sides of 1."""
        return len(shape) > 1 and shape[0] >= images and max(shape[1:]) == math.prod(shape[1:])

    def _parts(self) -> list[range]:
        return [
            range(start, min(start + self.batch, len(self.numbers)))
            for start in range(0, len(self.numbers), self.batch)
        ]

    def _read(self, part: range) -> np.ndarray:
        return np.concatenate([self.source.batch(n, n + 1) for n in self.numbers[part.start : part.stop]])

    def _feed(self, part: range) -> Feeds:
        images = self._read(part)
        if len(images) < self.batch:  # a fixed batch; and kernels may choose their path by the batch
            images = np.concatenate([images, np.repeat(images[-1:], self.batch - len(images), axis=0)])
        return self.contract.feed(images)

    def _batch(self) -> int:
        """Images of one inference: what the graph demands, else several, if it answers several in one."""
        shape = self.reference.graph.inputs[0].shape
        if shape is not None and len(shape) and isinstance(shape[0], int):
            return int(shape[0])
        height, width = self.contract.input.size
        batch = max(1, min(_MOST, len(self.numbers), _PIXELS // (height * width)))
        if batch > 1:
            two = np.concatenate([self.source.batch(0, 1)] * 2)
            try:
                answered = run(open_session(self.reference), self.contract.feed(two))[self.output]
            except EdgeError:
                return 1
            if answered.shape[:1] != (2,):
                return 1
        return batch

    def _refuse_chance(self) -> None:
        """A drop of a model that knows nothing is no loss, and nothing can be lost against it.

        Images so few that not even a faultless model could show it say nothing of this one; nor do they stop a climb.
        """
        constant, right, count = self._constant_answer(), int(self.exact.sum()), len(self.exact)
        shown, best = (stats.wilson_interval(share, count, 0.90)[0] for share in (right, count))  # one-sided 95 %
        if shown <= constant < best or right <= constant * count:
            raise EdgeError(
                f"the float model is right on {right} of {count} labelled images, which is not better than a constant"
                f" answer ({constant:.1%}): an accuracy budget against it proves nothing",
                f"{_LABEL_HINT} Or give more labelled images, a trained model, or no accuracy budget",
            )

    def _constant_answer(self) -> float:
        """What the best constant logits would score on these labels, a fraction of 1."""
        counts = np.bincount(self.labels)
        order = np.argsort(-counts, kind="stable")
        logits = np.zeros((1, len(counts)), np.float32)
        logits[0, order] = np.arange(len(counts), 0, -1)
        return float(self.metric.outcomes(np.repeat(logits, len(self.labels), axis=0), self.labels).mean())


def _output(model: ir.Model, contract: IoContract) -> int:
    names = [value.name for value in model.graph.outputs]
    wanted = contract.outputs[0].name if contract.outputs else ""
    if wanted not in names:
        raise EdgeError(
            f"the logits are to be output `{wanted}`, but the graph's outputs are {', '.join(map(str, names))}",
            "correct the model's `edgecnn.io` metadata",
        )
    return names.index(wanted)


def paired_drop(reference: np.ndarray, candidate: np.ndarray) -> Drop:
    """The drop between two models' outcomes (N,) bool on the same images, with one-sided 95 % Tango bounds."""
    count = len(reference)
    only_float = int(np.sum(reference & ~candidate))
    only_int8 = int(np.sum(candidate & ~reference))
    lower, upper = stats.tango_bounds(only_float, only_int8, count)
    return Drop(
        float(reference.sum() / count), float(candidate.sum() / count), lower, upper, count,
        (only_float + only_int8) / count,
    )  # fmt: skip
