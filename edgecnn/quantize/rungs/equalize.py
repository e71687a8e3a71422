"""Rung `equalize`: the same function with quieter channels made louder, and integers that fit the layer's input.

First cross-layer equalization, kept where it measures better; then what a Clip makes is centred, and every weight's
clipping and rounding searched by the error at its layer's output. None needs a label or a gradient of the network.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from edgecnn.process import progress
from edgecnn.quantize.ladder.candidate import Candidate, Tools, again
from edgecnn.quantize.ladder.effort import sample_images, share
from edgecnn.quantize.ladder.quality import better, split
from edgecnn.quantize.rungs.centre import centred
from edgecnn.quantize.rungs.links import equalized
from edgecnn.quantize.rungs.smooth import smoothed
from edgecnn.quantize.rungs.spread import Spread
from edgecnn.quantize.rungs.weight_clip import with_searched_weights

NAME = "equalize"
_QUICK = 64  # images of the quick look that decides whether equalization is worth a whole calibration
_SPREAD = 128  # images that tell how loud channels are
_WORTH = 0.1  # dB


def equalize(candidate: Candidate, tools: Tools) -> Candidate:
    """The better of equalized and not, with searched weights; unchanged where neither measures better."""
    fit, held = split(tools)
    found = candidate
    if models := _rescaled(candidate, tools):
        few = fit[: round(_QUICK * share(tools))]
        all_at_once = 2 * tools.feeder.count <= 3 * len(few)
        rescaled = [again(candidate, model, tools, None if all_at_once else few) for model in models]
        which, qualities = better(tools, candidate, rescaled, held)
        if which >= 0 and qualities[which + 1] >= qualities[0] + _WORTH and not all_at_once:
            rescaled = [again(candidate, models[which], tools)]
            which, qualities = better(tools, candidate, rescaled, held)
        if which >= 0 and qualities[which + 1] >= qualities[0] + _WORTH:
            found = rescaled[which]
            progress.current().note(f"equalize: channels rescaled, {qualities[which + 1] - qualities[0]:+.2f} dB")
    searched = with_searched_weights(centred(found, tools), tools, fit[: round(share(tools) * len(fit))])
    which, qualities = better(tools, found, [searched], held, doubts=0.0)
    progress.current().note(f"equalize: searched weights, {qualities[1] - qualities[0]:+.2f} dB")
    if which < 0:
        searched = found
    if searched is candidate:
        note = "equalize: neither rescaled channels nor other integers measure better"
        return replace(candidate, notes=(*candidate.notes, note))
    return replace(searched, rungs=(*candidate.rungs, NAME))


def _rescaled(candidate: Candidate, tools: Tools) -> list[ir.Model]:
    """The same function with other channel sizes: through what is homogeneous, and behind what is not."""
    sample = sample_images(tools, round(share(tools) * min(tools.feeder.count, _SPREAD)))
    known: dict[str, Spread] = {}
    found = [equalized(tools.graph, candidate.placement, tools.feeder, sample, known)]
    if tools.scheme.placement != "onnxruntime":  # onnxruntime's kernels have no place for a Mul behind SiLU
        found.append(smoothed(tools.graph, candidate.placement, tools.feeder, sample, known))
    return [model for model in found if model is not None]
