"""How near a candidate's answers are to the float model's: what every rung decides by.

Compared are the *ends*: the last layers before the graph's outputs. Behind them a detector's head squashes class
scores and scales boxes by hundreds of pixels, so that the outputs' own error would be that of the boxes alone. Each
end's error counts against the power of its variation (about each channel's mean), and the ends count alike.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgecnn.measure.stats import decibel
from edgecnn.process.progress import track
from edgecnn.quantize.calibration.auto import Looked
from edgecnn.quantize.calibration.last_layers import ends
from edgecnn.quantize.graph.sessions import Feeds, expose, open_session, run_each
from edgecnn.quantize.ladder.candidate import Candidate, Tools

IMAGES = 48  # of 224 x 224; of smaller images as many more, up to MOST
MOST = 192
_BYTES = 1 << 28  # of exact outputs and ends kept
_TINY = 1e-30


def split(tools: Tools) -> tuple[list[int], list[int]]:
    """(images to fit on, images held out to decide): by content, disjoint where there are four or more."""
    order = tools.feeder.sample(tools.feeder.count)
    asked = min(MOST, round(IMAGES * max(1.0, 224 * 224 / tools.feeder.pixels)))
    held = min(asked, len(order) // 4)
    return (order[:-held], order[-held:]) if held else (order, order)


@dataclass(frozen=True)
class Reference:
    """The float model's outputs and ends on some images; which of the tensors `looked.names` are the ends."""

    feeds: tuple[Feeds, ...]
    looked: Looked
    ends: tuple[int, ...]
    exact: tuple[list[np.ndarray], ...]
    power: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that are compared."""
        return self.looked.names

    def noises(self, outputs: Iterable[list[np.ndarray]]) -> np.ndarray:
        """(inferences,): mean over the ends of noise / power of tensors that were computed for `feeds`."""
        return np.asarray([self.noise(want, got) for want, got in zip(self.exact, outputs, strict=True)])

    def noise(self, want: list[np.ndarray], got: list[np.ndarray]) -> float:
        """Of one inference; infinite where it is not a number."""
        shares = []
        for end, power in zip(self.ends, self.power, strict=True):
            difference = (want[end] - got[end]).reshape(-1)
            shares.append(float(np.vdot(difference, difference)) / power)
        found = math.fsum(shares) / len(shares)
        return found if math.isfinite(found) else math.inf

    def simulated(self, model: ir.Model) -> np.ndarray:
        """`noises` of a graph evaluated in float."""
        session = open_session(expose(model, list(self.names)), simulate=True)
        return self.noises(run_each(session, self.feeds))


def quality(noises: np.ndarray) -> float:
    """SQNR in dB over all inferences."""
    total = math.fsum(noises)
    return decibel(1.0, total) if math.isfinite(total) else -math.inf


def improves(before: np.ndarray, after: np.ndarray, doubts: float = 1.0) -> bool:
    """Whether the noise fell by more than `doubts` times its standard error over the inferences.

    One suits what was searched for among many, none what theory says is better.
    """
    if not np.isfinite(after).all():
        return False
    if not np.isfinite(before).all():
        return True
    gained = before - after
    error = float(gained.std(ddof=1)) / math.sqrt(len(gained)) if len(gained) > 1 else 0.0
    return float(gained.mean()) > doubts * error


def reference(tools: Tools, sample: list[int]) -> Reference:
    """Run the float model on the sampled images; kept in `tools.made`. Of large outputs fewer images are taken."""
    key = f"reference {sample}"
    if key not in tools.made:
        tools.made[key] = _reference(tools, sample)
    found = tools.made[key]
    assert isinstance(found, Reference)
    return found


def _reference(tools: Tools, sample: list[int]) -> Reference:
    looked, last = Looked.of(tools.graph.model), ends(tools.graph.model)
    session = open_session(expose(tools.graph.model, list(looked.names)))
    feeds: list[Feeds] = []
    exact: list[list[np.ndarray]] = []
    size = 0
    batch = tools.feeder.batch
    for number in range(0, len(sample), batch):
        feed = next(iter(tools.feeder.feeds(sample[number : number + batch])))
        values = next(iter(run_each(session, [feed])))
        feeds.append(feed)
        exact.append(values)
        size += sum(value.nbytes for value in values)
        if size > _BYTES:
            break
    places = tuple(looked.names.index(name) for name in last)
    power = []
    for end in places:
        values = [each[end].astype(np.float64) for each in exact]
        channels = [tuple(axis for axis in range(value.ndim) if axis != 1) for value in values]
        spread = math.fsum(
            float(np.square(v - v.mean(axis=axes, keepdims=True)).sum()) if v.ndim > 2 else float(np.square(v).sum())
            for v, axes in zip(values, channels, strict=True)
        )
        power.append(max(spread, _TINY))
    return Reference(tuple(feeds), looked, places, tuple(exact), tuple(power))


def fidelity(tools: Tools, candidate: Candidate) -> float:
    """SQNR of its outputs in dB, float-simulated, on calibration images that no rung fits anything on.

    Median over the inferences, see `Looked`: a few that explode don't decide.
    """
    return float(np.median(_measured(tools, candidate, split(tools)[1])[:, 1]))


def _measured(tools: Tools, candidate: Candidate, sample: list[int]) -> np.ndarray:
    """(inferences, 2): noise, and SQNR in dB. Kept in `tools.made`: a rung starts from what the last one measured."""
    wanted = reference(tools, sample)
    proto = expose(candidate.quantized(tools.scheme), list(wanted.names))
    key = f"noises {hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()} {sample}"
    if key not in tools.made:
        answers = run_each(open_session(proto, simulate=True), wanted.feeds)
        pairs = zip(wanted.exact, track(answers, "outputs", len(wanted.feeds)), strict=True)
        tools.made[key] = np.asarray([(wanted.noise(*pair), wanted.looked.decibel(*pair)) for pair in pairs])
    found = tools.made[key]
    assert isinstance(found, np.ndarray)
    return found


def better(
    tools: Tools, before: Candidate, after: list[Candidate], sample: list[int], doubts: float = 1.0
) -> tuple[int, list[float]]:
    """Which of `after` errs least and less than `before` (see `improves`), else -1; SQNR in dB, `before` first."""
    noises = [_measured(tools, candidate, sample)[:, 0] for candidate in (before, *after)]
    qualities = [quality(each) for each in noises]
    best = int(np.argmax(qualities[1:]))
    return best if improves(noises[0], noises[1 + best], doubts) else -1, qualities
