"""What a CPU takes for an operator in float and in INT8 under onnxruntime: one image, one thread, microseconds.

Where the numbers come from:

x86-vnni, x86   measured: onnxruntime 1.32.0's profile (a low percentile of each kernel) of EfficientNet-Lite0,
                ResNet-18, MobileNetV3-small and YOLOv8n, float and with every operator in INT8, on one core of an AMD
                EPYC (Zen 4), least squares over 167 convolutions; `x86` there too, with all CPUID bits of AVX-512 and
                VNNI masked, so that the library takes its AVX2 kernels. `benchmarks/cpu_speed.py --kernels` prints
                the profile of the machine it runs on.
arm64           by rule, nothing measured: a 128-bit SDOT does 16 INT8 multiply-adds, an FMLA 4 in float, both twice a
                cycle (Arm Cortex-A76 Software Optimization Guide); half of that factor of 4 is counted for layers,
                nothing for depthwise ones, which have no dot product to use. The rest is x86's, taken twice.

Only ratios decide. Counting INT8 a tenth dearer than measured, to be on the safe side, cost YOLOX-Nano up to 7 % and
won nothing elsewhere. Float kernels fuse and INT8 ones are parted by conversions, so the two sides are not symmetric:
`paying` says how that is counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.place.coverage import macs
from edgecnn.quantize.place.placement import LAYERS, Graph

Costs = Literal["x86-vnni", "x86", "arm64"]
# In float these run inside the Conv before them (onnxruntime's NCHWc convolution and its fused activations).
FUSING = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish"})
# In float these take and give onnxruntime's blocked layout (NCHWc); before and after any other operator a tensor is
# reordered.
BLOCKED = frozenset({"Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Concat", "Resize", "Sigmoid"})


@dataclass(frozen=True)
class Line:
    """start + mega · MACs / 10⁶ + kilo · elements / 10³, in microseconds; see `elements`."""

    start: float
    mega: float = 0.0
    kilo: float = 0.0

    def at(self, macs: float, elements: float) -> float:
        """Microseconds."""
        return self.start + self.mega * macs / 1e6 + self.kilo * elements / 1e3

    def times(self, factor: float) -> Line:
        """All of it slower by a factor."""
        return Line(self.start * factor, self.mega * factor, self.kilo * factor)


@dataclass(frozen=True)
class Table:
    """`layers` by kind, `others` by op type: (float, INT8). Conversions and changes of layout by tensor.

    `transpose` is what INT8 kernels add to a conversion of an image: they want the channels last.
    """

    layers: dict[str, tuple[Line, Line]]
    others: dict[str, tuple[Line, Line]]
    to_int8: Line
    to_float: Line
    transpose: Line
    out_of_blocks: Line
    into_blocks: Line


_MOVING = (Line(8, kilo=0.2), Line(8, kilo=0.13))
_OTHERS: dict[str, tuple[Line, Line]] = {
    "Add": (Line(4, kilo=0.35), Line(6, kilo=0.19)),
    "Mul": (Line(4, kilo=0.14), Line(6, kilo=0.30)),
    "Sigmoid": (Line(1, kilo=0.2), Line(8, kilo=0.36)),
    "LeakyRelu": (Line(4, kilo=0.15), Line(8, kilo=0.36)),
    "Concat": (Line(8, kilo=0.31), Line(6, kilo=0.30)),
    "AveragePool": (Line(4, kilo=0.20), Line(4, kilo=0.20)),
    "GlobalAveragePool": (Line(4, kilo=0.08), Line(4, kilo=0.20)),
    "MaxPool": (Line(35, kilo=0.21), Line(35, kilo=0.055)),
    "Resize": (Line(10, kilo=0.30), Line(25, kilo=1.20)),
    "Transpose": (Line(5, kilo=0.15), Line(3, kilo=0.10)),
    "Split": _MOVING, "Slice": _MOVING, "DepthToSpace": _MOVING,
    "Reshape": (Line(5), Line(6)), "Squeeze": (Line(4), Line(5)), "Unsqueeze": (Line(4), Line(5)),
    "Flatten": (Line(3), Line(4)),
    "HardSigmoid": (Line(3, kilo=0.157), Line(0)), "HardSwish": (Line(6, kilo=0.31), Line(0)),
}  # fmt: skip
_ELEMENTWISE = (Line(4, kilo=0.3), Line(0))  # any other operator, never INT8
_DENSE_FLOAT, _DEPTHWISE_FLOAT = Line(5, 20, 0.05), Line(5, 46, 0.05)
_IMAGE_FLOAT, _MATRIX_FLOAT = Line(5, 17, 0.35), Line(5, 195)
# To float; then transpose, out of and into the blocked layout.
_MOVES = (Line(3.2, kilo=0.11), Line(2.8, kilo=0.10), Line(2.7, kilo=0.125), Line(2.5, kilo=0.165))

_X86_VNNI = Table(
    {
        "dense": (_DENSE_FLOAT, Line(14, 4.23, 0.372)), "pointwise": (_DENSE_FLOAT, Line(10, 4.9, 0.08)),
        "depthwise": (_DEPTHWISE_FLOAT, Line(14, 24.5, 0.185)), "image": (_IMAGE_FLOAT, Line(42, 3.9, 1.18)),
        "matrix": (_MATRIX_FLOAT, Line(10, 90)),
    },
    _OTHERS, Line(4.6, kilo=0.15), *_MOVES,
)  # fmt: skip
_X86 = Table(
    {
        "dense": (_DENSE_FLOAT, Line(10, 8.8, 0.52)), "pointwise": (_DENSE_FLOAT, Line(9.6, 9.3, 0.157)),
        "depthwise": (_DEPTHWISE_FLOAT, Line(13, 35, 0.283)), "image": (_IMAGE_FLOAT, Line(42, 7, 1.32)),
        "matrix": (_MATRIX_FLOAT, Line(10, 90)),
    },
    _OTHERS, Line(4.6, kilo=0.27), *_MOVES,
)  # fmt: skip


def _arm64() -> Table:
    layers = {}
    for kind, (in_float, in_int8) in _X86.layers.items():
        int8 = in_float.mega if kind == "depthwise" else in_float.mega / 2
        layers[kind] = in_float.times(2), Line(in_int8.start, int8, in_int8.kilo).times(2)
    others = {name: (lines[0].times(2), lines[1].times(2)) for name, lines in _OTHERS.items()}
    return Table(layers, others, _X86.to_int8.times(2), *(line.times(2) for line in _MOVES))


def table_of(costs: Costs) -> Table:
    """The numbers of one kind of CPU."""
    match costs:
        case "x86-vnni":
            return _X86_VNNI
        case "x86":
            return _X86
        case "arm64":
            return _arm64()


def node_costs(node: ir.Node, graph: Graph, table: Table) -> tuple[float, float]:
    """(float, INT8) microseconds of one operator for one image."""
    size = elements(node, graph)
    if node.op_type in LAYERS:
        lines = table.layers[kind_of(node, graph)]
        work = macs(node, graph)
        return lines[0].at(work, size), lines[1].at(work, size)
    lines = table.others.get(node.op_type, _ELEMENTWISE)
    return lines[0].at(0, size), lines[1].at(0, size)


def elements(node: ir.Node, graph: Graph) -> int:
    """Elements that an operator handles: of a layer its output's, else of the larger of its first input and output."""
    output = math.prod(graph.shape(node.outputs[0]))
    if node.op_type in LAYERS:
        return output
    return max(output, *(math.prod(graph.shape(v)) for v in node.inputs if v is not None and constant(v) is None), 0)


def kind_of(node: ir.Node, graph: Graph) -> str:
    """Which kernel a layer has: `dense`, `pointwise`, `depthwise`, `image` (few input channels) or `matrix`."""
    if node.op_type in ("Gemm", "MatMul"):
        return "matrix"
    weight, output = graph.shape(node.inputs[1]), graph.shape(node.outputs[0])
    if node.op_type == "ConvTranspose":
        return "dense"
    if math.prod(output[2:]) == 1:
        return "matrix"  # reads each weight once, as a Gemm of one row does
    if weight[1] == 1 and weight[0] > 1:
        return "depthwise"
    if weight[1] <= 4:
        return "image"
    return "pointwise" if math.prod(weight[2:]) == 1 else "dense"
