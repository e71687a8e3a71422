"""From a histogram to a range, and from a range to scale and zero-point.

minmax     the extremes seen.
percentile 99.99 % of the values lie inside (each tail loses half of the rest).
entropy    the threshold whose 128 levels lose the least information: smallest Kullback-Leibler divergence between the
           clipped distribution of |x| and its quantized form (Migacz, "8-bit inference with TensorRT", GTC 2017).
mse        the clipping with the least squared error of the quantized values (a grid search; Banner et al. 2019 solve it
           for a Laplacian, the histogram needs no such assumption).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgecnn.quantize.calibration.histogram import BINS, Histogram
from edgecnn.recipe.device import Scheme

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy", "mse")
PERCENTILE = 99.99
_GRID = np.linspace(0.25, 1.0, 151)
_ENTROPY_LEVELS = 128
SMALLEST_HALF_SCALE = 2.0**-21  # eight steps of FP16: below, rounding up would cost more than an eighth of the range
_LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Grid:
    """Scale and zero-point of one tensor and the integer range [lowest, highest]; x ≈ (q - zero_point) · scale."""

    scale: float
    zero_point: int
    lowest: int
    highest: int

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """What QuantizeLinear then DequantizeLinear make of float values (round half to even, saturate)."""
        steps = np.clip(np.rint(values / self.scale) + self.zero_point, self.lowest, self.highest)
        return (steps - self.zero_point) * self.scale


def choose(method: Method, histogram: Histogram, scheme: Scheme) -> tuple[float, float]:
    """The range (low, high) that the method finds for one tensor."""
    if histogram.low > histogram.high:
        return 0.0, 0.0
    match method:
        case "minmax":
            return histogram.low, histogram.high
        case "percentile":
            return _percentile(histogram)
        case "entropy":
            threshold = _entropy(histogram)
            return max(histogram.low, -threshold), min(histogram.high, threshold)
        case "mse":
            return _mse(histogram, scheme)


def activation_grid(low: float, high: float, scheme: Scheme) -> Grid:
    """Scale and zero-point for activations in [low, high].

    Symmetric: INT8 [-128, 127], zero-point 0, scale = max(|low|, |high|) / 127. Asymmetric: UINT8 or INT8, the
    range widened to hold zero exactly. With FP16 islands the scale is rounded up to an FP16 number where there is
    one, so that the typed graph, whose scales are FP16, computes the same integers. A constant zero gets scale 1. With
    fewer than 8 `activation_bits` the integers are as many fewer.
    """
    half = 2 ** (scheme.activation_bits - 1)
    if scheme.activations == "int8-symmetric":
        return Grid(_storable(max(abs(low), abs(high)) / (half - 1), scheme), 0, -half, half - 1)
    low, high = min(low, 0.0), max(high, 0.0)
    steps = 2 * half - 1
    scale = _storable((high - low) / steps, scheme)
    lowest = 0 if scheme.activations == "uint8-asymmetric" else -half
    zero_point = int(np.clip(np.rint(-low / scale) + lowest, lowest, lowest + steps))
    return Grid(scale, zero_point, lowest, lowest + steps)


def activation_type(scheme: Scheme) -> type[np.int8] | type[np.uint8]:
    """The integer type of the scheme's activations."""
    return np.uint8 if scheme.activations == "uint8-asymmetric" else np.int8


def _storable(scale: float, scheme: Scheme) -> float:
    return float(storable_scales(np.asarray([scale]), scheme)[0])


def storable_scales(scales: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Scales as float32 values > 0 that FP16 holds exactly where the scheme has FP16 islands (rounded up).

    Where even the largest of them lies outside of what FP16 holds well, they stay as they are: the typed graph keeps
    such a layer in FP32.
    """
    positive = np.where(scales > 0.0, scales, 1.0).astype(np.float32)
    largest = float(np.max(scales, initial=0.0))
    if scheme.islands == "float32" or not (largest == 0.0 or SMALLEST_HALF_SCALE <= largest <= _LARGEST_HALF):
        return np.maximum(positive, np.finfo(np.float32).tiny)
    half = np.minimum(positive, _LARGEST_HALF).astype(np.float16)
    larger = half.view(np.uint16) + np.uint16(1)  # the next FP16 number: all are positive
    raised = np.where(half.astype(np.float32) < positive, larger.view(np.float16), half)
    return np.minimum(raised, np.float16(_LARGEST_HALF)).astype(np.float32)


def _percentile(histogram: Histogram) -> tuple[float, float]:
    total = int(histogram.counts.sum())
    outside = total * (1.0 - PERCENTILE / 100.0) / 2.0
    summed = np.cumsum(histogram.counts)
    first = int(np.searchsorted(summed, outside, side="right"))
    last = int(np.searchsorted(summed, total - outside, side="left"))
    edges = (np.arange(-BINS, BINS + 1)) * histogram.width
    return max(float(edges[first]), histogram.low), min(float(edges[last + 1]), histogram.high)


def _mse(histogram: Histogram, scheme: Scheme) -> tuple[float, float]:
    used = np.flatnonzero(histogram.counts)
    values, counts = histogram.centres()[used], histogram.counts[used].astype(np.float64)

    def error(low: float, high: float) -> float:
        return float(counts @ (values - activation_grid(low, high, scheme).rounded(values)) ** 2)

    low, high = histogram.low, histogram.high
    best = min(_GRID[::-1], key=lambda share: error(low * share, high * share))
    low, high = low * best, high * best
    if scheme.activations != "int8-symmetric" and low < 0.0 < high:
        # The tails differ: let each end move alone, once.
        low *= min(_GRID[::-1], key=lambda share: error(low * share, high))
        high *= min(_GRID[::-1], key=lambda share: error(low, high * share))
    return low, high


def _entropy(histogram: Histogram) -> float:
    """The clipping threshold of |x| with the least divergence; all thresholds at once from prefix sums."""
    counts = histogram.magnitudes().astype(np.float64)
    # Exact zeros (a ReLU makes many) are represented without error at any scale; they must not decide.
    counts[0] = counts[1]
    if np.count_nonzero(counts) <= _ENTROPY_LEVELS:  # fewer kinds of values than levels: no distribution to compare
        return histogram.bound
    used = int(np.flatnonzero(counts)[-1]) + 1
    if used <= _ENTROPY_LEVELS:
        return histogram.bound
    sums = np.concatenate([[0.0], np.cumsum(counts)])
    filled = np.concatenate([[0.0], np.cumsum(counts > 0)])
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.concatenate([[0.0], np.cumsum(np.where(counts > 0, counts * np.log(counts), 0.0))])
    stops = np.arange(_ENTROPY_LEVELS, used + 1)
    divergences = np.empty(len(stops))
    for start in range(0, len(stops), 512):
        divergences[start : start + 512] = _divergence(stops[start : start + 512], counts, sums, filled, terms)
    return min(float(stops[int(np.argmin(divergences))]) * histogram.width, histogram.bound)


def _divergence(
    stops: np.ndarray, counts: np.ndarray, sums: np.ndarray, filled: np.ndarray, terms: np.ndarray
) -> np.ndarray:
    """KL(P ‖ Q) for each number of kept bins.

    P: the kept counts, what is clipped added to the last bin. Q: the kept counts (without what is clipped) averaged
    over the filled bins of each of 128 levels. The sum of p log(p / q) needs only sums over levels.
    """
    edges = (np.arange(_ENTROPY_LEVELS + 1)[None, :] * stops[:, None]) // _ENTROPY_LEVELS
    mass = sums[edges[:, 1:]] - sums[edges[:, :-1]]
    bins = filled[edges[:, 1:]] - filled[edges[:, :-1]]
    clipped = sums[-1] - sums[stops]
    last = counts[stops - 1]
    whole, kept = sums[-1], sums[stops]
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.where(mass > 0, np.log(mass / bins), 0.0)
        # Counts in place of probabilities; both normalizations are added at the end.
        own = terms[stops] - np.where(last > 0, last * np.log(last), 0.0)
        final = last + clipped
        own += np.where(final > 0, final * np.log(final), 0.0)
        cross = (mass * level).sum(axis=1) + clipped * level[:, -1]
        result = (own - cross) / whole - np.log(whole) + np.log(kept)
    # Clipped values added to an empty last bin, where Q is zero: infinitely far.
    result[(clipped > 0) & (last == 0)] = np.inf
    return result
