"""A canonical ONNX graph as a torch network that trains, with fake quantization at exactly the edges of a placement.

The graph itself is run, node by node, not the torch network that it came from: so the edges are those of the Q/DQ graph
by construction, whatever the family, BatchNorm is folded already, and what is learned goes back by tensor name.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from edgecnn.process.errors import EdgeError
from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.ladder.candidate import Candidate
from edgecnn.quantize.place.placement import LAYERS, Weight
from edgecnn.quantize.torch.fake_quant import LearnedBias, LearnedGrids, LearnedWeight, least_steps, rounded
from edgecnn.quantize.torch.operators import apply, unmapped
from edgecnn.quantize.write.rewrite import BIAS, Overrides
from edgecnn.quantize.write.weights import integer_weight, weight_limit
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.io_contract import IoContract

_WEIGHT = 1  # the weight's input index of a layer


class Feed:
    """Augmented uint8 images (N, C, S, S), RGB or gray → what the contract's graph takes."""

    def __init__(self, contract: IoContract, device: torch.device) -> None:
        self.contract = contract
        inside = contract.normalization_inside or contract.normalization is None
        self.normalization = None
        if not inside and contract.normalization is not None:
            pair = (contract.normalization.mean, contract.normalization.std)
            self.normalization = [torch.tensor(part, device=device).reshape(1, -1, 1, 1) for part in pair]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        told = self.contract.input
        images = pixels.flip(1) if told.color == "bgr" else pixels
        if told.dtype == "float32":
            low, high = told.range
            images = images.float() * ((high - low) / 255.0) + low
            if self.normalization:
                images = (images - self.normalization[0]) / self.normalization[1]
        return images.permute(0, 2, 3, 1) if told.layout == "NHWC" else images


class _Nodes(list[ir.Node]):
    """What a copy of the network (for averaged weights) shares with it."""

    def __deepcopy__(self, memo: object) -> _Nodes:
        return self


class GraphNet(nn.Module):
    """A float graph as it is, or with fake quantization as a candidate of it and its scheme say.

    Every Conv, ConvTranspose, Gemm and MatMul weight and every bias in it is learned; other constants stay.

    Raises:
        EdgeError: a node that torch can't run here, or a weight that two layers read along different axes.
    """

    def __init__(self, model: ir.Model, output: str, start: tuple[Candidate, Scheme] | None = None) -> None:
        super().__init__()
        self.nodes = _Nodes(node for node in model.graph if not _casts_to_float(node))
        self.positions = {str(node.name): str(number) for number, node in enumerate(self.nodes)}
        first = model.graph.inputs[0].name
        # Pixels come in as float: the Cast of uint8 has nothing to do.
        casts = [n.outputs[0].name for n in model.graph if _casts_to_float(n) and n.inputs[0].name == first]
        self.inputs, self.output = (first, *casts), output
        for node in self.nodes:
            if why := unmapped(node):
                raise EdgeError(
                    f"`{node.name}` cannot be trained: {why}", "stop the ladder before: `recover: {stop_at: mixed}`"
                )
        self.candidate: Candidate | None = start[0] if start else None
        self.scheme: Scheme | None = start[1] if start else None
        self.placed: dict[str, Weight] = {}  # by node name
        self.tensors: dict[str, Weight] = {}  # by weight tensor
        self.groups: dict[str, int] = {}
        self.read: dict[tuple[str, int], str] = {}
        self.grids: LearnedGrids | None = None
        if start is not None:
            self._place(*start)
        self.constants: dict[str, str] = {}  # tensor → the buffer's name
        self.keys: dict[str, str] = {}  # weight tensor → its key in `weights`; a bias is found by its node
        self.weights, self.biases = nn.ModuleDict(), nn.ModuleDict()
        for node in self.nodes:
            self._learn(node)
        self.last_use = _last_uses(self.nodes, output)

    # --- building ---

    def _place(self, candidate: Candidate, scheme: Scheme) -> None:
        groups = candidate.placement.groups()
        place = {group: number for number, group in enumerate(groups)}
        for activation in candidate.placement.activations:
            self.groups[activation.tensor] = place[activation.group]
            self.read.update({(edge.node, edge.index): activation.tensor for edge in activation.edges})
            if not activation.edges:  # the graph's output itself
                self.read["", 0] = activation.tensor
        grids = candidate.grids(scheme)
        self.grids = LearnedGrids([grids[members[0].tensor] for members in groups.values()], scheme)
        self.placed = {weight.node: weight for weight in candidate.placement.weights}
        self.tensors = {weight.tensor: weight for weight in candidate.placement.weights}
        axes = {(weight.tensor, weight.axis) for weight in candidate.placement.weights}
        if len(axes) != len(self.tensors):
            raise EdgeError("a weight that two layers read along different axes cannot be trained")

    def _learn(self, node: ir.Node) -> None:
        layer = node.op_type in LAYERS
        weight = constant(node.inputs[_WEIGHT]) if layer and len(node.inputs) > _WEIGHT else None
        for index, value in enumerate(node.inputs):
            array = constant(value)
            if array is None or array.dtype != np.float32 or value is None:
                continue
            if weight is None or index not in (_WEIGHT, BIAS) or (index == BIAS and not _is_bias(array)):
                self._constant(str(value.name), array)
        if weight is None:
            return
        name = str(node.inputs[_WEIGHT].name)
        bias = constant(node.inputs[BIAS]) if len(node.inputs) > BIAS else None
        bias = bias if bias is not None and _is_bias(bias) else None
        if self.candidate is not None and node.name in self.candidate.overrides.biases:
            bias = self.candidate.overrides.biases[node.name]
        if name not in self.keys:
            self.keys[name] = str(len(self.keys))
            self.weights[self.keys[name]] = self._weight(name, weight, bias)
        if bias is not None:
            unit = self._weight_of(node).magnitude
            unit = unit.reshape(-1) if unit.numel() in (1, len(bias)) else unit.amax().reshape(1)
            self.biases[self._bias_key(node)] = LearnedBias(torch.from_numpy(bias.astype(np.float32)), unit)

    def _weight(self, name: str, array: np.ndarray, bias: np.ndarray | None) -> LearnedWeight:
        plain = array.astype(np.float32)
        if self.candidate is None or self.scheme is None or name not in self.tensors:
            return LearnedWeight(torch.from_numpy(plain.copy()))
        scheme, axis = self.scheme, self.tensors[name].axis
        chosen = self.candidate.overrides.weights.get(name)
        if chosen is None:
            input_scale = self.candidate.grids(scheme)[self.read[self.tensors[name].node, 0]].scale
            scales = integer_weight(name, plain, axis, scheme, bias, input_scale).scales
        else:
            # Moved into the cell of the integers that a rung chose, so that training begins where that rung ended.
            scales, restored = chosen.scales, chosen.restored()
            shape = [-1 if number == axis else 1 for number in range(plain.ndim)]
            reach = 0.499 * scales.reshape(shape)
            plain = restored + np.clip(plain - restored, -reach, reach)
        halves = scheme.islands == "float16"
        return LearnedWeight(
            torch.from_numpy(plain.copy()), axis, torch.from_numpy(np.array(scales)), weight_limit(scheme), halves
        )

    def _constant(self, name: str, array: np.ndarray) -> None:
        if name not in self.constants:
            self.constants[name] = f"constant{len(self.constants)}"
            self.register_buffer(self.constants[name], torch.from_numpy(array.copy()), persistent=False)

    def _bias_key(self, node: ir.Node) -> str:
        return self.positions[str(node.name)]

    def _weight_of(self, node: ir.Node) -> LearnedWeight:
        found: LearnedWeight = self.weights[self.keys[str(node.inputs[_WEIGHT].name)]]
        return found

    # --- running ---

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """What the contract feeds, as a tensor (any number type) → the graph's output `output`, float32."""
        values: dict[str, torch.Tensor] = dict.fromkeys(self.inputs, images.float())
        steps = list(self.grids.steps().unbind()) if self.grids is not None else []
        made: dict[str, torch.Tensor] = {}
        for number, node in enumerate(self.nodes):
            results = apply(node, self._inputs(node, values, made, steps))
            for value, result in zip(node.outputs, results, strict=False):
                values[str(value.name)] = result
            for name in self.last_use[number]:
                values.pop(name, None)
                made.pop(name, None)
        if ("", 0) in self.read:
            return self._quantized(self.output, values, made, steps)
        return values[self.output]

    def _inputs(
        self, node: ir.Node, values: dict[str, torch.Tensor], made: dict[str, torch.Tensor],
        steps: list[torch.Tensor],
    ) -> list[torch.Tensor | None]:  # fmt: skip
        found: list[torch.Tensor | None] = []
        for index, value in enumerate(node.inputs):
            name = str(value.name) if value is not None else ""
            if (node.name, index) in self.read:
                found.append(self._quantized(name, values, made, steps))
            elif name in values:
                found.append(values[name])
            else:
                found.append(getattr(self, self.constants[name]) if name in self.constants else None)
        if node.op_type in LAYERS and str(node.inputs[_WEIGHT].name) in self.keys:
            found[_WEIGHT], bias = self._layer(node, steps)
            if bias is not None:
                found[BIAS:] = [bias]
        return found

    def _quantized(
        self, name: str, values: dict[str, torch.Tensor], made: dict[str, torch.Tensor], steps: list[torch.Tensor]
    ) -> torch.Tensor:
        assert self.grids is not None
        if name not in made:
            group = self.groups[name]
            made[name] = self.grids.values(values[name], steps[group], group)
        return made[name]

    def _layer(self, node: ir.Node, steps: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weight and bias that the layer computes with; an INT32 bias has the step input · weight."""
        weight, key = self._weight_of(node), self._bias_key(node)
        bias = self.biases[key].plain() if key in self.biases else None
        if self.scheme is None or node.name not in self.placed:
            return weight.plain(), bias
        input_step = steps[self.groups[self.read[node.name, 0]]]
        if self.scheme.bias != "int32" or bias is None:
            return weight.values(weight.steps()), bias
        own = weight.steps(least_steps(bias, input_step))
        bias_step = (input_step * own.reshape(-1)).detach()
        return weight.values(own), rounded(bias, bias_step, -(2**31), 2**31 - 1)

    # --- what was learned ---

    def refit(self) -> None:
        """Weight steps of least squared error, where no rung has chosen them."""
        assert self.candidate is not None
        for tensor in self.tensors.keys() - self.candidate.overrides.weights.keys():
            self.weights[self.keys[tensor]].refit()

    @torch.no_grad()
    def learned(self) -> Candidate:
        """The candidate with what was learned: float weights in its graph, integers, biases and ranges."""
        assert self.candidate is not None
        assert self.scheme is not None
        assert self.grids is not None
        steps, integers, biases = self.grids.steps(), {}, {}
        for node in self.nodes:
            key = self._bias_key(node)
            if key in self.biases:
                biases[str(node.name)] = self.biases[key].plain().cpu().numpy()
            if node.name in self.placed:
                least = None
                if self.scheme.bias == "int32" and key in self.biases:
                    least = least_steps(self.biases[key].plain(), steps[self.groups[self.read[node.name, 0]]])
                integers[self.placed[node.name].tensor] = self._weight_of(node).integer(least)
        model: ir.Model = ir.serde.deserialize_model(ir.serde.serialize_model(self.candidate.model))
        for name, key in self.keys.items():
            array = self.weights[key].plain().cpu().contiguous().numpy()
            model.graph.initializers[name].const_value = ir.tensor(array, name=name)
        ranges = self.grids.ranges()
        return replace(
            self.candidate, model=model, overrides=Overrides(integers, biases),
            ranges={name: ranges[group] for name, group in self.groups.items()},
        )  # fmt: skip


def _casts_to_float(node: ir.Node) -> bool:
    return node.op_type == "Cast" and node.outputs[0].dtype == ir.DataType.FLOAT and node.inputs[0].is_graph_input()


def _is_bias(array: np.ndarray) -> bool:
    return bool(array.ndim == 1 and array.dtype == np.float32)


def _last_uses(nodes: list[ir.Node], output: str) -> list[list[str]]:
    """The tensors that no node after each one reads: memory stays that of a few layers where nothing is learned."""
    ends: dict[str, int] = {}
    for number, node in enumerate(nodes):
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name != output:
                ends[str(value.name)] = number
    last: list[list[str]] = [[] for _ in nodes]
    for name, number in ends.items():
        last[number].append(name)
    return last
