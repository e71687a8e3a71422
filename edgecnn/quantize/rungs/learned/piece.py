"""A block of the quantized graph in torch, with every rounding in it differentiable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from edgecnn.quantize.calibration.ranges import Grid
from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.ladder.candidate import Candidate
from edgecnn.quantize.rungs.learned.blocks import Block
from edgecnn.quantize.torch.operators import apply
from edgecnn.quantize.write.weights import IntegerWeight

_TINY = 1e-30
_LEAN = 0.49  # under a half, so that what is learned starts as what stands
_STRETCH = 0.1  # the rectified sigmoid reaches 0 and 1 that far before its ends


class _Rounded(torch.autograd.Function):
    """Round half to even, as QuantizeLinear does; the gradient passes (Bengio et al. 2013)."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor) -> torch.Tensor:
        """Round."""
        return torch.round(values)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """Pass."""
        return gradients[0]


def quantized(values: torch.Tensor, grid: Grid, factor: torch.Tensor | float = 1.0) -> torch.Tensor:
    """QuantizeLinear then DequantizeLinear with the grid's scale times `factor`, which gets a gradient too.

    Source of the scale's gradient: learned step size quantization (Esser et al. 2020).
    """
    scale = grid.scale * factor
    steps = torch.clamp(_Rounded.apply(values / scale), grid.lowest - grid.zero_point, grid.highest - grid.zero_point)
    return steps * scale


@dataclass
class Rounding:
    """An INT8 weight whose integers are learned: down or up from the float weight (AdaRound, Nagel et al. 2020)."""

    floor: torch.Tensor
    scales: torch.Tensor
    limit: int
    part: torch.Tensor
    nearest: float
    logits: torch.Tensor
    axis: int

    @classmethod
    def of(cls, weight: np.ndarray, integer: IntegerWeight, limit: int) -> Rounding:
        """Start at the integers that stand, leaning to the float weight: which of its two sides is what is learned.

        Where nothing was chosen before, these are the integers beneath and above the float weight; where a rung chose
        one further away, to make up for others, it is that one and its neighbour towards the float weight.
        """
        shape = [1] * weight.ndim
        shape[integer.axis] = -1
        scales = torch.from_numpy(integer.scales.astype(np.float32)).reshape(shape)
        chosen = torch.from_numpy(integer.values.astype(np.float32))
        lean = (torch.from_numpy(np.array(weight, np.float32)) / scales - chosen).clamp(-_LEAN, _LEAN)
        floor = torch.where(lean >= 0, chosen, chosen - 1)
        part = (chosen + lean - floor).clamp(0.01, 0.99)
        logits = torch.logit((part + _STRETCH) / (1 + 2 * _STRETCH))
        nearest = max(float((part.round() - part).square().sum()), _TINY)
        return cls(floor, scales, limit, part, nearest, logits.requires_grad_(), integer.axis)

    def share(self) -> torch.Tensor:
        """How far up, 0..1, the rectified sigmoid of the logits."""
        return torch.clamp(torch.sigmoid(self.logits) * (1 + 2 * _STRETCH) - _STRETCH, 0.0, 1.0)

    def soft(self) -> torch.Tensor:
        """The weight while it is learned."""
        return torch.clamp(self.floor + self.share(), -self.limit, self.limit) * self.scales

    def unsettled(self, power: float) -> torch.Tensor:
        """0 where all shares are 0 or 1; the mean of AdaRound's regularizer 1 - |2h - 1|^power."""
        return (1.0 - (2.0 * self.share() - 1.0).abs().pow(power)).mean()

    def distance(self) -> torch.Tensor:
        """Squared distance to the weight that is stood for, over that where each is rounded to nearest."""
        return (self.share() - self.part).square().sum() / self.nearest

    def settled(self) -> IntegerWeight:
        """The integers learned; from now on `soft` gives them."""
        with torch.no_grad():
            up = self.share() >= 0.5
            self.logits.copy_(torch.where(up, 9.0, -9.0))
            steps = torch.clamp(self.floor + up, -self.limit, self.limit)
        return IntegerWeight(steps.numpy().astype(np.int8), self.scales.reshape(-1).numpy(), self.axis)


class Piece:
    """The nodes of a block, its constants as tensors, and the grids of its quantized readings."""

    def __init__(self, block: Block, candidate: Candidate, grids: dict[str, Grid]) -> None:
        self.block = block
        self.nodes: list[ir.Node] = [node for node in candidate.model.graph if node.name in block.nodes]
        self.constants: dict[str, torch.Tensor] = {}
        for node in self.nodes:
            for value in node.inputs:
                array = constant(value)
                if value is not None and value.name and array is not None and array.dtype == np.float32:
                    self.constants[value.name] = torch.from_numpy(np.array(array))
        self.through = {
            (edge.node, edge.index): activation.tensor
            for activation in candidate.placement.activations for edge in activation.edges if edge.node in block.nodes
        }  # fmt: skip
        self.grids = {tensor: grids[tensor] for tensor in self.through.values()}

    def run(
        self, given: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], biases: dict[str, torch.Tensor],
        factors: dict[str, torch.Tensor],
    ) -> list[torch.Tensor]:  # fmt: skip
        """The block's outputs.

        Args:
            given: its inputs, before Q/DQ; weights: by weight tensor; biases: by node; factors: of scales, by tensor.
        """
        tensors = dict(given)
        rounded: dict[str, torch.Tensor] = {}
        for node in self.nodes:
            inputs: list[torch.Tensor | None] = []
            for index, value in enumerate(node.inputs):
                name = value.name or "" if value is not None else ""
                if index == 2 and node.name in biases:
                    inputs.append(biases[node.name])
                elif (node.name or "", index) in self.through:
                    if name not in rounded:
                        rounded[name] = quantized(tensors[name], self.grids[name], factors.get(name, 1.0))
                    inputs.append(rounded[name])
                elif name in tensors:
                    inputs.append(tensors[name])
                else:
                    inputs.append(weights.get(name, self.constants.get(name)))
            if node.name in biases and len(inputs) == 2:
                inputs.append(biases[node.name])
            for value, result in zip(node.outputs, apply(node, inputs), strict=False):
                tensors[value.name or ""] = result
        return [tensors[name] for name in self.block.outputs]
