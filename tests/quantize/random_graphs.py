"""Random small CNNs for hypothesis: a few blocks of what edge networks are made of, each drawn with its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from quantize_graphs import Net

SIZE, CHANNELS = 8, 8
Block = Callable[["Builder", str], str]


class Builder(Net):
    """A graph under construction that knows channels and side of its tensors."""

    def __init__(self, seed: int, opset: int) -> None:
        super().__init__(3, SIZE, opset, seed)
        self.of: dict[str, tuple[int, int]] = {"image": (3, SIZE)}

    def made(self, name: str, channels: int, side: int) -> str:
        self.of[name] = (channels, side)
        return name

    def same(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.made(self.op(kind, *inputs, **attributes), *self.of[inputs[0]])

    def layer(
        self, x: str, out: int, *, kernel: int = 3, stride: int = 1, dilation: int = 1, group: int = 1,
        bias: bool = True,
    ) -> str:  # fmt: skip
        channels, side = self.of[x]
        name = f"conv{len(self.nodes)}"
        shape = (out, channels // group, kernel, kernel)
        weight = self.rng.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
        inputs = [x, self.constant(f"{name}.weight", weight.astype(np.float32))]
        if bias:
            inputs.append(self.constant(f"{name}.bias", (self.rng.standard_normal(out) * 0.1).astype(np.float32)))
        pad = dilation * (kernel // 2)
        output = self.op(
            "Conv", *inputs, name=name, pads=[pad] * 4, kernel_shape=[kernel] * 2, strides=[stride] * 2,
            dilations=[dilation] * 2, group=group,
        )  # fmt: skip
        return self.made(output, out, -(-side // stride))

    def numbers(self, values: Any, kind: Any = np.float32) -> str:
        return self.constant(f"c{len(self.weights)}", np.asarray(values, kind))


def activation(net: Builder, x: str, kind: str) -> str:
    match kind:
        case "silu":
            return net.same("Mul", x, net.op("Sigmoid", x))
        case "relu6":
            return net.same("Clip", x, net.numbers(0.0), net.numbers(6.0))
        case "hardswish":
            return net.same("HardSwish", x) if net.opset >= 14 else net.same("Mul", x, net.op("HardSigmoid", x))
        case "prelu":
            slope = net.numbers(net.rng.random((net.of[x][0], 1, 1)) * 0.3)
            return net.same("PRelu", x, slope)
        case "leaky":
            return net.same("LeakyRelu", x, alpha=0.1)
        case "gelu":
            inner = net.op("Add", net.op("Erf", net.op("Div", x, net.numbers(np.sqrt(2.0)))), net.numbers(1.0))
            return net.same("Mul", net.same("Mul", x, inner), net.numbers(0.5))
        case _:
            return net.same("Relu", x)


ACTIVATIONS = st.sampled_from(["relu", "relu6", "silu", "hardswish", "prelu", "leaky", "gelu", "none"])


def _act(net: Builder, x: str, kind: str) -> str:
    return x if kind == "none" else activation(net, x, kind)


def conv(out: int, kernel: int, stride: int, dilation: int, bias: bool, kind: str) -> Block:
    return lambda net, x: _act(
        net, net.layer(x, out, kernel=kernel, stride=stride, dilation=dilation if kernel > 1 else 1, bias=bias), kind
    )


def normalized(out: int, kind: str) -> Block:
    def make(net: Builder, x: str) -> str:
        y = net.layer(x, out, bias=False)
        parts = [net.numbers(v) for v in (net.rng.random(out) + 0.5, net.rng.standard_normal(out) * 0.1,
                                          net.rng.standard_normal(out) * 0.1, net.rng.random(out) + 0.5)]  # fmt: skip
        return _act(net, net.same("BatchNormalization", y, *parts), kind)

    return make


def grouped(depthwise: bool, kernel: int, kind: str) -> Block:
    def make(net: Builder, x: str) -> str:
        channels = net.of[x][0]
        group = channels if depthwise else 2 if channels % 2 == 0 else 1
        return _act(net, net.layer(x, channels, kernel=kernel, group=group), kind)

    return make


def residual(projected: bool, kind: str) -> Block:
    def make(net: Builder, x: str) -> str:
        channels = net.of[x][0]
        y = net.layer(_act(net, net.layer(x, channels), "relu"), channels)
        other = net.layer(x, channels, kernel=1) if projected else x
        return _act(net, net.same("Add", y, other), kind)

    return make


def branches(count: int, kind: str) -> Block:
    def make(net: Builder, x: str) -> str:
        parts = [_act(net, net.layer(x, CHANNELS, kernel=1 if number % 2 else 3), kind) for number in range(count)]
        channels = CHANNELS * count + net.of[x][0]
        return net.made(net.op("Concat", *parts, x, axis=1), channels, net.of[x][1])

    return make


def pooled(kind: str) -> Block:
    def make(net: Builder, x: str) -> str:
        channels, side = net.of[x]
        if side < 2:
            return x
        return net.made(net.op(kind, x, kernel_shape=[2, 2], strides=[2, 2]), channels, side // 2)

    return make


def resized(mode: str) -> Block:
    def make(net: Builder, x: str) -> str:
        channels, side = net.of[x]
        if side > SIZE // 2:
            return x
        scales = net.numbers([1.0, 1.0, 2.0, 2.0])
        how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"} if mode == "nearest" else {}
        region = "" if net.opset >= 13 else net.numbers([])  # not optional before
        return net.made(net.op("Resize", x, region, scales, mode=mode, **how), channels, 2 * side)

    return make


def squeezed(hard: bool) -> Block:
    def make(net: Builder, x: str) -> str:
        channels, side = net.of[x]
        pool = net.made(net.op("GlobalAveragePool", x), channels, 1)
        inner = net.same("Relu", net.layer(pool, CHANNELS, kernel=1))
        gate = net.op("HardSigmoid" if hard else "Sigmoid", net.layer(inner, channels, kernel=1))
        return net.made(net.op("Mul", x, gate), channels, side)

    return make


def transposed() -> Block:
    def make(net: Builder, x: str) -> str:
        channels, side = net.of[x]
        if side > SIZE // 2:
            return x
        weight = net.numbers(net.rng.standard_normal((channels, CHANNELS, 2, 2)) / np.sqrt(channels))
        return net.made(net.op("ConvTranspose", x, weight, strides=[2, 2]), CHANNELS, 2 * side)

    return make


def shuffled() -> Block:
    def make(net: Builder, x: str) -> str:
        side = net.of[x][1]
        if side > SIZE // 2:
            return x
        return net.made(net.op("DepthToSpace", net.layer(x, 4 * CHANNELS, kernel=1), blocksize=2), CHANNELS, 2 * side)

    return make


_FLAG = st.booleans()
BLOCKS: st.SearchStrategy[Block] = st.one_of(
    st.builds(conv, st.sampled_from([4, 8, 16]), st.sampled_from([1, 3]), st.sampled_from([1, 2]),
              st.sampled_from([1, 2]), _FLAG, ACTIVATIONS),
    st.builds(normalized, st.sampled_from([8, 16]), ACTIVATIONS),
    st.builds(grouped, _FLAG, st.sampled_from([3, 5]), ACTIVATIONS),
    st.builds(residual, _FLAG, ACTIVATIONS),
    st.builds(branches, st.integers(1, 2), ACTIVATIONS),
    st.builds(pooled, st.sampled_from(["MaxPool", "AveragePool"])),
    st.builds(resized, st.sampled_from(["nearest", "linear"])),
    st.builds(squeezed, _FLAG),
    st.builds(transposed),
    st.builds(shuffled),
)  # fmt: skip


@st.composite
def networks(draw: st.DrawFn) -> tuple[Builder, str, int]:
    """(graph, name of its output, rank of the output): a stem, one to four blocks, and a head or none."""
    net = Builder(draw(st.integers(0, 9)), draw(st.sampled_from([11, 13, 17, 19, 21])))
    x = activation(net, net.layer("image", CHANNELS), draw(st.sampled_from(["relu", "silu", "hardswish"])))
    for block in draw(st.lists(BLOCKS, min_size=1, max_size=4)):
        x = block(net, x)
    match draw(st.sampled_from(["gemm", "matmul", "map"])):
        case "map":
            return net, net.layer(x, CHANNELS, kernel=1), 4
        case "matmul":
            flat = net.op("Flatten", net.op("GlobalAveragePool", x))
            weight = net.numbers(net.rng.standard_normal((net.of[x][0], 5)))
            return net, net.op("Add", net.op("MatMul", flat, weight), net.numbers(np.linspace(-1, 1, 5))), 2
        case _:
            return net, net.head(x, net.of[x][0]), 2
