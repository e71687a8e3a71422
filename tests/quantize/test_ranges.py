"""Range methods on distributions whose answer is known, and the grid that a range becomes."""

from __future__ import annotations

import numpy as np
import pytest
from quantize_graphs import ARM, CPU, TENSORRT

from edgecnn.quantize.calibration.histogram import BINS, Histogram
from edgecnn.quantize.calibration.ranges import METHODS, activation_grid, choose, storable_scales


def counted(values: np.ndarray) -> Histogram:
    """A histogram of all values, which come in parts as the images of a calibration set do."""
    histogram = Histogram()
    for part in np.array_split(values.astype(np.float32), 4):
        histogram.add(part)
    return histogram


def error(values: np.ndarray, low: float, high: float) -> float:
    return float(np.mean((activation_grid(low, high, TENSORRT).rounded(values) - values) ** 2))


def test_minmax_is_the_extremes() -> None:
    assert choose("minmax", counted(np.asarray([-0.5, 3.0, 1.0])), TENSORRT) == (-0.5, 3.0)


def test_percentile_leaves_one_in_ten_thousand_outside() -> None:
    values = np.linspace(-1.0, 1.0, 1_000_001)
    low, high = choose("percentile", counted(values), TENSORRT)
    assert low == pytest.approx(-0.9999, abs=2.0 / BINS)
    assert high == pytest.approx(0.9999, abs=2.0 / BINS)
    spiked = np.concatenate([np.linspace(0.0, 1.0, 100_000), [50.0]])
    assert choose("percentile", counted(spiked), TENSORRT)[1] == pytest.approx(1.0, abs=100.0 / BINS)


def test_mse_is_the_best_clipping_of_a_laplacian() -> None:
    values = np.random.default_rng(0).laplace(size=200_000)
    low, high = choose("mse", counted(values), TENSORRT)
    found = error(values, low, high)
    bound = np.abs(values).max()
    assert found <= 1.01 * min(error(values, -t, t) for t in np.linspace(0.2, 1.0, 81) * bound)
    assert found < 0.9 * error(values, -bound, bound)


def test_mse_keeps_a_uniform_range_whole() -> None:
    low, high = choose("mse", counted(np.linspace(-2.0, 2.0, 100_001)), TENSORRT)
    assert max(-low, high) == pytest.approx(2.0, rel=0.02)


def slow_entropy(histogram: Histogram) -> float:
    """The same definition, level by level, as the GTC 2017 slides write it."""
    counts = histogram.magnitudes().astype(np.float64)
    counts[0] = counts[1]
    used = int(np.flatnonzero(counts)[-1]) + 1
    best, threshold = np.inf, 0.0
    for stop in range(128, used + 1):
        reference = counts[:stop].copy()
        reference[-1] += counts[stop:].sum()
        starts = np.arange(128) * stop // 128
        filled = counts[:stop] > 0
        mass, bins = np.add.reduceat(counts[:stop], starts), np.add.reduceat(filled.astype(int), starts)
        candidate = np.repeat(mass / np.maximum(bins, 1), np.diff([*starts, stop])) * filled
        p, q = reference / reference.sum(), candidate / candidate.sum()
        if (q[p > 0] == 0).any():
            continue
        divergence = float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())
        if divergence < best:
            best, threshold = divergence, stop * histogram.width
    return min(threshold, histogram.bound)


@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "spike"])
def test_vectorised_entropy_is_the_loop_of_its_definition(kind: str) -> None:
    rng = np.random.default_rng(3)
    values = {
        "normal": rng.standard_normal(20_000),
        "laplace": rng.laplace(size=20_000),
        "relu": np.maximum(rng.standard_normal(20_000), 0.0),
        "spike": np.concatenate([rng.standard_normal(20_000) * 0.05, [8.0]]),
    }[kind]
    histogram = counted(values)
    low, high = choose("entropy", histogram, TENSORRT)
    assert max(-low, high) == pytest.approx(min(slow_entropy(histogram), histogram.bound), abs=2 * histogram.width)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", [TENSORRT, CPU, ARM])
def test_a_constant_tensor_has_a_defined_grid(method: str, scheme: object) -> None:
    for value in (0.0, 1e-30, -4.0):
        histogram = counted(np.full(100, value))
        grid = activation_grid(*choose(method, histogram, scheme), scheme)  # type: ignore[arg-type]
        assert grid.scale > 0.0
        assert abs(grid.rounded(np.asarray([value]))[0] - value) <= grid.scale / 2 + 1e-7 * abs(value)


def test_grids_by_scheme() -> None:
    exact = TENSORRT.model_copy(update={"islands": "float32"})
    symmetric = activation_grid(-1.0, 2.54, exact)
    assert (symmetric.zero_point, symmetric.lowest, symmetric.highest) == (0, -128, 127)
    assert symmetric.scale == pytest.approx(0.02)
    unsigned = activation_grid(0.0, 2.55, CPU)
    assert (unsigned.scale, unsigned.zero_point) == (pytest.approx(0.01), 0)
    assert activation_grid(-1.0, 1.55, CPU).zero_point == 100
    assert activation_grid(0.0, 2.55, ARM).zero_point == -128
    assert activation_grid(1.0, 2.55, CPU) == unsigned  # zero is always representable


def test_scales_for_fp16_islands_are_fp16_numbers_and_never_smaller() -> None:
    scales = np.geomspace(1e-9, 6e4, 500)
    half = storable_scales(scales, TENSORRT)
    assert np.array_equal(half, half.astype(np.float16).astype(np.float32))
    assert (half >= scales.astype(np.float32)).all()
    assert (half > 0).all()


@pytest.mark.parametrize("scale", [1e-12, 4e-7, 7e4, 1e9])
def test_scales_that_fp16_cannot_hold_stay_as_they_are(scale: float) -> None:
    assert activation_grid(-127 * scale, 0.0, TENSORRT).scale == np.float32(scale)
    assert np.array_equal(storable_scales(np.asarray([scale, 0.0]), TENSORRT), np.asarray([scale, 1.0], np.float32))
