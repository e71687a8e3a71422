"""The statistics behind the verdicts: paired, seeded, with bounds. NumPy only, so a board can run them too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

BLOCK = 16  # neighbouring timings share the machine's mood: resampled together
RESAMPLES = 2000
CHUNK = 4_000_000  # resampled values held at once, 32 MB
# Power analysis of McNemar's design: (z at 95 % one-sided + z at 80 % power)^2, rounded.
POWER_FACTOR = 6.2


@dataclass(frozen=True)
class Ratio:
    """Median of per-pair ratios second/first, with one-sided 95 % bounds."""

    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Bounds:
    """A statistic with its one-sided lower and upper bounds, in the statistic's unit."""

    value: float
    lower: float
    upper: float


EXACT_DB = 200.0  # what an output without any noise counts as, and with endless noise its negative


@dataclass(frozen=True)
class Sqnr:
    """Signal over quantization noise in dB over `images`: what every SQNR of a model's outputs here means.

    Attributes:
        pooled: of the powers summed over the images; a few with large noise decide it.
        median: of the images' own; what a usual image has.
        lowest: of the images' own.
    """

    pooled: float
    median: float
    lowest: float
    images: int


# --- proportions on the same images ---


def tango_bounds(b: ArrayLike, c: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> tuple[Any, Any]:
    """One-sided score bounds of the drop (b - c) / n between two models scored on the same images.

    T. Tango, Statistics in Medicine 17 (1998) 891-908: inverts the score test with the constrained maximum likelihood
    of the discordant probability, here by bisection. Scalars give floats, arrays give arrays.

    Args:
        b: images that only the first model gets right; c: that only the second does; n: all images, at least one.
        confidence: of each bound by itself; 0.975 gives the usual two-sided 95 % interval.

    Returns:
        (lower, upper), fractions of 1.
    """
    only_first, only_second, images = np.broadcast_arrays(
        np.asarray(b, np.float64), np.asarray(c, np.float64), np.asarray(n, np.float64)
    )
    if np.any(images < 1) or np.any(only_first < 0) or np.any(only_second < 0):
        raise ValueError("tango_bounds needs counts of at least 0 and n of at least 1")
    if np.any(only_first + only_second > images):
        raise ValueError("tango_bounds: more discordant images than images")
    z = NormalDist().inv_cdf(confidence)
    upper = _tango_upper(only_first, only_second, images, z)
    lower = -_tango_upper(only_second, only_first, images, z)  # the drop seen from the other model
    if upper.ndim == 0:
        return float(lower), float(upper)
    return lower, upper


def _tango_upper(b: Floats, c: Floats, n: Floats, z: float) -> Floats:
    low, high = (b - c) / n, np.ones_like(n)
    for _ in range(54):  # to the last bit of a double in [-1, 1]
        middle = (low + high) / 2
        inside = _tango_score(middle, b, c, n) > -z
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return high


def _tango_score(drop: Floats, b: Floats, c: Floats, n: Floats) -> Floats:
    quadratic, linear = 2 * n, -b - c + (2 * n - b + c) * drop
    constant = -c * drop * (1 - drop)
    root = np.sqrt(np.maximum(linear**2 - 4 * quadratic * constant, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        # The root's form is chosen by sign so that nothing cancels when c is small against n.
        second = np.where(linear > 0, -2 * constant / (linear + root), (root - linear) / (2 * quadratic))
        variance = n * (2 * second + drop * (1 - drop))
        difference = b - c - n * drop
        return np.where(variance > 0, difference / np.sqrt(variance), np.copysign(np.inf, difference))


def mcnemar_mid_p(b: int, c: int) -> float:
    """Two-sided McNemar mid-p of "both models are equally good" (Fagerland, Lydersen, Laake, BMC MRM 13:91, 2013).

    Printed for information; it never decides a verdict, because on many images it finds harmless drops.
    """
    n, low = b + c, min(b, c)
    if n == 0:
        return 1.0
    ways = math.lgamma(n + 1) - n * math.log(2)
    terms = [math.exp(ways - math.lgamma(k + 1) - math.lgamma(n - k + 1)) for k in range(low + 1)]
    return min(1.0, 2 * math.fsum(terms[:-1]) + terms[-1])


def images_needed(disc: float, budget: float, drop: float = 0.0) -> int | None:
    """Images for an 80 % chance to decide, n = 6.2·disc/(budget - drop)²; None when the drop sits on the budget.

    Args:
        disc: share of images where exactly one model is right; budget and drop: fractions of 1.
    """
    distance = abs(budget - drop)
    if distance < 1e-9 or (budget <= 0.0 and drop >= 0.0 and disc == 0.0):
        return None
    needed = POWER_FACTOR * disc / distance**2
    if drop < budget and budget > 0.0:
        # Without any disagreement the bound is still z²/(n + z²): below this n no PASS is possible at all.
        needed = max(needed, NormalDist().inv_cdf(0.95) ** 2 * (1 - budget) / budget)
    return math.ceil(needed)


def images_for_bounds(images: int, half: float, room: float) -> int:
    """Images for a bootstrap's bound, `half` from its point on so many images, to come within `room` of it.

    Bounds of a mean shrink with the root of the number of images. Both distances are fractions of 1, `room` above 0.
    """
    return math.ceil(images * (half / room) ** 2)


def wilson_interval(right: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of one proportion (Wilson, JASA 22, 1927), fractions of 1."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = right / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


# --- timings ---


def pair_ratio(
    first_ms: ArrayLike, second_ms: ArrayLike, block: int = BLOCK, resamples: int = RESAMPLES, seed: int = 0
) -> Ratio:
    """Median of the per-pair log-ratios second/first of interleaved timings, as a ratio with 95 % bounds.

    Circular block bootstrap (Politis and Romano, 1992) with fixed seed, because neighbouring pairs are not independent.

    Args:
        first_ms, second_ms: (pairs,), milliseconds above zero; pair i ran side by side.
    """
    first, second = np.asarray(first_ms, np.float64), np.asarray(second_ms, np.float64)
    if first.shape != second.shape or first.ndim != 1 or first.size == 0:
        raise ValueError(f"pair_ratio needs two equal one-dimensional arrays, got {first.shape} and {second.shape}")
    if not (np.all(first > 0) and np.all(second > 0)):
        raise ValueError("pair_ratio needs times above zero")
    logs = np.log(second / first)
    lower, upper = _block_bootstrap(logs, 0.5, block, resamples, seed)
    return Ratio(float(np.exp(np.median(logs))), math.exp(lower), math.exp(upper))


def p99_bounds(ms: ArrayLike, block: int = BLOCK, resamples: int = RESAMPLES, seed: int = 0) -> Bounds:
    """99th percentile of timings in milliseconds with one-sided 95 % block-bootstrap bounds. `ms`: (queries,)."""
    values = np.asarray(ms, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"p99_bounds needs a one-dimensional array with values, got {values.shape}")
    lower, upper = _block_bootstrap(values, 0.99, block, resamples, seed)
    return Bounds(float(np.quantile(values, 0.99)), lower, upper)


def p5_speedup(float_ms: ArrayLike, int8_ms: ArrayLike) -> float:
    """The headline speed-up: ratio of 5th percentiles float/INT8, what the engines do when nothing disturbs them."""
    return float(np.quantile(np.asarray(float_ms), 0.05) / np.quantile(np.asarray(int8_ms), 0.05))


def _block_bootstrap(values: Floats, quantile: float, block: int, resamples: int, seed: int) -> tuple[float, float]:
    """5th and 95th percentile of `quantile` over resamples of whole blocks; blocks wrap round the end."""
    n = values.size
    block = min(block, n)
    blocks = -(-n // block)
    random = np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, rows := max(1, CHUNK // n)):
        count = min(rows, resamples - start)
        starts = random.integers(0, n, (count, blocks, 1))
        chosen = ((starts + np.arange(block)) % n).reshape(count, -1)[:, :n]
        found.append(np.quantile(values[chosen], quantile, axis=1))
    lower, upper = np.quantile(np.concatenate(found), [0.05, 0.95])
    return float(lower), float(upper)


def decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise); EXACT_DB without noise, its negative with endless noise, 0 with noise and no signal."""
    if noise <= 0.0:
        return EXACT_DB
    if noise == math.inf:
        return -EXACT_DB
    return 10.0 * (math.log10(signal) - math.log10(noise)) if signal > 0.0 else 0.0


def powers(want: NDArray[Any], got: NDArray[Any]) -> tuple[Floats, Floats]:
    """Sums of squares (N,) of an output (N, …) and of its error, image by image.

    Zeros for what is not compared as a number (indices, truth values); places where float itself is not finite are left
    out. An output of another shape (kept boxes) counts as lost; a value that is not finite in `got` alone as endless
    noise.
    """
    if want.dtype.kind != "f":
        return np.zeros(len(want)), np.zeros(len(want))
    known = np.isfinite(want)
    if not known.all():
        got = np.where(known, got, 0.0) if want.shape == got.shape else got
        want = np.where(known, want, 0.0)
    wide = want.astype(np.float64).reshape(len(want), -1)
    signal = np.einsum("ij,ij->i", wide, wide)
    if want.shape != got.shape:
        return signal, signal
    error = got.reshape(wide.shape) - wide  # in float64
    noise = np.einsum("ij,ij->i", error, error)
    return signal, np.where(np.isfinite(noise), noise, np.inf)


def sqnr(signal: ArrayLike, noise: ArrayLike) -> Sqnr:
    """Of the images' powers (N,), N at least 1."""
    pairs = list(zip(np.atleast_1d(signal).tolist(), np.atleast_1d(noise).tolist(), strict=True))
    own = [decibel(one, other) for one, other in pairs]
    pooled = decibel(math.fsum(one for one, _ in pairs), math.fsum(other for _, other in pairs))
    return Sqnr(pooled, float(np.median(own)), min(own), len(own))
