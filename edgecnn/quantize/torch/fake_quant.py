"""Fake quantization with learned steps: float numbers that take only the values that integers can stand for.

Steps are learned as LSQ does (Esser et al. 2020, arXiv:1902.08153): the gradient passes a rounding unchanged inside the
range and not at all outside, and a step's gradient is what its rounding errors and its clipped values say. Two things
are ours, both so that one learning rate fits every layer: a step is learned as the logarithm of its ratio to where it
began, and a weight as its ratio to the largest of its output channel. (Folded BatchNorm leaves channels that differ by
orders of magnitude.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from edgecnn.quantize.calibration.ranges import Grid
from edgecnn.quantize.write.weights import LARGEST_BIAS, IntegerWeight
from edgecnn.recipe.device import Scheme

_LARGEST_HALF = 65504.0
_FRACTIONS = 61  # of a channel's largest magnitude that are tried as its range, from 0.4 to 1


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, step: torch.Tensor, low: int, high: int) -> torch.Tensor:
        scaled = x.float() / step
        ctx.save_for_backward(scaled, step)
        ctx.ends = low, high
        return scaled.round().clamp_(low, high).mul_(step)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scaled, step = ctx.saved_tensors
        low, high = ctx.ends
        passed = gradient * ((scaled >= low) & (scaled <= high))
        to_step = None
        if ctx.needs_input_grad[1]:
            # Inside: the rounding error, rounded - scaled; outside: the end of the range.
            slopes = scaled.round().clamp_(low, high).mul_(gradient).addcmul_(passed, scaled, value=-1)
            share = 1 / math.sqrt(scaled.numel() / step.numel() * max(high, -low))
            to_step = (slopes.sum() if step.ndim == 0 else slopes.sum_to_size(step.shape)) * share
        return passed, to_step, None, None


def rounded(x: torch.Tensor, step: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """clamp(round(x / step), low, high) * step, halves to even: QuantizeLinear then DequantizeLinear, float32.

    Args:
        step: > 0, a scalar or a shape that broadcasts to x's.
        low, high: the ends of the integer range, the zero-point taken off.
    """
    result: torch.Tensor = _Rounded.apply(x, step, low, high)
    return result


def storable(steps: torch.Tensor, halves: bool) -> torch.Tensor:
    """Steps as the graph can hold them: with `halves` rounded up to FP16 numbers, the gradient passed unchanged."""
    if not halves:
        return steps
    near = steps.detach().clamp(max=_LARGEST_HALF).half()
    larger = (near.view(torch.int16) + 1).view(torch.float16)  # the next FP16 number: all are positive
    raised = torch.where(near.float() < steps, larger, near).float().clamp(max=_LARGEST_HALF)
    return steps + (raised - steps).detach()  # exact: the two are nearer than a factor of two


def least_steps(bias: torch.Tensor, input_step: torch.Tensor) -> torch.Tensor:
    """(channels,) The smallest weight steps with which an INT32 bias fits, as `integer_weight` has them."""
    return bias.detach().abs() / LARGEST_BIAS / input_step.detach()


class LearnedWeight(nn.Module):
    """A layer's weight; with `scales` it takes only values that their integers can stand for.

    Args:
        weight: float32.
        scales: (channels,) first steps along `axis`, or None for a layer that stays float.
        limit: the largest integer.
        halves: steps must be FP16 numbers.
    """

    def __init__(
        self, weight: torch.Tensor, axis: int = 0, scales: torch.Tensor | None = None, limit: int = 127,
        halves: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.axis, self.limit, self.halves = axis, limit, halves
        others = [number for number in range(weight.ndim) if scales is None or number != axis]
        largest = weight.abs().amax(dim=others, keepdim=True)
        self.register_buffer("magnitude", torch.where(largest > 0, largest, torch.ones_like(largest)))
        self.relative = nn.Parameter(weight / self.magnitude)
        if scales is not None:
            self.register_buffer("first", scales.reshape(largest.shape).clone())
            self.growth = nn.Parameter(torch.zeros_like(self.first))

    def plain(self) -> torch.Tensor:
        """The float weight."""
        return self.relative * self.magnitude

    def steps(self, least: torch.Tensor | None = None) -> torch.Tensor:
        """The steps, each at least `least`; they broadcast to the weight's shape."""
        steps = self.first * self.growth.exp()
        if least is not None:
            steps = torch.maximum(steps, least.reshape(steps.shape))
        return storable(steps, self.halves)

    def values(self, steps: torch.Tensor) -> torch.Tensor:
        """The weight that the INT8 layer computes with."""
        return rounded(self.plain(), steps, -self.limit, self.limit)

    @torch.no_grad()
    def refit(self) -> None:
        """Begin with the steps of least squared error, which for few bits lie far below the largest magnitude."""
        plain = self.plain()
        best = torch.full_like(self.first, math.inf)
        chosen = self.first.clone()
        others = [number for number in range(plain.ndim) if number != self.axis]
        for fraction in torch.linspace(1.0, 0.4, _FRACTIONS).tolist():
            steps = storable(self.magnitude * (fraction / self.limit), self.halves)
            error = (rounded(plain, steps, -self.limit, self.limit) - plain).square().sum(dim=others, keepdim=True)
            better = error < best
            best, chosen = torch.where(better, error, best), torch.where(better, steps, chosen)
        self.first.copy_(chosen)

    @torch.no_grad()
    def integer(self, least: torch.Tensor | None = None) -> IntegerWeight:
        """The weight as integers and scales."""
        steps = self.steps(least)
        values = (self.plain() / steps).round().clamp(-self.limit, self.limit)
        return IntegerWeight(values.to(torch.int8).cpu().numpy(), steps.reshape(-1).cpu().numpy(), self.axis)


class LearnedBias(nn.Module):
    """A bias, learned in units of its channel's largest weight."""

    def __init__(self, bias: torch.Tensor, unit: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("first", bias.clone())
        self.register_buffer("unit", unit.reshape(-1).expand_as(bias).clone())
        self.moved = nn.Parameter(torch.zeros_like(bias))

    def plain(self) -> torch.Tensor:
        """The float bias (out channels,)."""
        return self.first + self.moved * self.unit


class LearnedGrids(nn.Module):
    """The steps of all activations, one a scale group; zero-points stay as they began.

    Args:
        grids: the first grid of each group.
        scheme: says whether they are symmetric and whether steps must be FP16 numbers.
    """

    def __init__(self, grids: list[Grid], scheme: Scheme) -> None:
        super().__init__()
        self.halves, self.symmetric = scheme.islands == "float16", scheme.activations == "int8-symmetric"
        self.ends = [(grid.lowest - grid.zero_point, grid.highest - grid.zero_point) for grid in grids]
        self.register_buffer("first", torch.tensor([grid.scale for grid in grids], dtype=torch.float32))
        self.growth = nn.Parameter(torch.zeros(len(grids)))

    def steps(self) -> torch.Tensor:
        """(groups,) float32."""
        return storable(self.first * self.growth.exp(), self.halves)

    def values(self, x: torch.Tensor, step: torch.Tensor, group: int) -> torch.Tensor:
        """The tensor with the values that its integers can stand for."""
        return rounded(x, step, *self.ends[group])

    @torch.no_grad()
    def ranges(self) -> list[tuple[float, float]]:
        """(low, high) of each group, from which `activation_grid` makes the same grid again."""
        found = []
        for (low, high), step in zip(self.ends, self.steps().tolist(), strict=True):
            # A symmetric range reaches as far down as up: INT8's one number more below is not counted.
            found.append(((-high if self.symmetric else low) * step, high * step))
        return found
