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
    return np.asarray(((error @ hessian) * error).sum(axis=2))


def nearest(weight: np.ndarray, scales: np.ndarray, limit: int) -> np.ndarray:
    """Integers (groups, rows, K) as float64; scales (groups, rows)."""
    return np.asarray(np.clip(np.rint(weight / scales[..., None]), -limit, limit))


def compensated(weight: np.ndarray, scales: np.ndarray, limit: int, hessian: np.ndarray) -> np.ndarray:
    """Integers (groups, rows, K), float64, rounded one input at a time, the strongest first.

    Args:
        weight: (groups, rows, K).
        scales: (groups, rows).
        hessian: (groups, K, K), positive definite.
    """
    # In float32 twice as fast; the caller keeps only what errs less than rounding to nearest.
    weight, scales, hessian = (np.asarray(each, np.float32) for each in (weight, scales, hessian))
    order = np.argsort(-np.diagonal(hessian, axis1=1, axis2=2), axis=1, kind="stable")
    group = np.arange(len(weight))[:, None]
    sorted_hessian = hessian[group[:, :, None], order[:, :, None], order[:, None, :]]
    upper = np.linalg.cholesky(np.linalg.inv(sorted_hessian)).transpose(0, 2, 1)
    left = np.take_along_axis(weight, order[:, None, :], axis=2).copy()
    steps = np.empty_like(left)
    columns = left.shape[2]
    block = 64  # the update of far columns waits and is done as one product
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = np.empty((*left.shape[:2], stop - start), np.float32)
        for column in range(start, stop):
            steps[..., column] = np.clip(np.rint(left[..., column] / scales), -limit, limit)
            wrong = (left[..., column] - steps[..., column] * scales) / upper[:, None, column, column]
            errors[..., column - start] = wrong
            left[..., column + 1 : stop] -= wrong[..., None] * upper[:, None, column, column + 1 : stop]
        left[..., stop:] -= errors @ upper[:, start:stop, stop:]
    found = np.empty_like(steps)
    np.put_along_axis(found, np.broadcast_to(order[:, None, :], steps.shape), steps, axis=2)
    return np.asarray(_descended(weight, found, scales, limit, hessian), np.float64)


def _descended(
    weight: np.ndarray, steps: np.ndarray, scales: np.ndarray, limit: int, hessian: np.ndarray
) -> np.ndarray:
    """Move single integers while the rows' errors fall."""
    steps = steps.copy()
    pull = (steps * scales[..., None] - weight) @ hessian
    diagonal = np.diagonal(hessian, axis1=1, axis2=2)
    for _ in range(_SWEEPS):
        moved = False
        for column in range(steps.shape[2]):
            wish = np.rint(-pull[..., column] / (diagonal[:, None, column] * scales))
            target = np.clip(steps[..., column] + wish, -limit, limit)
            change = target - steps[..., column]
            where = np.nonzero(change)  # few rows move
            if len(where[0]):
                moved = True
                steps[..., column] = target
                pull[where] += (change * scales)[where][:, None] * hessian[where[0], column, :]
        if not moved:
            break
    return steps
