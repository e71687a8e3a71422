"""One float-simulated session for several sets of activation scales: the scales are its inputs, the weights stay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from edgecnn.quantize.calibration.ranges import activation_type
from edgecnn.quantize.graph.sessions import Feeds, expose, open_session, run_each
from edgecnn.quantize.place.placement import Placement
from edgecnn.quantize.write.rewrite import CLIPS, QUANTIZES, Grids, rewrite
from edgecnn.recipe.device import Scheme


def simulations(
    model: ir.Model, placement: Placement, grids: list[Grids], scheme: Scheme, feeds: list[Feeds], outputs: list[str]
) -> Iterator[Iterator[list[np.ndarray]]]:
    """For each set of scales the tensors `outputs` of the float-simulated Q/DQ graph for every feed, to the bit.

    INT32 biases hold the scale of their layer's input, so with them every set gets a session of its own.
    """
    if scheme.bias == "int32":
        for each in grids:
            yield run_each(open_session(expose(rewrite(model, placement, each, scheme), outputs), simulate=True), feeds)
        return
    quantized = rewrite(model, placement, grids[0], scheme)
    slots = _opened(quantized, placement)
    session = open_session(expose(quantized, outputs), simulate=True)
    for each in grids:
        numbers = _numbers(slots, each, scheme)
        yield run_each(session, ({**feed, **numbers} for feed in feeds))


def _opened(quantized: ir.Model, placement: Placement) -> dict[str, tuple[list[str], list[str]]]:
    """Turn the scales, zero-points and clipping ends into inputs; their names by tensor: (scale, zero-point), ends."""
    quantizers = {node.meta[QUANTIZES]: node for node in quantized.graph if QUANTIZES in node.meta}
    clips = {node.meta[CLIPS]: node for node in quantized.graph if CLIPS in node.meta}
    slots = {}
    for activation in placement.activations:
        name = activation.tensor
        own = list(quantizers[name].inputs[1:3])
        ends = list(clips[name].inputs[1:3]) if name in clips else []
        for value in (*own, *ends):
            assert value is not None
            del quantized.graph.initializers[value.name]
            value.const_value = None
            quantized.graph.inputs.append(value)
        slots[name] = [v.name or "" for v in own if v], [v.name or "" for v in ends if v]
    return slots


def _numbers(slots: dict[str, tuple[list[str], list[str]]], grids: Grids, scheme: Scheme) -> Feeds:
    feeds: Feeds = {}
    for tensor, ((scale, zero), ends) in slots.items():
        grid = grids[tensor]
        feeds[scale] = np.asarray(grid.scale, np.float32)
        feeds[zero] = np.asarray(grid.zero_point, activation_type(scheme))
        for name, step in zip(ends, (grid.lowest, grid.highest), strict=False):
            feeds[name] = np.asarray((step - grid.zero_point) * grid.scale, np.float32)
    return feeds


class Simulation:
    """One float-simulated graph whose activation scales are given with every feed; not for INT32 biases, see above."""

    def __init__(self, quantized: ir.Model, placement: Placement, scheme: Scheme, outputs: list[str]) -> None:
        self.scheme = scheme
        self.slots = _opened(quantized, placement)
        self.session = open_session(expose(quantized, outputs), simulate=True)

    def run(self, grids: Grids, feeds: Iterable[Feeds]) -> Iterator[list[np.ndarray]]:
        """The outputs for every feed, with these scales."""
        numbers = _numbers(self.slots, grids, self.scheme)
        return run_each(self.session, ({**feed, **numbers} for feed in feeds))
