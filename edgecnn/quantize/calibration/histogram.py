"""A histogram whose bins merge exactly as the range grows.

Bins have the width 2^exponent and edges at multiples of it. When a value falls outside, the exponent grows by one and
neighbouring bins are added in pairs: floor(floor(x / w) / 2) = floor(x / 2w) for every real x, and dividing a float32
by a power of two is exact, so the counts are those that the final width would have given from the start. Counts are
integers, so neither the order of the images nor their batching can change a bit.

The extremes are those of all values. Of a tensor with more than 2^17 values at a time every k-th is counted, k times
over, with k odd so that it walks through all columns: tens of thousands of values an image say as much as all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BINS = 4096  # on each side of zero
_BLOCK = 1 << 16
_COUNTED = 1 << 16  # values of one tensor that are counted at a time, at least
_SMALLEST = -120  # keeps 2^-exponent within float32


@dataclass
class Histogram:
    """Counts of one tensor's values over all calibration images.

    `counts` has 2 × BINS int64 entries; entry i counts values in [(i - BINS) w, (i - BINS + 1) w), w = 2^exponent.
    """

    low: float = np.inf
    high: float = -np.inf
    exponent: int = _SMALLEST
    counts: np.ndarray = field(default_factory=lambda: np.zeros(2 * BINS, np.int64))

    def add(self, values: np.ndarray) -> None:
        """Count `values` (float, any shape).

        Raises:
            ValueError: there is a NaN or an infinity among them.
        """
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("NaN" if np.isnan(low) or np.isnan(high) else "infinite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(abs(low), abs(high)))
        step = max(1, flat.size // _COUNTED) | 1
        flat = flat[::step]
        # In blocks that stay in the processor's cache: whole tensors would cost more in fresh memory than in counting.
        block = np.empty(min(_BLOCK, flat.size), np.float32)
        index = np.empty(block.size, np.int32)  # half the memory of intp, and bincount is as fast
        shrink = np.float32(2.0**-self.exponent)
        for start in range(0, flat.size, _BLOCK):
            part = flat[start : start + _BLOCK]
            scaled, whole = block[: part.size], index[: part.size]
            np.multiply(part, shrink, out=scaled)
            if low >= 0.0:  # after a ReLU: truncation is floor
                np.copyto(whole, scaled, casting="unsafe")
                self.counts[BINS:] += step * np.bincount(whole, minlength=BINS)
            else:
                np.floor(scaled, out=scaled)
                scaled += np.float32(BINS)  # exact: both are integers far below 2^24
                np.copyto(whole, scaled, casting="unsafe")
                self.counts += step * np.bincount(whole, minlength=2 * BINS)

    def _widen(self, bound: float) -> None:
        # The largest index is floor(bound / w) <= BINS - 1, and the smallest floor(-bound / w) >= -BINS.
        needed = self.exponent
        if bound > 0.0:
            needed = max(self.exponent, int(np.frexp(bound)[1]) - int(np.log2(BINS)))
        if needed > self.exponent:
            self.counts = _merged(self.counts, needed - self.exponent)
            self.exponent = needed

    @property
    def width(self) -> float:
        """Width of a bin."""
        return float(2.0**self.exponent)

    @property
    def bound(self) -> float:
        """The largest magnitude seen."""
        return max(abs(self.low), abs(self.high)) if self.low <= self.high else 0.0

    def centres(self) -> np.ndarray:
        """(2 × BINS,) float64: the middle of each bin."""
        return (np.arange(-BINS, BINS) + 0.5) * self.width

    def magnitudes(self) -> np.ndarray:
        """(BINS,) int64: counts of |x| per bin."""
        return self.counts[BINS:] + self.counts[:BINS][::-1]


def merged(parts: list[Histogram]) -> Histogram:
    """One histogram of several tensors that share a scale."""
    exponent = max(part.exponent for part in parts)
    counts = sum((_merged(part.counts, exponent - part.exponent) for part in parts), np.zeros(2 * BINS, np.int64))
    return Histogram(min(part.low for part in parts), max(part.high for part in parts), exponent, counts)


def _merged(counts: np.ndarray, steps: int) -> np.ndarray:
    for _ in range(steps):
        if not counts.any():
            break
        halved = np.zeros_like(counts)
        # Index i - BINS -> floor((i - BINS) / 2): BINS is even, so pairs start at even i on both sides of zero.
        halved[BINS // 2 : BINS + BINS // 2] = counts.reshape(-1, 2).sum(axis=1)
        counts = halved
    return counts
