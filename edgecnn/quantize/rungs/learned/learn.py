"""Learn one block: the rounding of its weights, its biases and the scales that only it reads.

The block's inputs are those of the quantized graph so far, its targets those of the float graph, so what it learns also
makes up for the quantization of activations and of everything before it (AdaRound's asymmetric reconstruction; BRECQ).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.ladder.candidate import Candidate
from edgecnn.quantize.rungs.learned.blocks import Block
from edgecnn.quantize.rungs.learned.piece import Piece, Rounding
from edgecnn.quantize.rungs.learned.stream import Tensors
from edgecnn.quantize.write.weights import IntegerWeight, weight_limit
from edgecnn.recipe.device import Scheme

_TINY = 1e-30


@dataclass(frozen=True)
class Plan:
    """How long and how fast a block is learned (Adam, Kingma & Ba 2015)."""

    iterations: int
    batch: int
    seed: int
    rounding_rate: float = 2e-2
    bias_rate: float = 1e-3
    scale_rate: float = 1e-3  # of the logarithm
    settle: float = 0.5  # weight of the regularizer against the block's error, which starts at 1
    warm: float = 0.2  # share of the iterations before the regularizer acts
    plain: float = 0.05  # weight of the rounding error itself, which starts at 1: what few images don't tell


@dataclass(frozen=True)
class Learned:
    """What a block learned.

    Attributes:
        factors: of scales, by scale group.
        held_out: error on held-out images over that before: below 1 is better; `seen`: on images it learned from.
        sure: the error fell on the held-out images by more than its standard error.
    """

    weights: dict[str, IntegerWeight] = field(default_factory=dict)
    biases: dict[str, np.ndarray] = field(default_factory=dict)
    factors: dict[int, float] = field(default_factory=dict)
    held_out: float = 1.0
    seen: float = 1.0
    sure: bool = False


def learn(
    block: Block, candidate: Candidate, integers: dict[str, IntegerWeight], scheme: Scheme, given: Tensors,
    targets: Tensors, held: int, plan: Plan,
) -> Learned:  # fmt: skip
    """Learn a block.

    Args:
        integers: the INT8 weights so far.
        given, targets: the block's inputs in the quantized graph (before Q/DQ) and its outputs in the float graph;
            images in front, the last `held` of them only judge.
    """
    return _Learner(block, candidate, integers, scheme, given, targets, plan).learned(held)


class _Learner:
    def __init__(
        self, block: Block, candidate: Candidate, integers: dict[str, IntegerWeight], scheme: Scheme, given: Tensors,
        targets: Tensors, plan: Plan,
    ) -> None:  # fmt: skip
        self.plan = plan
        self.rounded = True
        self.piece = Piece(block, candidate, candidate.grids(scheme))
        self.given = {name: torch.from_numpy(array) for name, array in given.items()}
        self.wanted = [torch.from_numpy(targets[name]) for name in block.outputs]
        self.power = [max(float(want.double().square().mean()), _TINY) for want in self.wanted]
        names = _weights(block, candidate)
        limit = weight_limit(scheme)
        self.before = {name: torch.from_numpy(integers[name].restored()) for name in names}
        self.roundings = {name: Rounding.of(_float_weight(candidate, name), integers[name], limit) for name in names}
        self.biases = _biases(self.piece, candidate)
        self.unit = {name: _unit(name, bias, self.piece, candidate, integers) for name, bias in self.biases.items()}
        self.moved = {name: torch.zeros_like(bias, requires_grad=True) for name, bias in self.biases.items()}
        groups = _own_groups(block, candidate)
        self.logs = {group: torch.zeros((), requires_grad=True) for group in groups}
        self.group_of = {tensor: group for group, tensors in groups.items() for tensor in tensors}

    def learned(self, held: int) -> Learned:
        """Learn from all images but the last `held`, judge on these."""
        count = len(self.wanted[0]) - held
        seen = slice(0, min(count, 4 * self.plan.batch))
        seen_before = self.errors(seen, learned=False)
        judged_before = self.errors(slice(count, count + held), learned=False)
        self.descend(count, max(float(seen_before.mean()), _TINY))
        hard = {name: rounding.settled() for name, rounding in self.roundings.items()}
        seen_after = self.errors(seen, learned=True)
        # Where activations make the noise, rounding has little to gain, and one settled in haste can lose.
        self.rounded = False
        seen_unrounded = self.errors(seen, learned=True)
        if float(seen_after.mean()) < float(seen_unrounded.mean()):
            self.rounded = True
        else:
            hard, seen_after = {}, seen_unrounded
        judged = self.errors(slice(count, count + held), learned=True)
        fall = judged_before - judged
        doubt = float(fall.std()) / held**0.5 if held > 1 else 0.0
        return Learned(
            hard,
            {name: bias.detach().numpy() for name, bias in self.shifted().items()},
            {group: float(torch.exp(log.detach())) for group, log in self.logs.items()},
            float(judged.mean()) / max(float(judged_before.mean()), _TINY),
            float(seen_after.mean()) / max(float(seen_before.mean()), _TINY),
            float(fall.mean()) > doubt,
        )

    def descend(self, count: int, base: float) -> None:
        """Gradient descent on the first `count` images; the block's error counts in units of `base`."""
        plan = self.plan
        optimizer = torch.optim.Adam([
            {"params": [rounding.logits for rounding in self.roundings.values()], "lr": plan.rounding_rate},
            {"params": list(self.moved.values()), "lr": plan.bias_rate},
            {"params": list(self.logs.values()), "lr": plan.scale_rate},
        ])  # fmt: skip
        generator = torch.Generator().manual_seed(plan.seed)
        warm = int(plan.warm * plan.iterations)
        for step in range(plan.iterations):
            for group, rate in zip(optimizer.param_groups[1:], (plan.bias_rate, plan.scale_rate), strict=True):
                group["lr"] = rate * _cosine(step / plan.iterations)
            part = torch.randperm(count, generator=generator)[: plan.batch]
            loss = self.error(part, learned=True).mean() / base
            sharpness = 2.0 + 18.0 * _cosine((step - warm) / max(plan.iterations - warm, 1))
            for rounding in self.roundings.values():
                loss = loss + plan.plain / len(self.roundings) * rounding.distance()
                if step >= warm:
                    loss = loss + plan.settle * rounding.unsettled(sharpness)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def errors(self, images: slice, *, learned: bool) -> torch.Tensor:
        """Error of each image, without gradients."""
        found = []
        with torch.no_grad():
            for start in range(images.start, images.stop, self.plan.batch):
                part = slice(start, min(start + self.plan.batch, images.stop))
                found.append(self.error(part, learned=learned))
        return torch.cat(found)

    def error(self, part: slice | torch.Tensor, *, learned: bool) -> torch.Tensor:
        """Mean square of each image's error over the outputs' power, summed over the outputs."""
        feed = {name: values[part] for name, values in self.given.items()}
        if learned:
            roundings = self.roundings.items()
            weights = {name: rounding.soft() for name, rounding in roundings} if self.rounded else self.before
            factors = {tensor: torch.exp(self.logs[group]) for tensor, group in self.group_of.items()}
            answers = self.piece.run(feed, weights, self.shifted(), factors)
        else:
            answers = self.piece.run(feed, self.before, self.biases, {})
        terms = [
            (got - want[part]).square().flatten(1).mean(1) / power
            for got, want, power in zip(answers, self.wanted, self.power, strict=True)
        ]
        return torch.stack(terms).sum(0)

    def shifted(self) -> dict[str, torch.Tensor]:
        """The biases as learned so far."""
        return {name: bias + self.moved[name] * self.unit[name] for name, bias in self.biases.items()}


def _cosine(done: float) -> float:
    """From 1 to 0 while `done` goes from 0 to 1."""
    return 0.5 * (1.0 + float(np.cos(np.pi * done)))


def _weights(block: Block, candidate: Candidate) -> list[str]:
    """Weight tensors that only this block reads; a weight shared with another keeps its integers."""
    found: dict[str, bool] = {}
    for weight in candidate.placement.weights:
        found[weight.tensor] = found.get(weight.tensor, True) and weight.node in block.layers
    return [name for name, own in found.items() if own]


def _float_weight(candidate: Candidate, name: str) -> np.ndarray:
    return np.asarray(candidate.model.graph.initializers[name].const_value.numpy())


def _biases(piece: Piece, candidate: Candidate) -> dict[str, torch.Tensor]:
    """Biases of the block's layers by node: what they are so far, zeros where there is none; a MatMul has no place."""
    found = {}
    for node in piece.nodes:
        if node.name not in piece.block.layers or node.op_type == "MatMul":
            continue
        given = candidate.overrides.biases.get(node.name or "")
        if given is None and len(node.inputs) > 2 and node.inputs[2] is not None:
            given = constant(node.inputs[2])
            if given is None or given.size != _channels(node):
                continue  # computed, or one number for all channels
        bias = np.zeros(_channels(node), np.float32) if given is None else np.array(given, np.float32).reshape(-1)
        found[node.name or ""] = torch.from_numpy(bias)
    return found


def _channels(node: ir.Node) -> int:
    weight = constant(node.inputs[1])
    assert weight is not None
    attributes = node.attributes
    match node.op_type:
        case "ConvTranspose":
            return int(weight.shape[1]) * (int(attributes["group"].value) if "group" in attributes else 1)
        case "Gemm":
            return int(weight.shape[0 if "transB" in attributes and attributes["transB"].value else 1])
        case _:
            return int(weight.shape[0])


def _unit(
    node: str, bias: torch.Tensor, piece: Piece, candidate: Candidate, integers: dict[str, IntegerWeight]
) -> torch.Tensor:
    """What a bias is moved in: the mean of the biases, or of the largest single products where that is more."""
    tensor = next(weight.tensor for weight in candidate.placement.weights if weight.node == node)
    grid = piece.grids[piece.through[node, 0]]
    product = float(integers[tensor].scales.mean()) * grid.scale * (grid.highest - grid.lowest)
    return torch.clamp_min(bias.abs().mean(), product)


def _own_groups(block: Block, candidate: Candidate) -> dict[int, list[str]]:
    """Scale groups all of whose readings are in the block, so that no other block sees their scale change."""
    return {
        group: [activation.tensor for activation in members]
        for group, members in candidate.placement.groups().items()
        if all(
            activation.edges and all(edge.node in block.nodes for edge in activation.edges) for activation in members
        )
    }
