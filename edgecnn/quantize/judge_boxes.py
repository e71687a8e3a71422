"""The judge of detectors: mAP on labelled select images, float against INT8 on the same ones. Never scored ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from edgecnn.data.letterbox import Letterbox
from edgecnn.measure.io_contract import IoContract
from edgecnn.process.errors import EdgeError
from edgecnn.process.progress import track
from edgecnn.quantize.calibrate import ImageSource
from edgecnn.quantize.candidate import Drop
from edgecnn.quantize.judging import Judging
from edgecnn.quantize.sessions import open_session, run_each
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.report.wording import metric_text
from edgecnn.tasks.detect.average_precision import Matches, map_drop, match
from edgecnn.tasks.detect.boxes import Boxes
from edgecnn.tasks.detect.detect import Detections
from edgecnn.tasks.detect.score_boxes import answered

_RESAMPLES = 200  # of the bootstrap: the bounds are told, the point decides
_HINT = "train it further, give other weights, or leave the accuracy budget out"
_FOREIGN_HINT = (
    "check --input (range, color, mean, std) and --decode, and that the data names the model's classes in its order"
)
_LEAST = 0.01  # mAP of a float model below which a drop proves nothing


@dataclass(frozen=True)
class SelectedBoxes:
    """Labelled images that decide: letterboxed uint8 NHWC, and their boxes."""

    images: ImageSource
    boxes: Boxes


class BoxJudge(Judging[Matches]):
    """A detector's metric, float against INT8, with a paired bootstrap over images for the bounds.

    Args:
        model: the canonical float graph, the reference. contract: its input and outputs.
        selected: labelled images of the model's size; the first `most` of a fixed draw decide.
        spec: the metric and how boxes are suppressed: as the verdict will have it.
        kernels: name of the CPU whose own INT8 kernels run candidates; '' for the float simulation.

    Raises:
        EdgeError: no images, or a float model that finds nothing, so that no drop proves anything.
    """

    def __init__(
        self, model: ir.Model, contract: IoContract, selected: SelectedBoxes, spec: ScoreSpec, scheme: Scheme, *,
        most: int = 5000, kernels: str = "",
    ) -> None:  # fmt: skip
        if len(selected.boxes) == 0 or len(selected.boxes) != len(selected.images):
            raise EdgeError(f"{len(selected.images)} images and boxes of {len(selected.boxes)} to select with")
        # RandomState's stream never changes between numpy versions (NEP 19).
        drawn = np.random.RandomState(0).permutation(len(selected.boxes))[:most]
        drawn = np.sort(drawn).astype(np.int64)
        self.numbers: list[int] = drawn.tolist()
        self.source, self.truth = selected.images, selected.boxes.take(drawn)
        self.contract, self.scheme, self.kernels, self.spec = contract, scheme, kernels, spec
        self.known: dict[str, Matches] = {}
        self.outputs = [value.name or "" for value in model.graph.outputs]
        self.exact = self._matches(model, simulate=False, name="select, float")
        self.value = float(self.exact.mean_ap(spec.metric)[0])
        if self.value < _LEAST:
            raise EdgeError(
                f"the float model's {metric_text(spec.metric)} is {self.value:.3f} on {self.images} select images: an"
                " accuracy budget against it proves nothing",
                _HINT if {output.meaning for output in contract.outputs} == {"boxes", "scores"} else _FOREIGN_HINT,
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the images and boxes that decide, and of how."""
        content = hashlib.sha256(f"{self.how} {self.spec.model_dump_json()}".encode())
        for part in (self.truth.offsets, self.truth.boxes, self.truth.classes, self.truth.crowd):
            content.update(part.tobytes())
        for number in self.numbers:
            content.update(self.source.batch(number, number + 1).tobytes())
        return content.hexdigest()

    def _scored(self, quantized: ir.Model) -> Matches:
        return self._matches(quantized, simulate=not self.kernels, name="select")

    def _lost(self, first: Matches, second: Matches) -> Drop:
        metric = self.spec.metric
        lost, value = map_drop(first, second, metric, resamples=_RESAMPLES), float(first.mean_ap(metric)[0])
        return Drop(value, value - lost.point, lost.lower, lost.upper, self.images, None)

    def _matches(self, model: ir.Model, *, simulate: bool, name: str) -> Matches:
        session = open_session(model, simulate=simulate)
        shape = model.graph.inputs[0].shape
        fixed = int(shape[0]) if shape is not None and len(shape) and isinstance(shape[0], int) else 1
        images = (np.repeat(self.source.batch(n, n + 1), fixed, axis=0) for n in self.numbers)
        runs = run_each(session, (self.contract.feed(image) for image in images))
        found = []
        for number, values in enumerate(track(runs, name, self.images)):
            height, width = (int(side) for side in self.truth.sizes[number])
            box = Letterbox(height, width, self.contract.input.size)
            answers = dict(zip(self.outputs, values, strict=True))
            found.append(answered(answers, self.contract, 0, box, self.spec))
        return match(Detections.joined(found), self.truth, len(self.contract.classes))
