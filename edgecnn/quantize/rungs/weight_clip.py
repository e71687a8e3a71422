"""INT8 weights chosen by the error at the layer's output: the clipping of each channel, then the integers themselves.

The largest weight of a channel need not be representable: a smaller scale rounds all others finer. Which scale loses
least is a sum over the second moments of the layer's input, and so is the best rounding under it (`rounding`). The mean
of what error remains goes into the bias, exactly, so only the error's variation has to be kept small.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgecnn.process.progress import track
from edgecnn.quantize.calibration.ranges import storable_scales
from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.ladder.candidate import Candidate, Tools
from edgecnn.quantize.ladder.effort import share
from edgecnn.quantize.place.placement import Weight
from edgecnn.quantize.rungs.matrix import folded, unfolded
from edgecnn.quantize.rungs.moments import Moments, input_moments, joined, mean_of, patch_size
from edgecnn.quantize.rungs.rounding import compensated, nearest, row_errors
from edgecnn.quantize.write.rewrite import BIAS, Overrides
from edgecnn.quantize.write.weights import IntegerWeight, integer_weight, weight_limit
from edgecnn.recipe.device import Scheme

_SHARES = np.linspace(0.93, 0.45, 9)  # of the scale that holds the largest weight
_DAMPING = (0.1, 0.01, 1.0)  # of the mean of the second moments' diagonal; the first alone where effort is short
_EXACT = 1e-6  # share of a weight's power that rounding may lose where it was quantized before
_LARGEST = 2304  # weights of a filter whose second moments, its square, are still cheap
_TOLD = 32  # rows of a group that tell whether they are
_RICH = 8  # patches per weight of a filter from which their second moments are known well enough


def with_searched_weights(candidate: Candidate, tools: Tools, sample: list[int]) -> Candidate:
    """The candidate with every INT8 weight searched on the sampled images, and the biases that go with them."""
    feeder = tools.feeder_of(candidate.model)
    nodes = {node.name or "": node for node in candidate.model.graph}
    wanted = [nodes[weight.node] for weight in candidate.placement.weights]
    wanted = [node for node in wanted if (patch_size(node) or _LARGEST + 1) <= _LARGEST]
    moments = input_moments(feeder, tools.graph, wanted, sample)
    weights = dict(candidate.overrides.weights)
    biases = dict(candidate.overrides.biases)
    inputs = {edge.node: a.tensor for a in candidate.placement.activations for edge in a.edges if edge.index == 0}
    grids = candidate.grids(tools.scheme)
    for weight in track(candidate.placement.weights, "weights", len(candidate.placement.weights)):
        node = nodes[weight.node]
        if not moments.get(weight.node) or len(node.inputs[1].uses()) != 1:  # a shared weight has several inputs
            continue
        least = _least(node, tools.scheme, grids[inputs[weight.node]].scale)
        dampings = _DAMPING if share(tools) >= 1 else _DAMPING[:1]
        searched, error = searched_weight(node, weight, tools.scheme, moments[weight.node], least, dampings)
        weights[weight.tensor] = searched
        if (moved := moved_bias(node, error, mean_of(moments[weight.node]))) is not None:
            biases[weight.node] = moved
    return replace(candidate, overrides=Overrides(weights, biases))


def moved_bias(node: ir.Node, error: np.ndarray, mean: np.ndarray) -> np.ndarray | None:
    """The bias less the mean error (groups, rows, K)·(groups, K) of the output; None: the operator has no bias."""
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not _plain(node)):
        return None
    value = node.inputs[BIAS] if len(node.inputs) > BIAS else None
    old = constant(value)
    rows = error.shape[0] * error.shape[1]
    if value is not None and (old is None or old.size not in (1, rows)):
        return None
    start = np.zeros(rows) if old is None else np.broadcast_to(old.astype(np.float64).reshape(-1), rows)
    return np.asarray(start - np.einsum("gok,gk->go", error, mean).reshape(-1), np.float32)


def searched_weight(
    node: ir.Node,
    weight: Weight,
    scheme: Scheme,
    parts: list[Moments],
    least: np.ndarray | float = 0.0,
    dampings: tuple[float, ...] = _DAMPING,
) -> tuple[IntegerWeight, np.ndarray]:
    """The integers of least error, and that error (groups, rows, K) in the weight's unit.

    Args:
        parts: moments of two sets of images; where they are few, the second decides how far the first is trusted.
        least: smallest scale allowed, per output channel.
        dampings: tried where patches are few.
    """
    array = constant(node.inputs[1])
    assert array is not None
    matrix = unfolded(node, array)
    flat = matrix.reshape(*matrix.shape[:2], -1)
    plain = integer_weight(weight.tensor, array, weight.axis, scheme)
    limit = weight_limit(scheme)
    largest = np.maximum(plain.scales, least).reshape(flat.shape[:2])
    error = plain.restored().astype(np.float64) - array
    exact = np.square(error).sum() <= _EXACT * np.square(array.astype(np.float64)).sum()
    if exact and (plain.scales.reshape(flat.shape[:2]) >= largest).all():
        return plain, unfolded(node, error).reshape(flat.shape)  # integers they were: nothing is lost
    has_bias = moved_bias(node, np.zeros_like(flat), parts[0].mean) is not None
    whole = joined(parts)
    damping: float | None = min(_DAMPING)
    if whole.count < _RICH * flat.shape[2]:
        damping = _trusted(flat, largest, limit, parts, scheme, least, has_bias, dampings)
    if damping is None:
        scales = storable_scales(largest, scheme)
        steps = nearest(flat, scales, limit)
    else:
        steps, scales = _fitted(flat, largest, limit, _hessian(whole, has_bias, damping), scheme, least)
    integers = folded(node, steps.reshape(matrix.shape), array.shape).astype(np.int8)
    found = IntegerWeight(integers, scales.reshape(-1).astype(np.float32), weight.axis)
    return found, steps * scales[..., None] - flat


def _hessian(moments: Moments, has_bias: bool, damping: float) -> np.ndarray:
    """Float32: enough to compare roundings by."""
    found = np.array(moments.covariance if has_bias else moments.second, np.float32)
    diagonal = np.diagonal(found, axis1=1, axis2=2).mean(axis=1)
    index = np.arange(found.shape[1])
    found[:, index, index] += (damping * np.maximum(diagonal, 1e-12))[:, None]
    return found


def _fitted(
    flat: np.ndarray, largest: np.ndarray, limit: int, hessian: np.ndarray, scheme: Scheme, least: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    flat, scales = flat.astype(np.float32), storable_scales(largest, scheme)

    def lost(steps: np.ndarray, tried: np.ndarray) -> np.ndarray:
        return row_errors(steps * tried[..., None] - flat, hessian)

    start, errors = scales, lost(nearest(flat, scales, limit), scales)
    smallest = np.broadcast_to(np.asarray(least, np.float64).reshape(-1) if np.ndim(least) else least, largest.size)
    for part in _SHARES:
        tried = storable_scales(np.maximum(start * part, smallest.reshape(start.shape)), scheme)
        found = lost(nearest(flat, tried, limit), tried)
        gained = found < errors
        scales, errors = np.where(gained, tried, scales), np.where(gained, found, errors)
    try:
        steps = compensated(flat, scales, limit, hessian)
    except np.linalg.LinAlgError:  # inputs so much alike that their moments have no root in float32
        return nearest(flat, scales, limit), scales
    kept = lost(steps, scales) <= errors
    return np.where(kept[..., None], steps, nearest(flat, scales, limit)), scales


def _trusted(
    flat: np.ndarray, largest: np.ndarray, limit: int, parts: list[Moments], scheme: Scheme,
    least: np.ndarray | float, has_bias: bool, dampings: tuple[float, ...],
) -> float | None:  # fmt: skip
    """The damping that, fitted on the first half, errs least on the second; None: rounding to nearest does."""
    if len(parts) < 2:
        return None
    some = slice(None, None, -(-flat.shape[1] // _TOLD))
    flat, largest = flat[:, some], largest[:, some]
    if np.ndim(least):
        least = np.asarray(least).reshape(len(flat), -1)[:, some]
    test = _hessian(parts[1], has_bias, 0.0)
    scales = storable_scales(largest, scheme)
    best, least_error = None, row_errors(nearest(flat, scales, limit) * scales[..., None] - flat, test).sum()
    for damping in dampings:
        steps, found = _fitted(flat, largest, limit, _hessian(parts[0], has_bias, damping), scheme, least)
        error = row_errors(steps * found[..., None] - flat, test).sum()
        if error < least_error:
            best, least_error = damping, error
    return best


def _least(node: ir.Node, scheme: Scheme, input_scale: float) -> np.ndarray | float:
    """With INT32 biases the smallest scale that holds the bias, per output channel."""
    if scheme.bias != "int32" or len(node.inputs) <= BIAS:
        return 0.0
    bias = constant(node.inputs[BIAS])
    if bias is None:
        return 0.0
    return np.abs(bias.astype(np.float64)).reshape(-1) / 2**30 / input_scale


def _plain(node: ir.Node) -> bool:
    """A Gemm whose bias is added as it stands."""
    beta = node.attributes.get("beta")
    alpha = node.attributes.get("alpha")
    return (beta is None or float(beta.value) == 1.0) and (alpha is None or float(alpha.value) == 1.0)
