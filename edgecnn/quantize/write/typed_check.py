"""The typed graph is run in FP16 arithmetic on a few images, and what is FP32 in it grows until its answers hold.

What FP16 cannot hold is decided from values that a few images showed (`half`); this is the proof. Every output is held
to the float file that was given, beside the same graph in FP32. Where FP16 loses more than that, the operators at which
the error arises become FP32, then everything but the layers, then the whole graph, which is the FP32 graph itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgecnn.process import progress
from edgecnn.quantize.calibration.magnitudes import Magnitudes
from edgecnn.quantize.graph.sessions import Feeds, open_session, run_each
from edgecnn.quantize.noise.closeness import lost_db, picked, ratio
from edgecnn.quantize.place.placement import LAYERS
from edgecnn.quantize.write.blame import blamed
from edgecnn.quantize.write.half_values import demanded
from edgecnn.quantize.write.rounded import rounded
from edgecnn.quantize.write.typed import typed

IMAGES, LEAST = 8, 2
PIXELS = 4 * 640 * 640  # together: of large images fewer, which take as long and as much memory
ACCUMULATION = "FP32"  # inside an operator; its result is rounded to FP16
WANTED_DB, ALLOWED_DB = 1.0, 3.0  # worse than FP32: beyond the first, FP32 grows; beyond the second, all is FP32
# What is cleaner is not asked for more. FP16 alone reaches 50 to 70 dB, and 35 where a network magnifies every error;
# such a network's INT8 is far below that.
CLEAN_DB, CLEAN_FLOAT_DB = 40.0, 30.0
_ROUNDS = 4
_GAIN_DB = 0.5  # what more FP32 must bring: integers that flip at a rounding edge move the SQNR by tenths


@dataclass(frozen=True)
class OutputError:
    """One output against the float file, SQNR in dB over all images and the median of one image each."""

    name: str
    sqnr_db: float
    median_db: float
    fp32_sqnr_db: float  # the same graph in FP32
    fp32_median_db: float
    lost_db: float  # how much FP16 costs, as `closeness` counts it; what is clean costs nothing


@dataclass(frozen=True)
class TypedFile:
    """A typed graph, what stayed FP32 in it and why, and what its FP16 arithmetic makes of the images."""

    model: ir.Model
    islands: dict[str, str]
    outputs: tuple[OutputError, ...]
    images: int

    @property
    def lost_db(self) -> float:
        """Of the worst output."""
        return max((output.lost_db for output in self.outputs), default=0.0)

    def as_json(self) -> dict[str, Any]:
        """What quantize.json and typed.json tell. The SQNR is of the output that lost most; of equals the noisiest."""
        worst = max(self.outputs, key=lambda output: (output.lost_db, -output.sqnr_db), default=None)
        return {
            "arithmetic": "FP16",
            "accumulation": ACCUMULATION,
            "images": self.images,
            "sqnr_db": worst.sqnr_db if worst else None,
            "fp32_sqnr_db": worst.fp32_sqnr_db if worst else None,
            "lost_db": round(self.lost_db, 2),
            "outputs": [asdict(output) for output in self.outputs],
        }


@dataclass(frozen=True)
class Reference:
    """The outputs of the file that was given, and of the graph in FP32, on the same feeds.

    Attributes:
        clean_db: from this SQNR on, an output is not asked for more.
    """

    feeds: list[Feeds]
    images: int
    names: list[str]
    given: list[list[np.ndarray]]
    fp32: list[list[np.ndarray]]
    clean_db: float


def checked(model: ir.Model, measured: Magnitudes, reference: Reference) -> TypedFile:
    """The typed graph of a float or Q/DQ graph, proved on the reference's images."""
    best, also = _evaluated(model, measured, {}, reference), dict[str, str]()
    deep = best.lost_db > ALLOWED_DB
    for _ in range(_ROUNDS):
        if best.lost_db <= WANTED_DB:
            return best
        more = demanded(model.graph, measured.smallest, deep=True) if deep else {}
        more = more or blamed(model, best.model, reference.feeds[:2], also)
        found = _evaluated(model, measured, also | more, reference) if more else best
        if found.lost_db < best.lost_db - _GAIN_DB:
            best, also = found, also | more
        elif not deep:
            break
        deep = False
    why = "in FP16 the answers were not those of FP32"
    if best.lost_db > ALLOWED_DB:
        others = also | {node.name or "": why for node in model.graph if node.op_type not in LAYERS}
        best = _evaluated(model, measured, others, reference)
    if best.lost_db > ALLOWED_DB:
        everything = {node.name or "": why for node in model.graph}
        best = _evaluated(model, measured, everything, reference)
        progress.current().note("the typed graph is FP32 throughout: its outputs in FP16 differed from those in FP32")
    elif best.lost_db > WANTED_DB:
        progress.current().note(f"the typed graph's FP16 costs {best.lost_db:.1f} dB of SQNR against FP32")
    return best


def _evaluated(model: ir.Model, measured: Magnitudes, also: dict[str, str], reference: Reference) -> TypedFile:
    graph, islands = typed(model, measured, also)
    session = open_session(rounded(graph), simulate=True)
    answers = list(progress.track(run_each(session, reference.feeds), "typed file in FP16", len(reference.feeds)))
    return TypedFile(graph, islands, tuple(_errors(model, reference, answers)), reference.images)


def _errors(model: ir.Model, reference: Reference, answers: list[list[np.ndarray]]) -> Iterator[OutputError]:
    behind = picked(model.graph)
    for number, name in enumerate(reference.names):
        exact, fp32, half = ([each[number] for each in of] for of in (reference.given, reference.fp32, answers))
        if all(isinstance(values, np.ndarray) and values.dtype.kind in "fiub" for values in exact):
            order = behind.get(name)
            lost = lost_db(exact, fp32, half, order, reference.clean_db)
            before, after = (ratio(exact, found, order=bool(order)) for found in (fp32, half))
            yield OutputError(name, after.pooled, after.median, before.pooled, before.median, lost)
