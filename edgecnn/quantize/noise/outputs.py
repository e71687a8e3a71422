"""What INT8 does to a model's outputs, told image by image: SQNR, and how often the answer stays the same."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgecnn.measure.stats import Sqnr, powers, sqnr
from edgecnn.process.progress import track
from edgecnn.quantize.calibration.arrays import NamedArrays
from edgecnn.quantize.calibration.calibrate import Feeder, ImageSource
from edgecnn.quantize.graph.sessions import open_session, run_each
from edgecnn.quantize.noise.closeness import in_order, picked

LEAST, MOST = 32, 128  # images told over: MOST where they are small
_PIXELS = 64 * 224 * 224  # so many together, which bounds the seconds
_ENOUGH_HELD = 16  # images that did not calibrate; of fewer nothing can be told, and the calibration images must do
LOW_DB, LOW_AGREEMENT = 15.0, 0.95  # below either, INT8 is another model


@dataclass(frozen=True)
class Told:
    """The outputs of INT8, in float simulation, against float's.

    Attributes:
        sqnr: of all floating outputs of an image together; None where there is none.
        outputs: of each of them by its name.
        agreement: share of images with the same answer, or of equal values of a first output of integers; None where
            the first output is neither a score for each class nor integers.
        images: compared; `held`: none of them calibrated.
    """

    sqnr: Sqnr | None
    outputs: dict[str, Sqnr]
    agreement: float | None
    images: int
    held: bool

    def warnings(self) -> list[str]:
        """What a reader must know before anything else; empty where INT8 follows float."""
        found = []
        if self.sqnr and min(self.sqnr.median, self.sqnr.pooled) < LOW_DB:
            found.append(
                f"the outputs' SQNR is {self.sqnr.median:.1f} dB on the median of {self.images} images"
                f" ({self.sqnr.pooled:.1f} dB pooled), below {LOW_DB:g} dB"
            )
        if self.agreement is not None and self.agreement < LOW_AGREEMENT:
            found.append(
                f"INT8 gives float's answer on {100 * self.agreement:.1f} % of {self.images} images, below"
                f" {100 * LOW_AGREEMENT:g} %"
            )
        return found

    def as_json(self) -> dict[str, Any]:
        """Its part of quantize.json."""
        whole = self.sqnr
        return {
            "sqnr_db": whole.pooled if whole else None, "sqnr_median_db": whole.median if whole else None,
            "sqnr_lowest_db": whole.lowest if whole else None, "agreement": self.agreement,
            "compared_images": self.images, "compared_held": self.held,
            "outputs": {name: asdict(one) for name, one in self.outputs.items()}, "warnings": self.warnings(),
        }  # fmt: skip


def told(feeder: Feeder, held: ImageSource | NamedArrays | None, quantized: ir.Model, *, classes: bool) -> Told:
    """Compare `quantized`, in float simulation, with the feeder's float model.

    Behind a sorting (TopK, NonMaxSuppression) each column is compared whatever the order of its rows.
    Images that did not calibrate are taken where there are enough: those of the feeder past its count, else `held`.

    Args:
        classes: the first output may hold a score for each class.
    """
    source, sample, apart = _images(feeder, held, max(LEAST, min(MOST, _PIXELS // feeder.pixels)))
    exact = run_each(open_session(feeder.model), source.feeds(sample))
    simulated = run_each(open_session(quantized, simulate=True), source.feeds(sample))
    batch, rows = source.batch, []
    sorted_by = picked(feeder.model.graph)
    ordered = {place for place, value in enumerate(feeder.model.graph.outputs) if sorted_by.get(value.name or "")}
    floats: list[int] = []
    equal: list[np.ndarray] = []
    steps = track(zip(exact, simulated, strict=True), "compare outputs", -(-len(sample) // batch))
    for number, (wanted, got) in enumerate(steps):
        real = min(batch, len(sample) - number * batch)
        floats = [place for place, values in enumerate(wanted) if values.dtype.kind == "f"]
        pairs = [(in_order(wanted[p]), in_order(got[p])) if p in ordered else (wanted[p], got[p]) for p in floats]
        rows.append(np.stack([by_image(*pair, batch, real) for pair in pairs] or [np.empty(0)]))
        if classes:
            equal.append(_same_answer(wanted[0], got[0], real))
    names = [feeder.model.graph.outputs[place].name or "" for place in floats]
    found = np.concatenate(rows, axis=-1) if floats else np.empty((0, 2, 0))  # (outputs, 2, images)
    return Told(
        sqnr(found[:, 0].sum(axis=0), found[:, 1].sum(axis=0)) if floats else None,
        {name: sqnr(*powers_of) for name, powers_of in zip(names, found, strict=True)},
        float(np.mean(np.concatenate(equal))) if equal and all(len(part) for part in equal) else None,
        len(sample),
        apart,
    )


def _images(
    feeder: Feeder, held: ImageSource | NamedArrays | None, most: int
) -> tuple[Feeder, list[int], bool]:  # fmt: skip
    """(feeder, numbers of its images, whether none of them calibrated)."""
    past = list(range(feeder.count, len(feeder.images)))[:most]
    if len(past) >= _ENOUGH_HELD:
        return feeder, past, True
    if held is not None and len(held) >= _ENOUGH_HELD:
        # Splits stand in order of class. RandomState's stream never changes between numpy versions (NEP 19).
        drawn = np.random.RandomState(0).permutation(len(held))[:most]
        return Feeder(feeder.model, feeder.contract, held, len(held)), sorted(drawn.tolist()), True
    return feeder, feeder.sample(most), False


def by_image(want: np.ndarray, got: np.ndarray, batch: int, real: int) -> np.ndarray:
    """Powers (2, real) of an output and of its error; of one without the batch in front each image gets its part."""
    if batch > 1 and want.shape[:1] == got.shape[:1] == (batch,):
        return np.stack(powers(want[:real], got[:real]))
    return np.repeat(np.stack(powers(want[None], got[None])) / real, real, axis=1)


def _same_answer(want: np.ndarray, got: np.ndarray, real: int) -> np.ndarray:
    """(real,) whether the largest score is the same, or the share of equal integers; empty where it is neither."""
    if want.shape != got.shape or want.ndim == 0 or want.size == 0:
        return np.zeros(0)
    rows, others = want[:real].reshape(min(real, len(want)), -1), got[:real].reshape(min(real, len(want)), -1)
    if want.dtype.kind in "iu":
        return np.asarray((rows == others).mean(axis=1))
    if want.dtype.kind != "f" or want.ndim < 2 or not 2 <= want.shape[1] == rows.shape[1]:
        return np.zeros(0)
    return np.asarray(rows.argmax(axis=1) == others.argmax(axis=1), np.float64)
