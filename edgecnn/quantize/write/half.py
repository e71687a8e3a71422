"""What FP16 cannot hold, told from weights, scales and calibrated values: these nodes stay FP32 in a typed graph.

FP16 ends at 65504, and below 6.1e-5 its steps no longer shrink with the value. So a node stays FP32 when a tensor it
touches gets beyond the first limit (with headroom: only a few images were looked at), or never reaches the second; a
tensor that is only added to a larger one may be as small as it likes. Which small values decide a result is told in
`half_values`, which whole numbers must stay exact in `half_indices`. Q and DQ follow their data and their readers.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from edgecnn.quantize.calibration.magnitudes import Magnitudes
from edgecnn.quantize.graph.canonical import constant
from edgecnn.quantize.place.placement import QDQ
from edgecnn.quantize.write.half_indices import exact_nodes
from edgecnn.quantize.write.half_values import LARGEST_HALF, demanded, hidden, raised

SMALLEST_HALF = 2.0**-14  # the smallest normal number
HEADROOM = 2.0  # calibration looks at a few images: what comes this near the end counts as beyond it
_SMALLEST_FACTOR = 2.0**-18  # of a constant: below, FP16 is off by more than 1 %
_ZERO = 2.0**-25  # FP16 rounds what is not above it to zero
_FLOAT = ir.DataType.FLOAT
_ADDITIVE = frozenset({"Add", "Sub", "Sum", "Concat", "Max", "Min", "Where"})
# Constants that are added to what is larger: as small as they like.
_ADDED = {
    ("Conv", 2), ("ConvTranspose", 2), ("Gemm", 2), ("BatchNormalization", 2), ("BatchNormalization", 3),
    ("LayerNormalization", 2), ("InstanceNormalization", 2), ("GroupNormalization", 2),
}  # fmt: skip
_SHAPE_INPUTS = {
    ("Reshape", 1), ("Expand", 1), ("Resize", 2), ("Resize", 3), ("Slice", 1), ("Slice", 2), ("Slice", 3), ("Slice", 4),
    ("Pad", 1), ("Tile", 1), ("ConstantOfShape", 0), ("Range", 0), ("Range", 1), ("Range", 2), ("Unsqueeze", 1),
    ("Squeeze", 1), ("ReduceMean", 1), ("Split", 1),
}  # fmt: skip
# Inputs that ONNX defines as float32 whatever the data's type.
FLOAT_ONLY = {("Resize", 1), ("Resize", 2), ("Upsample", 1)}


def wide_nodes(graph: ir.Graph, measured: Magnitudes, also: dict[str, str]) -> dict[str, str]:
    """Nodes that stay FP32, by name, with why ('' for shape arithmetic and Q/DQ, which are not islands).

    Args:
        graph: canonical graph, with or without Q/DQ.
        measured: what a few images showed, by the names of the graph's tensors.
        also: further nodes that stay FP32, with why.
    """
    wide = dict(also)
    seen = _with_dequantized(graph, raised(graph, measured.largest))
    captured = _captured(graph)
    for node in graph:
        name = node.name or ""
        if node.op_type in QDQ:
            continue
        if _has_subgraph(node):
            wide[name] = "holds a subgraph"
        elif not _takes_half(node):
            wide[name] = f"ONNX defines {node.op_type} without FP16"
        elif any(value in captured and value.dtype == _FLOAT for value in node.outputs):
            wide[name] = "a subgraph reads its output"
        elif why := _why_wide(node, seen) or _why_hidden(node, measured):
            wide[name] = why
    for more in (exact_nodes(graph, measured.largest), demanded(graph, measured.smallest)):
        wide |= {name: why for name, why in more.items() if name not in wide}
    _shape_arithmetic(graph, wide)
    for node in graph:
        if node.op_type in QDQ and _stays_float(node, wide, seen):
            wide[node.name or ""] = ""
    return wide


def _why_wide(node: ir.Node, seen: dict[str, float]) -> str:
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype != _FLOAT or (node.op_type, index) in FLOAT_ONLY:
            continue
        array = constant(value)
        why = _constant(node, index, value, array, seen) if array is not None else _tensor(node, value, seen)
        if why:
            return why
    for value in node.outputs:
        if value.dtype == _FLOAT and (why := _tensor(node, value, seen)):
            return why
    return ""


def _why_hidden(node: ir.Node, measured: Magnitudes) -> str:
    """What the operator computes on its way, which FP16 does not hold either."""
    if not node.outputs or node.outputs[0].dtype != _FLOAT:
        return ""
    return hidden(node, measured)


def _constant(node: ir.Node, index: int, value: ir.Value, array: np.ndarray, seen: dict[str, float]) -> str:
    if node.op_type == "Clip" or not array.size:
        return ""  # a bound beyond FP16 is no bound
    finite = array[np.isfinite(array)]
    bound = float(np.abs(finite).max()) if finite.size else 0.0
    if bound > LARGEST_HALF:
        return f"`{value.name}` reaches {bound:.3g}, beyond FP16's {LARGEST_HALF:g}"
    if bound == 0.0 or (node.op_type, index) in _ADDED or all(_drowned(output, seen) for output in node.outputs):
        return ""
    least = _ZERO if node.op_type in _ADDITIVE else _SMALLEST_FACTOR
    return f"`{value.name}` is at most {bound:.3g}, too small for FP16" if bound <= least else ""


def _tensor(node: ir.Node, value: ir.Value, seen: dict[str, float]) -> str:
    bound = seen.get(value.name or "", 1.0)
    if np.isinf(bound):
        return ""
    if bound > LARGEST_HALF:
        return f"`{value.name}` reaches {bound:.3g}, beyond FP16's {LARGEST_HALF:g}"
    if bound * HEADROOM > LARGEST_HALF:
        return f"`{value.name}` reaches {bound:.3g}, too near FP16's {LARGEST_HALF:g}"
    if _tiny(bound) and not _drowned(value, seen):
        return f"`{value.name}` is at most {bound:.3g}, too small for FP16"
    return ""


def _tiny(bound: float) -> bool:
    return 0.0 < bound < SMALLEST_HALF


def _drowned(value: ir.Value, seen: dict[str, float]) -> bool:
    """Tiny, and only ever put beside larger values: its own precision is lost there anyway."""
    if not _tiny(seen.get(value.name or "", 1.0)) or value.is_graph_output():
        return False
    readers = [use[0] for use in value.uses()]
    return bool(readers) and all(
        reader.op_type in _ADDITIVE and not _tiny(seen.get(reader.outputs[0].name or "", 1.0)) for reader in readers
    )


def _with_dequantized(graph: ir.Graph, bounds: dict[str, float]) -> dict[str, float]:
    """The bounds, and those of what DequantizeLinear makes."""
    seen = dict(bounds)
    for node in graph:
        if node.op_type != "DequantizeLinear":
            continue
        scale, integers = constant(node.inputs[1]), constant(node.inputs[0])
        if scale is None:
            continue
        most = float(np.abs(scale).max()) * 128.0
        if integers is not None:
            most = float(np.abs(scale).max()) * float(np.abs(integers.astype(np.float32)).max(initial=0.0))
        elif (producer := node.inputs[0].producer() if node.inputs[0] is not None else None) is not None:
            source = producer.inputs[0]
            most = min(most, bounds.get(source.name or "", most)) if source is not None else most
        seen[node.outputs[0].name or ""] = most
    return seen


def _stays_float(node: ir.Node, wide: dict[str, str], seen: dict[str, float]) -> bool:
    """A Q or DQ whose scale FP16 does not hold; a Q of an FP32 tensor; a DQ whose every reader is FP32."""
    scale = constant(node.inputs[1])
    if scale is not None and scale.dtype == np.float32 and not exact(scale):
        return True
    if node.op_type == "QuantizeLinear":
        value = node.inputs[0]
        producer = value.producer() if value is not None else None
        return value is not None and (
            bool(_tensor(node, value, seen)) or (producer is not None and _ends(producer, wide))
        )
    readers = [use[0] for use in node.outputs[0].uses()]
    return bool(readers) and all(reader.name in wide for reader in readers)


def _ends(producer: ir.Node, wide: dict[str, str]) -> bool:
    """An FP32 node hands its output on as FP32 to a Q: no cast between."""
    return producer.name in wide


def exact(scale: np.ndarray) -> bool:
    """FP16 holds every one of these float32 numbers as it is."""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(scale.astype(np.float16).astype(np.float32), scale))


def _shape_arithmetic(graph: ir.Graph, wide: dict[str, str]) -> None:
    waiting = [node.inputs[index] for node in graph for index in range(len(node.inputs))
               if (node.op_type, index) in _SHAPE_INPUTS]  # fmt: skip
    while waiting:
        value = waiting.pop()
        producer = value.producer() if value is not None else None
        if producer is not None and producer.name not in wide and producer.op_type != "Shape":
            wide[producer.name or ""] = ""
            waiting.extend(producer.inputs)


def _has_subgraph(node: ir.Node) -> bool:
    kinds = {attribute.type for attribute in node.attributes.values()}
    return bool(kinds & {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})


def _captured(graph: ir.Graph) -> set[ir.Value]:
    """Tensors of the main graph that subgraphs read: their types are written there too."""
    outer = {value for node in graph for value in node.outputs}
    return {
        value
        for node in ir.traversal.RecursiveGraphIterator(graph)
        if node.graph is not graph
        for value in node.inputs
        if value is not None and value in outer
    }


def _takes_half(node: ir.Node) -> bool:
    """ONNX allows FP16 wherever this node has FP32 data; operators of other domains are not known."""
    floats = [index for index, value in enumerate(node.inputs) if value is not None and value.dtype == _FLOAT]
    if not floats:
        return True
    if node.domain not in ("", "ai.onnx"):
        return False
    version = node.graph.opset_imports.get("", 19) if isinstance(node.graph, ir.Graph) else 19
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return True
    for index in floats:
        if (node.op_type, index) in FLOAT_ONLY:
            continue
        formal = schema.inputs[min(index, len(schema.inputs) - 1)]
        if "tensor(float16)" not in formal.types:
            return False
    return True
