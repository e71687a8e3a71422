"""Weights and biases as integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgecnn.process.errors import EdgeError
from edgecnn.quantize.calibration.ranges import storable_scales
from edgecnn.recipe.device import Scheme

LARGEST_BIAS = 2**30


@dataclass(frozen=True)
class IntegerWeight:
    """INT8 values, one float32 scale per index of `axis`; w ≈ values · scales."""

    values: np.ndarray
    scales: np.ndarray
    axis: int

    def restored(self) -> np.ndarray:
        """The float32 weight that the INT8 layer computes with."""
        return self.values.astype(np.float32) * _along(self.scales, self.axis, self.values.ndim)


def integer_weight(
    name: str, weight: np.ndarray, axis: int, scheme: Scheme, bias: np.ndarray | None = None, input_scale: float = 1.0
) -> IntegerWeight:
    """Symmetric per-channel INT8: the scale maps a channel's largest magnitude to 127 (64 with 7 bits: U8S8 products
    then fit the 16-bit sums of x86 kernels without VNNI). An all-zero channel gets scale 1.

    Args:
        bias: with an INT32 bias, its float values: a channel's scale grows until bias / (input_scale · scale) fits.

    Raises:
        EdgeError: the weight holds NaN or infinity.
    """
    require_finite(name, weight)
    wide = weight.astype(np.float32)
    limit = weight_limit(scheme)
    others = tuple(index for index in range(wide.ndim) if index != axis)
    scales = np.abs(wide).max(axis=others) / np.float32(limit)
    if bias is not None and scheme.bias == "int32":
        least = np.abs(bias.astype(np.float32)) / np.float32(LARGEST_BIAS) / np.float32(input_scale)
        scales = np.maximum(scales, least)
    scales = storable_scales(scales, scheme)
    steps = np.rint(wide / _along(scales, axis, wide.ndim))
    return IntegerWeight(np.clip(steps, -limit, limit).astype(np.int8), scales, axis)


def weight_limit(scheme: Scheme) -> int:
    """The largest integer magnitude of a weight: 127, 64 with 7 bits for x86 kernels, 2^(bits - 1) - 1 below 8 bits."""
    if scheme.weight_bits < 8:
        return int(2 ** (scheme.weight_bits - 1)) - 1
    return 64 if scheme.weights == "int8-per-channel-7bit" else 127


def require_finite(name: str, weight: np.ndarray) -> None:
    """Refuse a weight that no integers can stand for."""
    if not np.isfinite(weight).all():
        raise EdgeError(f"weight `{name}` holds NaN or infinity", "the model is broken: train or export it again")


def integer_bias(bias: np.ndarray, input_scale: float, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """INT32 bias and its scales input_scale · scales, as QLinearConv defines it."""
    bias_scales = (np.float32(input_scale) * scales).astype(np.float32)
    steps = np.rint(bias.astype(np.float64) / bias_scales.astype(np.float64))
    return np.clip(steps, -(2**31), 2**31 - 1).astype(np.int32), bias_scales


def _along(scales: np.ndarray, axis: int, rank: int) -> np.ndarray:
    shape = [1] * rank
    shape[axis] = -1
    return scales.reshape(shape)
