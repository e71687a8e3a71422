"""What FP16 costs an output: SQNR of numbers, and the share of other entries where an order or an index decides.

One value that changes places with its neighbour moves every row behind it, in FP32 as in FP16: such outputs are held to
how many of their entries differ, and those behind a sorting regardless of the rows' order.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgecnn.measure.stats import Sqnr, powers, sqnr

LOST = 200.0  # dB: nothing is left
_SORTING = frozenset({"TopK", "NonMaxSuppression", "NonZero", "Unique", "Compress"})
_PICKING = frozenset({"ArgMax", "ArgMin"})
_BROKEN_DB, _CHANCE_DB = 6.0, 10.0  # what is this far from float in FP32 already, moves by so much with every rounding
_ALIKE = 0.01  # of an output's largest value
_OTHERS = 0.05  # share of entries that may differ: as many do in FP32 where two are nearly equal
Arrays = list[np.ndarray]


def picked(graph: ir.Graph) -> dict[str, bool]:
    """Outputs behind an index, by name; True where a sorting decides the order of their rows."""
    behind: dict[ir.Value, bool] = {}
    for node in graph:
        found = [behind[value] for value in node.inputs if value is not None and value in behind]
        if found or node.op_type in _SORTING or node.op_type in _PICKING:
            behind.update(dict.fromkeys(node.outputs, any(found) or node.op_type in _SORTING))
    return {value.name or "": behind[value] for value in graph.outputs if value in behind}


def ratio(exact: Arrays, found: Arrays, *, order: bool = False) -> Sqnr:
    """Of one output, image by image; indices count as the numbers that they are. `order`: whatever that of the rows."""
    if order:
        exact, found = [in_order(values) for values in exact], [in_order(values) for values in found]
    pairs = [powers(want[None].astype(np.float64), got[None]) for want, got in zip(exact, found, strict=True)]
    return sqnr([float(signal[0]) for signal, _ in pairs], [float(noise[0]) for _, noise in pairs])


def lost_db(exact: Arrays, fp32: Arrays, half: Arrays, order: bool | None, clean_db: float) -> float:
    """How much worse than the FP32 graph's an output is, in dB; 0 at least. `LOST` where it is not finite any more.

    Args:
        exact, fp32, half: of the given file, of the graph in FP32 and in FP16, image by image.
        order: as `picked` has it, None of an output of numbers.
        clean_db: an SQNR that is not asked for more.
    """
    if any(np.isfinite(want).all() and not np.isfinite(got).all() for want, got in zip(exact, half, strict=True)):
        return LOST
    same = [place for place, want in enumerate(exact) if want.shape == fp32[place].shape == half[place].shape]
    if not same:
        return 0.0  # values decide how many rows there are
    if order is None and exact[0].dtype.kind == "f":
        before, after = ratio(exact, fp32), ratio(exact, half)
        pairs = ((before.pooled, after.pooled), (before.median, after.median))
        return max(
            0.0, *(min(one, clean_db) - other - (_CHANCE_DB if one < _BROKEN_DB else 0.0) for one, other in pairs)
        )
    before_share, after_share = (
        float(np.mean([_others(exact[place], found[place], bool(order)) for place in same])) for found in (fp32, half)
    )
    return 10.0 * math.log10(max(1.0, after_share / max(before_share, _OTHERS)))


def _others(exact: np.ndarray, found: np.ndarray, order: bool) -> float:
    """Share of entries that differ."""
    if exact.size == 0:
        return 0.0
    if order:
        exact, found = in_order(exact), in_order(found)
    a, b = exact.astype(np.float64), found.astype(np.float64)
    largest = float(np.abs(a[np.isfinite(a)]).max(initial=0.0))
    alike = np.abs(a - b) <= (_ALIKE * largest if exact.dtype.kind == "f" else 0.0)
    return float(1.0 - np.mean(alike | (a == b)))


def in_order(values: np.ndarray) -> np.ndarray:
    """Every column (N, rows, …) sorted by itself: two rows that change places behind a TopK are no error."""
    return np.sort(values, axis=min(1, values.ndim - 1)) if values.ndim else values
