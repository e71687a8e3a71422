"""Where a typed graph's error arises: nodes whose result FP16 harms far more than what they read."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.graph.sessions import Feeds, expose, open_session, run
from edgecnn.quantize.place.placement import LAYERS, QDQ
from edgecnn.quantize.write.rounded import rounded

_HARM = 1e-4  # noise over signal: below, nothing is to blame
# Of noise over signal, from a node's inputs to its output. A layer averages the errors of what it reads; where it makes
# far more of them, its products cancel, and its weights may not be rounded either.
_GROWTH, _LAYER_GROWTH = 10.0, 100.0
_MOST = 32  # nodes at a time: what follows from them may be right after that
_ROUNDING = 1e-8


def blamed(model: ir.Model, halves: ir.Model, feeds: list[Feeds], known: dict[str, str]) -> dict[str, str]:
    """Nodes that should be FP32 too, by name, with why; with each its neighbours, as what it reads is rounded as well.

    Args:
        model: the graph in FP32.
        halves: the typed one that is made of it; tensors have the same names.
        feeds: a few images.
        known: nodes that are FP32 already by an earlier answer.
    """
    ratios = _ratios(model, halves, feeds)
    found: list[tuple[float, ir.Node]] = []
    for node in model.graph:
        after = max((ratios[value.name] for value in node.outputs if value.name in ratios), default=0.0)
        if after <= _HARM or node.name in known or node.op_type in QDQ:
            continue
        before = max((ratios.get(value.name or "", 0.0) for value in node.inputs if value is not None), default=0.0)
        growth = after / max(before, _ROUNDING)
        if math.isfinite(before) and (node.op_type not in LAYERS or growth >= _LAYER_GROWTH):
            found.append((growth, node))
    found.sort(key=lambda entry: -entry[0])
    chosen = [node for growth, node in found if growth >= _GROWTH][:_MOST] or [node for _, node in found[:1]]
    wide: dict[str, str] = {}
    for node in chosen:
        why = f"in FP16 the error of `{node.outputs[0].name}` was far larger than that of what `{node.name}` reads"
        wide[node.name or ""] = why
        near = [value.producer() for value in node.inputs if value is not None and constant(value) is None]
        near += [use[0] for value in node.outputs for use in value.uses()]
        for other in near:
            if other is not None and other.op_type not in LAYERS and other.op_type not in QDQ:
                wide.setdefault(other.name or "", why)
    return {name: why for name, why in wide.items() if name not in known}


def _ratios(model: ir.Model, halves: ir.Model, feeds: list[Feeds]) -> dict[str, float]:
    """Noise over signal of every float tensor that both graphs have; infinite where FP16 alone is not finite."""
    made = {value.name for node in halves.graph for value in node.outputs}
    names = [
        value.name or ""
        for node in model.graph
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT and value.name in made and value.uses()
    ]
    exact, half = (
        open_session(expose(model, names), simulate=True),
        open_session(expose(rounded(halves), names), simulate=True),
    )
    found = dict.fromkeys(names, 0.0)
    for feed in feeds:
        for name, a, b in zip(names, run(exact, feed), run(half, feed), strict=True):
            found[name] = max(found[name], _ratio(a, b))
    return found


def _ratio(exact: np.ndarray, half: np.ndarray) -> float:
    if exact.shape != half.shape:
        return 0.0
    usable = np.isfinite(exact)
    a, b = exact[usable].astype(np.float64), half[usable].astype(np.float64)
    if not np.isfinite(b).all():
        return math.inf
    signal, noise = float(np.vdot(a, a)), float(np.vdot(a - b, a - b))
    return noise / signal if signal > 0.0 else (math.inf if noise > 0.0 else 0.0)
