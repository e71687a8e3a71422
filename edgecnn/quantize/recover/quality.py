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
from edgecnn.quantize.candidate import Candidate, Tools
from edgecnn.quantize.last_layers import ends
from edgecnn.quantize.sessions import Feeds, expose, open_session, run_each

IMAGES = 48  # of 224 x 224; of smaller images as many more, up to MOST
MOST = 192
_BYTES = 1 << 26  # of exact ends kept
_TINY = 1e-30


def split(tools: Tools) -> tuple[list[int], list[int]]:
    """(images to fit on, images held out to decide): by content, disjoint where there are four or more."""
    order = tools.feeder.sample(tools.feeder.count)
    asked = min(MOST, round(IMAGES * max(1.0, 224 * 224 / tools.feeder.pixels)))
    held = min(asked, len(order) // 4)
    return (order[:-held], order[-held:]) if held else (order, order)


@dataclass(frozen=True)
class Reference:
    """The float model's ends on some images."""

    feeds: tuple[Feeds, ...]
    names: tuple[str, ...]
    exact: tuple[list[np.ndarray], ...]
    power: tuple[float, ...]

    def noises(self, outputs: Iterable[list[np.ndarray]]) -> np.ndarray:
        """(inferences,): mean over the ends of noise / power of ends that were computed for `feeds`."""
        rows = []
        for want, got in zip(self.exact, outputs, strict=True):
            shares = []
            for a, b, power in zip(want, got, self.power, strict=True):
                difference = (a - b).reshape(-1)
                shares.append(float(np.vdot(difference, difference)) / power)
            rows.append(math.fsum(shares) / len(shares))
        found = np.asarray(rows)
        return np.where(np.isfinite(found), found, np.inf)

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
    """Run the float model on the sampled images; kept in `tools.made`. Of large ends fewer images are taken."""
    key = f"reference {sample}"
    if key not in tools.made:
        tools.made[key] = _reference(tools, sample)
    found = tools.made[key]
    assert isinstance(found, Reference)
    return found


def _reference(tools: Tools, sample: list[int]) -> Reference:
    names = ends(tools.graph.model)
    session = open_session(expose(tools.graph.model, names))
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
    power = []
    for end in range(len(names)):
        values = [each[end].astype(np.float64) for each in exact]
        channels = [tuple(axis for axis in range(value.ndim) if axis != 1) for value in values]
        spread = math.fsum(
            float(np.square(v - v.mean(axis=axes, keepdims=True)).sum()) if v.ndim > 2 else float(np.square(v).sum())
            for v, axes in zip(values, channels, strict=True)
        )
        power.append(max(spread, _TINY))
    return Reference(tuple(feeds), tuple(names), tuple(exact), tuple(power))


def _noises(tools: Tools, wanted: Reference, candidate: Candidate, sample: list[int]) -> np.ndarray:
    """Of a candidate on the sampled images, kept in `tools.made`: a rung starts from what the last one measured."""
    quantized = candidate.quantized(tools.scheme)
    content = ir.serde.serialize_model(quantized).SerializeToString(deterministic=True)
    key = f"noises {hashlib.sha256(content).hexdigest()} {sample}"
    if key not in tools.made:
        tools.made[key] = wanted.simulated(quantized)
    found = tools.made[key]
    assert isinstance(found, np.ndarray)
    return found


def better(
    tools: Tools, before: Candidate, after: list[Candidate], sample: list[int], doubts: float = 1.0
) -> tuple[int, list[float]]:
    """Which of `after` errs least and less than `before` (see `improves`), else -1; SQNR in dB, `before` first."""
    wanted = reference(tools, sample)
    candidates = track([before, *after], "compare", 1 + len(after))
    noises = [_noises(tools, wanted, candidate, sample) for candidate in candidates]
    qualities = [quality(each) for each in noises]
    best = int(np.argmax(qualities[1:]))
    return best if improves(noises[0], noises[1 + best], doubts) else -1, qualities
