"""What a layer's input looks like to its weight: means and second moments of the patches that it multiplies.

With them the error of any change E of the weight is known at the layer's output without running anything: its mean is
E·mean, its power E·second·Eᵀ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgecnn.process.progress import track
from edgecnn.quantize.calibration.calibrate import Feeder
from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.graph.sessions import expose, open_session, run_each
from edgecnn.quantize.place.placement import Graph
from edgecnn.quantize.rungs.matrix import attribute

_SAMPLES = 6  # patches per weight of a filter, at least: neighbours in an image say much the same
_LEAST = 8192  # patches of a layer, where the images have so many


@dataclass(frozen=True)
class Moments:
    """Of a layer's input patches: `mean` (groups, K) float64, `second` (groups, K, K) float32, over `count` patches.

    K = input channels of a group × kernel positions, in the order of the unfolded weight.
    """

    mean: np.ndarray
    second: np.ndarray
    count: int

    @property
    def covariance(self) -> np.ndarray:
        """(groups, K, K): the second moments about the means."""
        mean = self.mean.astype(self.second.dtype)
        return np.asarray(self.second - mean[:, :, None] * mean[:, None, :])


def joined(parts: list[Moments]) -> Moments:
    """Of all parts together."""
    whole = parts[0]
    for part in parts[1:]:
        total = whole.count + part.count
        a, b = whole.count / total, part.count / total
        whole = Moments(a * whole.mean + b * part.mean, a * whole.second + b * part.second, total)
    return whole


def mean_of(parts: list[Moments]) -> np.ndarray:
    """The mean (groups, K) of all parts together."""
    return joined([replace(part, second=np.zeros(1)) for part in parts]).mean


def input_moments(
    feeder: Feeder, graph: Graph, nodes: list[ir.Node], sample: list[int], *, means_only: bool = False
) -> dict[str, list[Moments]]:
    """Moments by node name over the sampled images: two of them, of every other image and of the rest.

    Conv (any stride, padding, dilation, groups), Gemm and MatMul with a constant weight; other nodes are left out.
    `means_only` leaves the second moments zero.
    """
    wanted = [node for node in nodes if patch_size(node) is not None]
    sums = {node.name or "": [_Sum(means_only), _Sum(means_only)] for node in wanted}
    tensors = list(dict.fromkeys(node.inputs[0].name or "" for node in wanted if node.inputs[0] is not None))
    readers = {tensor: [node for node in wanted if node.inputs[0].name == tensor] for tensor in tensors}
    per_image = {
        node.name or "": math.ceil(max(_SAMPLES * (patch_size(node) or 1), _LEAST) * feeder.batch / max(len(sample), 1))
        for node in wanted
    }
    session = open_session(expose(feeder.model, tensors))
    outputs: Iterable[list[np.ndarray]] = run_each(session, feeder.feeds(sample))
    for number, values in enumerate(track(outputs, "input moments", math.ceil(len(sample) / feeder.batch))):
        rng = np.random.default_rng(number)  # which patches: the same at every run
        for tensor, value in zip(tensors, values, strict=True):
            for node in readers[tensor]:
                most = per_image[node.name or ""]
                sums[node.name or ""][number % 2].add(patches(node, value, graph.shape(node.outputs[0]), most, rng))
    return {name: [part.moments() for part in parts if part.count] for name, parts in sums.items()}


def patch_size(node: ir.Node) -> int | None:
    """K of a node whose input patches can be taken, else None."""
    array = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if array is None or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    if node.op_type == "Conv":
        return math.prod(array.shape[1:])
    if array.ndim != 2 or attribute(node, "transA", 0):
        return None
    return array.shape[1] if node.op_type == "Gemm" and attribute(node, "transB", 0) else array.shape[0]


def patches(
    node: ir.Node, value: np.ndarray, output: tuple[int, ...], most: int, rng: np.random.Generator
) -> np.ndarray:
    """Up to `most` input patches (groups, K, n) float32 of a layer's input, at places drawn without repetition."""
    if node.op_type != "Conv":
        rows = value.reshape(-1, value.shape[-1])
        kept = rows if len(rows) <= most else rows[np.sort(rng.choice(len(rows), most, replace=False))]
        return kept.T[None].astype(np.float32)
    weight = constant(node.inputs[1])
    assert weight is not None
    groups, kernel, sizes = attribute(node, "group", 1), weight.shape[2:], output[2:]
    strides, dilations = (_list(node, name, len(kernel)) for name in ("strides", "dilations"))
    before = _pads_before(node, value.shape[2:], sizes, kernel, strides, dilations)
    needed = [
        (size - 1) * step + (k - 1) * gap + 1
        for size, step, k, gap in zip(sizes, strides, kernel, dilations, strict=True)
    ]
    widths = [(0, 0), (0, 0)] + [
        (b, max(0, n - b - have)) for b, n, have in zip(before, needed, value.shape[2:], strict=True)
    ]
    padded = np.pad(value, widths) if any(any(pair) for pair in widths) else value
    total = len(value) * math.prod(sizes)
    picked = np.arange(total) if total <= most else np.sort(rng.choice(total, most, replace=False))
    image, *places = np.unravel_index(picked, (len(value), *sizes))
    parts = []
    for offset in np.ndindex(*kernel):
        index = (p * s + o * d for p, s, o, d in zip(places, strides, offset, dilations, strict=True))
        where = (image, slice(None), *index)
        parts.append(padded[where])  # (n, C)
    stacked = np.stack(parts, axis=-1)  # (n, C, kernel positions)
    channels = value.shape[1] // groups
    return np.ascontiguousarray(
        stacked.reshape(len(picked), groups, channels * len(parts)).transpose(1, 2, 0), np.float32
    )


def _list(node: ir.Node, name: str, rank: int) -> list[int]:
    found = node.attributes.get(name)
    return [1] * rank if found is None else [int(n) for n in found.value]


def _pads_before(
    node: ir.Node, inputs: tuple[int, ...], outputs: tuple[int, ...], kernel: tuple[int, ...], strides: list[int],
    dilations: list[int],
) -> list[int]:  # fmt: skip
    auto = node.attributes.get("auto_pad")
    kind = "NOTSET" if auto is None else str(auto.value)
    if kind in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max(0, (out - 1) * step + (k - 1) * gap + 1 - have)
            for out, step, k, gap, have in zip(outputs, strides, kernel, dilations, inputs, strict=True)
        ]
        return [(n + (kind == "SAME_LOWER")) // 2 for n in total]
    pads = node.attributes.get("pads")
    return [0] * len(kernel) if pads is None or kind == "VALID" else [int(n) for n in pads.value[: len(kernel)]]


class _Sum:
    """Sums of patches in float32, which so few need no more than; taken together until a product is worth its sum."""

    def __init__(self, means_only: bool) -> None:
        self.means_only = means_only
        self.count = 0
        self.first: np.ndarray | float = 0.0
        self.second: np.ndarray | float = 0.0
        self.waiting: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        self.count += values.shape[2]
        self.first = self.first + values.sum(axis=2, dtype=np.float64)
        if not self.means_only:
            self.waiting.append(values)
            if sum(each.shape[2] for each in self.waiting) >= values.shape[1]:
                self._settle()

    def _settle(self) -> None:
        if self.waiting:
            values = np.concatenate(self.waiting, axis=2)
            self.second = self.second + values @ values.transpose(0, 2, 1)
            self.waiting = []

    def moments(self) -> Moments:
        self._settle()
        first = np.asarray(self.first) / self.count
        if self.means_only:
            self.second = np.zeros((*first.shape, first.shape[1]), np.float32)
        return Moments(first, np.asarray(self.second / np.float32(self.count)), self.count)
