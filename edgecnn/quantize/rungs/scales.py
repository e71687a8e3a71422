"""The factors of cross-layer equalization: those with the least quantization noise behind the layers.

Nagel et al. (2019) balance the weight ranges of neighbours, because their weights share one scale per tensor. Where a
weight has one scale per output channel, the producer's side costs nothing, and what a factor s of channel c moves is
the noise of the activation, whose one scale must hold s·range of the loudest channel and which the consumer's weight
divides by s, against the rounding of the consumer's weights, whose rows must hold w/s. Both are written down in closed
form, each relative to the power at the consumer's output, and their sum is minimized over log s (L-BFGS).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

_NORM = 16  # a power norm, of a power of two, stands for the largest: it has a gradient
_STEPS = 127.0
_FURTHEST = float(np.log(2.0**12))


@dataclass(frozen=True)
class Reader:
    """What one consumer makes of a tensor's noise.

    Attributes:
        group: factor group of each channel that it reads, (C,).
        gain: squared weights of each channel over the power at the output, (C,).
        largest: largest weight magnitude by (groups, rows, channels of a group); None: each row reads one channel.
        power: channels' power times kernel positions over the power at the output, (groups, channels of a group).
    """

    group: np.ndarray
    gain: np.ndarray
    largest: np.ndarray | None = None
    power: np.ndarray | None = None


@dataclass(frozen=True)
class Tensor:
    """Tensors of one scale: their channels' factor groups and bounds, and who reads them."""

    group: np.ndarray
    bound: np.ndarray
    readers: tuple[Reader, ...]


def least_noise(tensors: list[Tensor], free: np.ndarray, highest: np.ndarray, iterations: int = 50) -> np.ndarray:
    """A factor by group; 1 where not free, at most `highest`."""
    touched = np.zeros(len(free), bool)
    for tensor in tensors:
        touched[tensor.group] = True
    index = np.flatnonzero(free & touched)
    scales = np.ones(len(free))
    if not len(index):
        return scales
    top = np.minimum(np.log(np.minimum(highest[index], np.exp(_FURTHEST))), _FURTHEST)

    def measured(logs: np.ndarray) -> tuple[float, np.ndarray]:
        whole = np.zeros(len(free))
        whole[index] = logs
        value, slope = noise(tensors, whole)
        return float(np.log(value)), slope[index] / value

    bounds = np.stack([np.full(len(index), -_FURTHEST), top], axis=1)
    start = np.minimum(_levelled(tensors, free)[index], top)
    begin = min((np.minimum(0.0, top), start), key=lambda logs: measured(logs)[0])
    found = minimize(measured, begin, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations})
    scales[index] = np.exp(found.x)
    return scales


def noise(tensors: list[Tensor], logs: np.ndarray) -> tuple[float, np.ndarray]:
    """The noise and its gradient with respect to the factors' logarithms."""
    scales, slope, total = np.exp(logs), np.zeros(len(logs)), 0.0
    for tensor in tensors:
        reach = tensor.bound * scales[tensor.group]
        top = max(float(reach.max()), 1e-30)
        shares = _normed(reach / top)
        step = (top * shares.sum() ** (1.0 / _NORM) / _STEPS) ** 2 / 12.0
        behind = 0.0
        for reader in tensor.readers:
            passed = reader.gain / scales[reader.group] ** 2
            behind += float(passed.sum())
            np.add.at(slope, reader.group, -2.0 * step * passed)
            if reader.largest is not None and reader.power is not None:
                total += _rounding(reader, scales, slope)
        total += step * behind
        np.add.at(slope, tensor.group, 2.0 * step * behind * shares / max(float(shares.sum()), 1e-30))
    return max(total, 1e-300), slope


def _rounding(reader: Reader, scales: np.ndarray, slope: np.ndarray) -> float:
    """Noise of a consumer's rounded weights; adds to the gradient."""
    assert reader.largest is not None
    assert reader.power is not None
    groups, _, channels = reader.largest.shape
    factor = scales[reader.group].reshape(groups, channels)
    reach = reader.largest / factor[:, None, :]
    top = reach.max(axis=2, keepdims=True) + 1e-30
    shares = _normed(reach / top)
    summed = np.maximum(shares.sum(axis=2, keepdims=True), 1e-30)  # a row of zeros has no share
    steps = (top * summed ** (1.0 / _NORM) / _STEPS) ** 2 / 12.0
    inputs = reader.power * factor**2
    power, rows = inputs.sum(axis=1), steps.sum(axis=(1, 2))
    change = 2.0 * rows[:, None] * inputs - 2.0 * (steps * shares / summed).sum(axis=1) * power[:, None]
    np.add.at(slope, reader.group, change.reshape(-1))
    return float((rows * power).sum())


def _normed(parts: np.ndarray) -> np.ndarray:
    """To the power of _NORM; by squares, for `**` would be most of the search's time."""
    for _ in range(_NORM.bit_length() - 1):
        parts = np.square(parts)
    return parts


def _levelled(tensors: list[Tensor], free: np.ndarray) -> np.ndarray:
    """Logarithms of the factors that give every free channel the bound of the loudest: where a search may begin."""
    total, count = np.zeros(len(free)), np.zeros(len(free))
    for tensor in tensors:
        heard = tensor.bound > 1e-6 * tensor.bound.max()
        fixed = ~free[tensor.group]
        level = tensor.bound[fixed].max() if fixed.any() else tensor.bound.max()
        wish = np.log(max(level, 1e-30) / np.maximum(tensor.bound, 1e-30))
        np.add.at(total, tensor.group[heard], wish[heard])
        np.add.at(count, tensor.group[heard], 1.0)
    return np.asarray(np.where(free, total / np.maximum(count, 1.0), 0.0))
