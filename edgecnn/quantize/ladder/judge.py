"""What a candidate loses: the task's metric on labelled select images, never on scored ones.

The float model is scored once. A candidate streams through in small batches: as float simulation, which stands for
TensorRT, or through this CPU's own INT8 kernels where they are what will run it; `how` says which.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from edgecnn.process.errors import EdgeError
from edgecnn.process.progress import track
from edgecnn.quantize.calibration.calibrate import ImageSource
from edgecnn.quantize.graph.sessions import Feeds, open_session, run, run_each
from edgecnn.quantize.ladder.candidate import Candidate
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.io_contract import IoContract
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.tasks import Drop, Outcomes, Targets, load_task

_PIXELS = 4 * 224 * 224  # of one inference: what a core's caches and memory take well
_MOST = 64  # images in one inference


@dataclass(frozen=True)
class Selected:
    """Labelled images that decide: uint8 NHWC, and their task's targets."""

    images: ImageSource
    targets: Targets

    def draw(self, most: int) -> np.ndarray:
        """Up to `most` image numbers, drawn with a fixed seed: the images of a data folder stand in order of class."""
        # RandomState's stream never changes between numpy versions (NEP 19).
        return np.sort(np.random.RandomState(0).permutation(len(self.targets))[:most])


class SelectJudge:
    """The task's metric, float against INT8 on the same images.

    Args:
        model: the canonical float graph, the reference.
        contract: its input and outputs, and its task.
        selected: labelled images of the model's size; `most` of them decide.
        spec: the metric and how it is scored: as the verdict will have it.
        kernels: name of the CPU whose own INT8 kernels run candidates; '' for the float simulation.

    Raises:
        EdgeError: no images; answers or labels that don't fit; a float model so weak that no drop proves anything.
    """

    def __init__(
        self, model: ir.Model, contract: IoContract, selected: Selected, spec: ScoreSpec, scheme: Scheme, *,
        most: int = 5000, kernels: str = "",
    ) -> None:  # fmt: skip
        if len(selected.targets) == 0 or len(selected.targets) != len(selected.images):
            raise EdgeError(f"{len(selected.images)} images and {len(selected.targets)} labels to select with")
        self.task, self.contract, self.spec, self.scheme = load_task(contract.task), contract, spec, scheme
        self.numbers = selected.draw(most)
        self.source, self.targets = selected.images, self.task.take(selected.targets, self.numbers)
        self.kernels, self.reference = kernels, model
        self.outputs = [value.name or "" for value in model.graph.outputs]
        self.batch = self._batch()
        self.known: dict[str, Outcomes] = {}  # by the digest of the quantized graph
        self.exact = self._score(model, simulate=False, name="select, float")
        self.task.refuse_useless(self.exact, contract, spec)

    @property
    def images(self) -> int:
        """How many labelled images decide."""
        return len(self.numbers)

    @property
    def how(self) -> str:
        """What computes a candidate's answers."""
        return f"INT8 kernels of {self.kernels}" if self.kernels else "float simulation"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the images and labels that decide, and of how."""
        content = hashlib.sha256(f"{self.how} {self.spec.model_dump_json()}".encode())
        for targets in self.task.content(self.targets):
            content.update(targets)
        for part in self._parts():
            content.update(self._read(part).tobytes())
        return content.hexdigest()

    def drop(self, candidate: Candidate) -> Drop:
        """What INT8 loses against the float model, with one-sided 95 % bounds."""
        return self._lost(self.exact, self._outcomes(candidate))

    def lost(self, before: Candidate, after: Candidate) -> Drop:
        """What the later of two candidates loses against the one before, both run on the same images."""
        return self._lost(self._outcomes(before), self._outcomes(after))

    def _lost(self, first: Outcomes, second: Outcomes) -> Drop:
        return self.task.drop(first, second, self.spec.metric, quick=True)

    def _outcomes(self, candidate: Candidate) -> Outcomes:
        """The same graph is run once."""
        quantized = candidate.quantized(self.scheme)
        content = ir.serde.serialize_model(quantized).SerializeToString(deterministic=True)
        key = hashlib.sha256(content).hexdigest()
        if key not in self.known:
            self.known[key] = self._score(quantized, simulate=not self.kernels, name="select")
        return self.known[key]

    def _score(self, model: ir.Model, *, simulate: bool, name: str) -> Outcomes:
        reader = self.task.reader(self.contract, self.spec, self.targets)
        parts = self._parts()
        runs = run_each(open_session(model, simulate=simulate), (self._feed(part) for part in parts))
        for part, values in track(zip(parts, runs, strict=True), name, len(parts)):
            reader.take(dict(zip(self.outputs, values, strict=True)), part)
        return self.task.slim(reader.outcomes())

    def _parts(self) -> list[range]:
        return [range(start, min(start + self.batch, self.images)) for start in range(0, self.images, self.batch)]

    def _read(self, part: range) -> np.ndarray:
        return np.concatenate([self.source.batch(n, n + 1) for n in self.numbers[part.start : part.stop].tolist()])

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
        batch = max(1, min(_MOST, self.images, _PIXELS // (height * width)))
        if batch > 1:
            two = np.concatenate([self.source.batch(0, 1)] * 2)
            try:
                answered = run(open_session(self.reference), self.contract.feed(two))
            except EdgeError:
                return 1
            if any(values.shape[:1] != (2,) for values in answered):
                return 1
        return batch
