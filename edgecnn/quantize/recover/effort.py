"""How much a rung may run: counted in multiply-accumulates, so that the same model always gets the same effort."""

from __future__ import annotations

from edgecnn.quantize.candidate import Tools
from edgecnn.quantize.coverage import macs
from edgecnn.quantize.recover.quality import split

_ELEMENTWISE = 8  # a value quantized, dequantized or activated costs as many multiply-accumulates as this


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
    return max(1, int(effort / inference(tools)))


def some(tools: Tools, most: int) -> list[int]:
    """Up to `most` of the images to fit on."""
    return split(tools)[0][:most]
