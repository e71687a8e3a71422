"""Integers for a weight that lose least at the layer's output, given the second moments of its input.

The error of row e of E = quantized - float is e·H·eᵀ. Rounding to nearest ignores all of H but its diagonal: where
neighbouring inputs are alike (the nine of a depthwise filter over an image), errors of one sign add up. Here each
weight's rounding error is made up for by the weights not yet rounded (Frantar et al., "GPTQ", ICLR 2023, after Hassibi
and Stork's optimal brain surgeon), then single integers move by whole steps while that helps (coordinate descent).
"""

from __future__ import annotations

import numpy as np

_SWEEPS = 3


def row_errors(error: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """e·H·eᵀ of each row: (groups, rows) of error (groups, rows, K) and H (groups, K, K)."""
    error = error.astype(hessian.dtype, copy=False)
    return np.asarray(((error @ hessian) * error).sum(axis=2))


def nearest(weight: np.ndarray, scales: np.ndarray, limit: int) -> np.ndarray:
    """Whole numbers (groups, rows, K); scales (groups, rows)."""
    return _limited(np.rint(weight / scales[..., None]), limit)


def _limited(steps: np.ndarray, limit: int) -> np.ndarray:
    return np.minimum(np.maximum(steps, -limit), limit)  # of a column, where np.clip takes twice as long


def compensated(weight: np.ndarray, scales: np.ndarray, limit: int, hessian: np.ndarray) -> np.ndarray:
    """Integers (groups, rows, K), float64, rounded one input at a time, the strongest first.

    With H = R·Rᵀ and R upper triangular the error is |e·R|²: the column of an input holds those rounded before it.

    Args:
        weight: (groups, rows, K).
        scales: (groups, rows).
        hessian: (groups, K, K), positive definite.
    """
    # In float32 twice as fast; the caller keeps only what errs less than rounding to nearest.
    weight, scales, hessian = (np.asarray(each, np.float32) for each in (weight, scales, hessian))
    order = np.argsort(np.diagonal(hessian, axis1=1, axis2=2), axis=1, kind="stable")
    group = np.arange(len(weight))[:, None]
    root = np.linalg.cholesky(hessian[group[:, :, None], order[:, :, None], order[:, None, :]])[:, ::-1, ::-1]
    root = root / np.diagonal(root, axis1=1, axis2=2)[:, None, :]
    order = order[:, None, ::-1]
    wanted = np.ascontiguousarray(np.take_along_axis(weight, order, axis=2).transpose(0, 2, 1))
    steps, errors = np.empty_like(wanted), np.empty_like(wanted)  # (groups, K, rows)
    columns, block = wanted.shape[1], 64  # what a block takes from all before it is one product
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        left = wanted[:, start:stop] - root[:, :start, start:stop].transpose(0, 2, 1) @ errors[:, :start]
        for column in range(start, stop):
            near = left[:, column - start]
            steps[:, column] = _limited(np.rint(near / scales), limit)
            errors[:, column] = error = steps[:, column] * scales - wanted[:, column]
            left[:, column + 1 - start :] -= root[:, column, column + 1 : stop, None] * error[:, None]
    found = np.empty(weight.shape, np.float32)
    np.put_along_axis(found, np.broadcast_to(order, found.shape), steps.transpose(0, 2, 1), axis=2)
    return np.asarray(_descended(weight, found, scales, limit, hessian), np.float64)


def _descended(
    weight: np.ndarray, steps: np.ndarray, scales: np.ndarray, limit: int, hessian: np.ndarray
) -> np.ndarray:
    """Move single integers while the rows' errors fall."""
    steps = steps.copy()
    pull = (steps * scales[..., None] - weight) @ hessian
    unit = -1.0 / (np.diagonal(hessian, axis1=1, axis2=2)[:, None, :] * scales[..., None])
    for _ in range(_SWEEPS):
        columns = np.flatnonzero((_limited(steps + np.rint(pull * unit), limit) != steps).any(axis=(0, 1)))
        for column in columns:
            before = steps[..., column]
            change = _limited(before + np.rint(pull[..., column] * unit[..., column]), limit) - before
            where = np.nonzero(change)  # few rows move
            steps[..., column] += change
            pull[where] += (change * scales)[where][:, None] * hessian[where[0], column]
        if not len(columns):
            break
    return steps
