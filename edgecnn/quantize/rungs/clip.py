"""Rung `clip`: activation ranges by the error at the model's outputs.

The tensors to blame come first: those whose quantization alone costs the outputs most. For each scale group several
ranges are tried in turn with everything else quantized as it stands, and what errs less is kept (coordinate descent).
The images that decide in the end took no part in it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgecnn.process import progress
from edgecnn.process.progress import track
from edgecnn.quantize.calibration.auto import Range
from edgecnn.quantize.calibration.ranges import activation_grid
from edgecnn.quantize.calibration.swap import Simulation
from edgecnn.quantize.ladder.candidate import Candidate, Tools
from edgecnn.quantize.ladder.effort import affordable, sample_images
from edgecnn.quantize.ladder.quality import Reference, better, improves, quality, reference, split
from edgecnn.quantize.write.rewrite import NOTHING, Grids
from edgecnn.recipe.device import Scheme

NAME = "clip"
_EFFORT = 5e11  # multiply-accumulates of all trials
_IMAGES, _LEAST = 96, 8
_FOREMOST = 16  # groups that the effort must reach
_BLAMED = 8  # images that tell the order
_FACTORS = (0.7, 1.4, 0.85, 1.18)  # of the range; the coarse ones again and again while that helps
_COARSE = 2
_GAIN = 1e-3  # dB that a change must bring


def clip(candidate: Candidate, tools: Tools) -> Candidate:
    """The candidate with ranges that err less at the outputs, or unchanged where held-out images disagree."""
    groups = candidate.placement.groups()
    trials = affordable(tools, _EFFORT)
    sample = sample_images(tools, max(_LEAST, min(_IMAGES, trials // (5 * min(_FOREMOST, max(1, len(groups)))))))
    search = _Search(candidate, tools, reference(tools, sample))
    images = len(search.reference.feeds)
    blamed = _BLAMED * len(groups)  # inferences for the order
    search.descend(search.blamed(), (trials - blamed) // images)
    found = replace(candidate, ranges=search.ranges, methods=search.methods)
    which, qualities = better(tools, candidate, [found], split(tools)[1]) if search.changed else (-1, [])
    if which < 0:
        moved = f"{len(search.changed)} moved, held-out images disagree" if search.changed else "none moved"
        return replace(candidate, notes=(*candidate.notes, f"clip: no other ranges measure better ({moved})"))
    progress.current().note(f"clip: {len(search.changed)} ranges moved, {qualities[1] - qualities[0]:+.2f} dB")
    return replace(found, rungs=(*candidate.rungs, NAME))


class _Search:
    def __init__(self, candidate: Candidate, tools: Tools, wanted: Reference) -> None:
        self.candidate, self.tools, self.reference = candidate, tools, wanted
        self.groups = candidate.placement.groups()
        self.ranges = dict(candidate.ranges)
        self.methods = dict(candidate.methods)
        self.changed: set[int] = set()
        self.simulation: Simulation | None = None
        if tools.scheme.bias != "int32":  # whose biases hold their input's scale
            quantized = candidate.quantized(tools.scheme)
            self.simulation = Simulation(quantized, candidate.placement, tools.scheme, list(wanted.names))

    def _noises(self, ranges: dict[str, Range]) -> np.ndarray:
        scheme = self.tools.scheme
        if self.simulation is None:
            return self.reference.simulated(replace(self.candidate, ranges=ranges).quantized(scheme))
        return self.reference.noises(self.simulation.run(_grids(ranges, scheme), self.reference.feeds))

    def blamed(self) -> list[int]:
        """Groups by what they alone cost, the worst first."""
        few = reference(self.tools, sample_images(self.tools, _BLAMED))
        found = {}
        for group, members in track(self.groups.items(), "blame", len(self.groups)):
            alone = replace(self.candidate.placement, activations=tuple(members), weights=())
            bare = replace(self.candidate, placement=alone, overrides=NOTHING)
            found[group] = quality(few.simulated(bare.quantized(self.tools.scheme)))
        return sorted(found, key=lambda group: found[group])

    def descend(self, order: list[int], trials: int) -> None:
        """Try ranges group by group, the most blamed first, while trials are left; then from the start again."""
        best = self._noises(self.ranges)
        left = trials - 1
        for _ in range(2):
            before = quality(best)
            for group in track(order, "clip", len(order)):
                if left < len(_FACTORS):
                    return
                best, used = self._moved(group, best)
                left -= used
            if quality(best) < before + _GAIN:
                return

    def _moved(self, group: int, best: np.ndarray) -> tuple[np.ndarray, int]:
        """Move one group's range while that helps; the noises then, and the trials used."""
        names = [member.tensor for member in self.groups[group]]
        used = 0
        for number, factor in enumerate(_FACTORS):
            if number == 1 and used > 1:  # smaller was better: larger is not
                continue
            while True:
                moved = {name: (self.ranges[name][0] * factor, self.ranges[name][1] * factor) for name in names}
                tried = self.ranges | moved
                noises = self._noises(tried)
                used += 1
                if quality(noises) <= quality(best) + _GAIN or not improves(best, noises, doubts=0.5):
                    break
                best, self.ranges = noises, tried
                self.changed.add(group)
                self.methods |= dict.fromkeys(names, NAME)
                if number >= _COARSE:
                    break
        return best, used


def _grids(ranges: dict[str, Range], scheme: Scheme) -> Grids:
    return {tensor: activation_grid(low, high, scheme) for tensor, (low, high) in ranges.items()}
