"""Placement for OpenVINO's CPU plugin: TensorRT's rules, with the thin layers too, and both sides of a bare Add.

Source: OpenVINO's documentation, "Low Precision Transformations", and measurement (benchmarks/cpu_speed.py). Compared
in OpenVINO 2026.4.1 on one thread, with the kernels for AVX-512 VNNI and with those for AVX2: onnxruntime's placement
(Q/DQ around every op, so at Sigmoid too) lost 17 to 35 % on YOLOv8n and MobileNetV3-small and won nowhere more than
2 %; INT8 into squeeze-and-excitation blocks, as NNCF has it, won nothing. UINT8 asymmetric activations were as fast as
NNCF's choice (UINT8 behind a ReLU, else symmetric INT8) and up to 13 % faster than symmetric INT8 everywhere, which
needs a correction in every x86 kernel.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.place import tensorrt as placement_tensorrt
from edgecnn.quantize.place.heads import head_of
from edgecnn.quantize.place.placement import Edge, Graph, Placement


def place(graph: Graph, keep_float: frozenset[str]) -> Placement:
    """Layers, skip inputs, one scale across pass-through ops; no layer is too thin on a CPU.

    An Add that no ReLU or Clip follows has both inputs in INT8: OpenVINO then fuses it and the Q behind it into the
    convolution, else that Q runs as a kernel of its own.
    """
    float_nodes = keep_float | head_of(graph).nodes
    also = tuple(edge for edge in _bare_adds(graph) if edge.node not in float_nodes)
    return placement_tensorrt.place(graph, keep_float, least_channels=0, also=also)


def _bare_adds(graph: Graph) -> Iterator[Edge]:
    for node in graph.nodes():
        if node.op_type != "Add" or any(constant(value) is not None for value in node.inputs):
            continue
        if node.outputs[0].dtype != ir.DataType.FLOAT:
            continue
        followed = [reader.op_type for reader, _ in node.outputs[0].uses()]
        same = graph.shape(node.inputs[0]) == graph.shape(node.inputs[1])
        if same and node.inputs[0] is not node.inputs[1] and followed not in (["Relu"], ["Clip"]):
            yield Edge(node.name or "", 0)
            yield Edge(node.name or "", 1)
