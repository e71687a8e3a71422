"""The rows of the TensorRT 10.3 table about operators, types and shapes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto

from edgecnn.backends.tensorrt.graph import Graph, attribute, label, type_name
from edgecnn.backends.tensorrt.qdq_rules import is_qdq

OPSET_RANGE = (9, 19)
IR_VERSION = 9

# onnx-tensorrt docs/operators.md as of TensorRT 8.5, every row marked Y, plus what docs/Changelog.md adds up to 10.3
# (LayerNormalization, GroupNormalization, IsInf in 8.6; Hardmax in 9.2; DeformConv in 10.1). Left out: what has rows of
# its own below. Operators that other lists name for 10.x (CastLike, Gelu, Mish) are left out until seen on a board.
OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip Concat
    Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div Dropout
    Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gemm GlobalAveragePool
    GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization GRU HardSigmoid HardSwish Hardmax
    Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
    LpNormalization LpPool LRN LSTM MatMul Max MaxPool Mean MeanVarianceNormalization Min Mod Mul Neg NonZero Not OneHot
    Or Pad
    PRelu Pow QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
    ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
    Reshape Resize ReverseSequence RNN RoiAlign Round ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh
    Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905  # a list of quoted names would hide the names
)
PLUGIN = "EfficientNMS_TRT"
# What its creator reads (NVIDIA/TensorRT plugin/efficientNMSPlugin); `class_agnostic` may be left out.
PLUGIN_ATTRIBUTES = {
    "plugin_version": AttributeProto.STRING, "score_threshold": AttributeProto.FLOAT,
    "iou_threshold": AttributeProto.FLOAT, "max_output_boxes": AttributeProto.INT,
    "background_class": AttributeProto.INT, "score_activation": AttributeProto.INT, "box_coding": AttributeProto.INT,
}  # fmt: skip
SUPPRESSION = frozenset({"NonMaxSuppression", PLUGIN, "EfficientNMS_ONNX_TRT", "BatchedNMSDynamic_TRT"})
SUBGRAPHS = frozenset({"If", "Loop", "Scan", "SequenceMap"})
TYPES = frozenset(
    {
        TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.BOOL,
        TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64,
    }
)  # fmt: skip
RESIZE_COORDINATES = frozenset(
    {"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"}
)

Finding = tuple[str, str]  # node, words


def opset(graph: Graph) -> Iterator[Finding]:
    """The default domain's version lies in OPSET_RANGE."""
    low, high = OPSET_RANGE
    if low <= graph.opset <= high:
        return
    yield _newest(graph, high), f"the graph is of opset {graph.opset}; {low} to {high} is accepted"


def _newest(graph: Graph, opset: int) -> str:
    """The first node whose operator changed after `opset`, else the first node."""
    for node in graph.nodes:
        if node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type):
            try:
                since = onnx.defs.get_schema(node.op_type, graph.opset, "").since_version
            except onnx.defs.SchemaError:
                continue
            if since > opset:
                return label(node)
    return label(graph.nodes[0]) if graph.nodes else graph.model.graph.name


def ir_version(graph: Graph) -> Iterator[Finding]:
    """The file's IR version is at most IR_VERSION."""
    if graph.model.ir_version > IR_VERSION:
        first = label(graph.nodes[0]) if graph.nodes else graph.model.graph.name
        yield first, f"the file is of ONNX IR version {graph.model.ir_version}; up to {IR_VERSION} is accepted"


def domains(graph: Graph) -> Iterator[Finding]:
    """No operator of another domain but the one plugin."""
    for node in graph.nodes:
        if node.op_type != PLUGIN and node.domain not in ("", "ai.onnx"):
            yield label(node), f"operator {node.op_type} is of domain `{node.domain}`"


def suppression(graph: Graph) -> Iterator[Finding]:
    """No non-maximum suppression but the plugin, with all that its creator reads."""
    for node in graph.nodes:
        if node.op_type == PLUGIN:
            yield from ((label(node), f"{PLUGIN} {fault}") for fault in _plugin_faults(graph, node))
        elif node.op_type in SUPPRESSION:
            yield label(node), f"{node.op_type} needs a plugin or data-dependent shapes that the engine may not have"


def _plugin_faults(graph: Graph, node: NodeProto) -> Iterator[str]:
    """What keeps the node from being the plugin of version 1: boxes (N, A, 4) and scores (N, A, C) → four outputs."""
    inputs, outputs = [name for name in node.input if name], [name for name in node.output if name]
    if (len(inputs), len(outputs)) != (2, 4):
        yield f"has {len(inputs)} inputs and {len(outputs)} outputs; boxes and scores give four"
    given = {one.name: one.type for one in node.attribute}
    for name, kind in PLUGIN_ATTRIBUTES.items():
        if given.get(name) != kind:
            yield f"has no {AttributeProto.AttributeType.Name(kind)} attribute `{name}`"
    if (version := attribute(node, "plugin_version", b"1")) != b"1":
        yield f"is of version {version!r}; TensorRT has version 1"
    for name in inputs:
        if graph.types.get(name) not in (TensorProto.FLOAT, TensorProto.FLOAT16, None):
            yield f"reads `{name}` of {type_name(graph.types[name])}; it takes FLOAT and FLOAT16"


def subgraphs(graph: Graph) -> Iterator[Finding]:
    """No control flow."""
    for node in graph.nodes:
        if node.op_type in SUBGRAPHS:
            yield label(node), f"{node.op_type} holds a subgraph, which these rules do not look into"


def operators(graph: Graph) -> Iterator[Finding]:
    """Every operator is in OPERATORS."""
    own_rows = SUPPRESSION | SUBGRAPHS
    for node in graph.nodes:
        if node.domain in ("", "ai.onnx") and node.op_type not in OPERATORS | own_rows:
            yield label(node), f"operator {node.op_type} is not in the list of supported operators"


def types(graph: Graph) -> Iterator[Finding]:
    """Every tensor's type is in TYPES."""
    for node in graph.nodes:
        for name in (*node.input, *node.output):
            kind = graph.types.get(name)
            # 8-bit types beside INT8 belong to the Q/DQ rows, which say more.
            if kind is not None and kind not in TYPES and not is_qdq(node):
                yield label(node), f"tensor `{name}` is {type_name(kind)}"


def uint8(graph: Graph) -> Iterator[Finding]:
    """A UINT8 tensor is a network input that a Cast reads, or an output that a Cast makes."""
    inputs, outputs = ({one.name for one in ends} for ends in (graph.model.graph.input, graph.model.graph.output))
    for node in graph.nodes:
        if is_qdq(node):
            continue
        for name in node.input:
            if graph.types.get(name) == TensorProto.UINT8 and not (name in inputs and node.op_type == "Cast"):
                yield label(node), f"{node.op_type} reads the UINT8 tensor `{name}`"
        for name in node.output:
            if graph.types.get(name) == TensorProto.UINT8 and not (name in outputs and node.op_type == "Cast"):
                yield label(node), f"{node.op_type} makes the UINT8 tensor `{name}`"


def shapes(graph: Graph) -> Iterator[Finding]:
    """Inputs have a known rank, and only their batch is free."""
    for one in graph.model.graph.input:
        if one.name in graph.constants:
            continue
        readers = graph.consumers.get(one.name) or [NodeProto(name=one.name)]
        tensor = one.type.tensor_type
        if not tensor.HasField("shape"):
            yield label(readers[0]), f"input `{one.name}` has no known rank"
        elif any(dim.dim_value <= 0 for dim in tensor.shape.dim[1:]):
            yield label(readers[0]), f"input `{one.name}` has a free dimension besides the batch"


def pool_indices(graph: Graph) -> Iterator[Finding]:
    """MaxPool gives no Indices."""
    for node in graph.nodes:
        if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
            yield label(node), "the Indices output of MaxPool is not supported"


def spatial(graph: Graph) -> Iterator[Finding]:
    """Convolution and pooling have 1 to 3 spatial dimensions."""
    for node in graph.nodes:
        if node.op_type in ("Conv", "ConvTranspose", "MaxPool", "AveragePool"):
            kernel = attribute(node, "kernel_shape")
            weight = graph.value(node.input[1]) if len(node.input) > 1 else None
            count = len(kernel) if kernel else (weight.ndim - 2 if weight is not None else 2)
            if count > 3:
                yield label(node), f"{node.op_type} has {count} spatial dimensions; 1 to 3 are supported"


def resize(graph: Graph) -> Iterator[Finding]:
    """Resize in the supported modes."""
    for node in graph.nodes:
        if node.op_type != "Resize":
            continue
        coordinates = attribute(node, "coordinate_transformation_mode", b"half_pixel").decode()
        policy = attribute(node, "keep_aspect_ratio_policy", b"stretch").decode()
        if coordinates not in RESIZE_COORDINATES:
            yield label(node), f"Resize with coordinate_transformation_mode `{coordinates}`"
        if attribute(node, "antialias", 0):
            yield label(node), "Resize with antialias"
        if policy != "stretch":
            yield label(node), f"Resize with keep_aspect_ratio_policy `{policy}`"


def training(graph: Graph) -> Iterator[Finding]:
    """Nothing is in training mode."""
    for node in graph.nodes:
        mode = (
            graph.value(node.input[2]) if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] else None
        )
        if attribute(node, "training_mode", 0) or (mode is not None and bool(np.any(mode))):
            yield label(node), f"{node.op_type} is in training mode"
