"""How much a rung may run: counted in multiply-accumulates, so that the same model always gets the same effort."""

from __future__ import annotations

from dataclasses import dataclass

from edgecnn.quantize.ladder.candidate import Tools
from edgecnn.quantize.ladder.quality import split
from edgecnn.quantize.place.coverage import macs
from edgecnn.recipe.recipe import EffortName, RungName

_ELEMENTWISE = 8  # a value quantized, dequantized or activated costs as many multiply-accumulates as this


@dataclass(frozen=True)
class Effort:
    """What an effort pays for.

    Attributes:
        rungs: climbed always, each kept by the outputs of held calibration images.
        share: of the multiply-accumulates and images that a rung would like.
        passes: what its rungs take, in passes of the float graph over the calibration images, roughly.
    """

    rungs: tuple[RungName, ...]
    share: float
    passes: float


EFFORTS: dict[EffortName, Effort] = {
    "fast": Effort(("equalize",), 0.25, 7.0),
    "balanced": Effort(("equalize", "bias"), 0.5, 12.0),
    "thorough": Effort(("equalize", "bias", "clip", "adaround"), 1.0, 80.0),
}


def share(tools: Tools) -> float:
    """Of the full effort, what is asked."""
    return EFFORTS[tools.effort].share


def inference(tools: Tools) -> int:
    """Multiply-accumulates of one float-simulated inference, roughly."""
    nodes = tools.graph.nodes()
    values = 0
    for node in nodes:
        shape = tools.graph.shape(node.outputs[0])
        size = 1
        for n in shape:
            size *= n
        values += size
    return max(1, sum(macs(node, tools.graph) for node in nodes) + _ELEMENTWISE * values)


def affordable(tools: Tools, effort: float) -> int:
    """Inferences that `effort` multiply-accumulates pay for."""
    return max(1, int(share(tools) * effort / inference(tools)))


def sample_images(tools: Tools, most: int) -> list[int]:
    """Up to `most` of the images to fit on."""
    return split(tools)[0][:most]
