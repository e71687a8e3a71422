"""What TensorRT 10.3, the one of JetPack 6, accepts of an ONNX graph: our table, for when no board is here.

The parser of TensorRT for RTX is years newer (opset 23 and more types), so its yes is not the board's. Each row of
RULES stands for one thing that 10.3 refuses or that a strongly typed INT8 engine can't be built from, with its source.
Passing all rows is necessary, not sufficient: reports say `TensorRT 10.3 rules`, never `TensorRT 10.3`.

Deliberately no row: INT64 values beyond 32 bits (native since TensorRT 9.0: onnx-tensorrt docs/Changelog.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgecnn.backends.tensorrt import graph_rules as graph
from edgecnn.backends.tensorrt import qdq_rules as qdq
from edgecnn.backends.tensorrt.graph import Graph, read_graph
from edgecnn.process.errors import EdgeError

Finding = tuple[str, str]  # node, words
Check = Callable[[Graph], Iterator[Finding]]


@dataclass(frozen=True)
class Rule:
    """One row: what is accepted, where that is written, and the check that yields each offending node with words."""

    id: str
    what: str
    source: str
    check: Check


@dataclass(frozen=True)
class Violation:
    """A node that a rule refuses, and why."""

    rule: Rule
    node: str
    words: str


_OPERATORS_MD = "onnx-tensorrt docs/operators.md"
_NVINFER_H = "TensorRT 10.x NvInfer.h"

RULES: tuple[Rule, ...] = (
    Rule("opset", "opset 9 to 19", f"{_OPERATORS_MD} (9 and up); FP16 Q/DQ need 19; newer is held back", graph.opset),
    Rule(
        "ir-version",
        "ONNX IR version at most 9",
        "ONNX 1.14 to 1.16, the parser's own, pair opset 19 with IR 9",
        graph.ir_version,
    ),
    Rule("domain", "only operators of ONNX's default domain", f"{_OPERATORS_MD}: others need a plugin", graph.domains),
    Rule(
        "suppression",
        "no non-maximum suppression but the plugin EfficientNMS_TRT",
        "NonMaxSuppression parses but has no runner in a lean build (seen on TensorRT for RTX 1.7); the plugin is in"
        " TensorRT's own library: plugin/efficientNMSPlugin/README.md",
        graph.suppression,
    ),
    Rule("subgraph", "no If, Loop, Scan", f"{_OPERATORS_MD}: restricted; CNNs need none", graph.subgraphs),
    Rule("operator", "only listed operators", f"{_OPERATORS_MD} and docs/Changelog.md up to 10.3", graph.operators),
    Rule(
        "type",
        "FLOAT, FLOAT16, BFLOAT16, INT8, INT32, INT64, BOOL, UINT8",
        f"{_OPERATORS_MD}; {_NVINFER_H} DataType",
        graph.types,
    ),
    Rule(
        "uint8", "UINT8 only as network input or output, beside a Cast", f"{_NVINFER_H} DataType::kUINT8", graph.uint8
    ),
    Rule(
        "shape", "known rank; only the batch is free", "one optimization profile over the batch is built", graph.shapes
    ),
    Rule("pool-indices", "MaxPool without Indices", _OPERATORS_MD, graph.pool_indices),
    Rule(
        "spatial",
        "convolution and pooling in 1 to 3 dimensions",
        f"{_OPERATORS_MD}; {_NVINFER_H} IConvolutionLayer",
        graph.spatial,
    ),
    Rule("resize", "Resize without antialias, tf_crop_and_resize and aspect policies", _OPERATORS_MD, graph.resize),
    Rule("training", "no operator in training mode", f"{_OPERATORS_MD}: BatchNormalization, Dropout", graph.training),
    Rule("int8-only", "quantized tensors are INT8", f"{_NVINFER_H} IQuantizeLayer; symmetric INT8 only", qdq.int8_only),
    Rule(
        "zero-point", "zero points are constant zeros", f"{_NVINFER_H} IQuantizeLayer: zeroPt of zeros", qdq.zero_point
    ),
    Rule(
        "bias", "no quantized bias", "`Invalid Node … must have type FP8, FP4, Int4, Int8, or UInt8` (parser)", qdq.bias
    ),
    Rule(
        "scale-constant",
        "scales are constants",
        f"{_NVINFER_H} IQuantizeLayer: build-time constant",
        qdq.scale_constant,
    ),
    Rule(
        "scale-positive",
        "scales are finite and above zero",
        f"{_NVINFER_H} IQuantizeLayer: scale > 0",
        qdq.scale_positive,
    ),
    Rule(
        "scale-type",
        "scales are FLOAT or FLOAT16, the type of what is quantized",
        f"{_NVINFER_H}: strongly typed networks",
        qdq.scale_type,
    ),
    Rule(
        "activation-granularity",
        "activations have one scale",
        f"{_NVINFER_H}: activations cannot be quantized per channel",
        qdq.activation_granularity,
    ),
    Rule(
        "weight-axis",
        "weights have one scale, or one per output channel",
        f"{_NVINFER_H} IQuantizeLayer::setAxis",
        qdq.weight_axis,
    ),
    Rule("block", "no blocked quantization of INT8", f"{_NVINFER_H}: blocks are for INT4 only", qdq.block),
)


def check(model: Path) -> list[Violation]:
    """Every violation of the table in an ONNX file, in the table's order."""
    seen = read_graph(model)
    return [Violation(rule, node, words) for rule in RULES for node, words in rule.check(seen)]


def refuse(model: Path) -> str:
    """Say that all rows were passed, or raise.

    Raises:
        EdgeError: a rule refuses: the node, the words, the rule and its source.
    """
    found = check(model)
    if not found:
        return f"{len(RULES)} rules"
    first = found[0]
    more = f"; {len(found) - 1} more" if len(found) > 1 else ""
    raise EdgeError(
        f"the TensorRT 10.3 rules refuse node `{first.node}` of `{model.name}`: {first.words}{more}",
        f"rule `{first.rule.id}`: {first.rule.what} (source: {first.rule.source}); "
        "export or quantize the model so that the node fits",
    )
