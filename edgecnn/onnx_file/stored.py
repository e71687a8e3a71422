"""Are a file's tensors what they say they are? Types, sizes and places are read before any library trusts them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from edgecnn.process.errors import EdgeError
from edgecnn.recipe.io_contract import MOST_SIDE

MOST_ELEMENTS = 2**28  # of one tensor, for one image: 1 GiB as float32
_WINDOWS = frozenset({"pads", "kernel_shape", "dilations", "strides", "output_padding"})
_AGAIN = "export the model again"
_BITS = {
    TensorProto.FLOAT: 32, TensorProto.UINT8: 8, TensorProto.INT8: 8, TensorProto.UINT16: 16, TensorProto.INT16: 16,
    TensorProto.INT32: 32, TensorProto.INT64: 64, TensorProto.BOOL: 8, TensorProto.FLOAT16: 16, TensorProto.DOUBLE: 64,
    TensorProto.UINT32: 32, TensorProto.UINT64: 64, TensorProto.COMPLEX64: 64, TensorProto.COMPLEX128: 128,
    TensorProto.BFLOAT16: 16, TensorProto.FLOAT8E4M3FN: 8, TensorProto.FLOAT8E4M3FNUZ: 8, TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8, TensorProto.UINT4: 4, TensorProto.INT4: 4,
    23: 4, 24: 8, 25: 2, 26: 2,  # FLOAT4E2M1, FLOAT8E8M0, UINT2, INT2: not every onnx has the names
}  # fmt: skip
_FIELDS = {
    TensorProto.FLOAT: ("float_data", 1), TensorProto.COMPLEX64: ("float_data", 2),
    TensorProto.INT64: ("int64_data", 1), TensorProto.DOUBLE: ("double_data", 1),
    TensorProto.COMPLEX128: ("double_data", 2),
    TensorProto.UINT32: ("uint64_data", 1), TensorProto.UINT64: ("uint64_data", 1),
}  # else int32_data  # fmt: skip


def check_tensors(model: ModelProto, path: Path) -> None:
    """Refuse tensors of strings, of unknown types and sizes, with too few or too many bytes, and kept elsewhere.

    Raises:
        EdgeError: always then; it names the tensor.
    """
    for tensor in _tensors(model):
        label = f"tensor `{tensor.name}` of `{path}`" if tensor.name else f"a constant of `{path}`"
        bits = _BITS.get(tensor.data_type)
        if tensor.data_type == TensorProto.STRING:
            raise EdgeError(f"{label} holds strings", "edgecnn takes numbers only: export the model without its labels")
        if bits is None:
            raise EdgeError(f"{label} has the unknown type {tensor.data_type}", _AGAIN)
        if any(size < 0 for size in tensor.dims) or (count := math.prod(tensor.dims)) > MOST_ELEMENTS:
            sizes = " x ".join(map(str, tensor.dims))
            raise EdgeError(f"{label} has the size {sizes}, not one from 0 to {MOST_ELEMENTS:,} elements", _AGAIN)
        size = -(-count * bits // 8)
        if tensor.data_location == TensorProto.EXTERNAL:
            _check_outside(tensor, path, label, size)
        elif (have := _stored(tensor, bits)) != size:
            sizes = " x ".join(map(str, tensor.dims)) or "one number"
            raise EdgeError(f"{label} ({sizes}) holds {have:,} bytes of {size:,}", "the file is damaged: " + _AGAIN)


def _stored(tensor: TensorProto, bits: int) -> int:
    """Bytes that a tensor holds, as its type stores them."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    field, each = _FIELDS.get(tensor.data_type, ("int32_data", 1))
    entries = len(getattr(tensor, field)) // each
    return entries if bits < 8 else entries * bits // 8  # narrower values come packed in bytes


def _check_outside(tensor: TensorProto, path: Path, label: str, size: int) -> None:
    """External data lie beside the model, in a file that has the bytes."""
    told = {entry.key: entry.value for entry in tensor.external_data}
    name = told.get("location", "")
    beside = {path.parent.resolve(), path.resolve().parent}  # a model that is a link has its data beside either
    file = path.parent / name
    try:
        inside = bool(name) and not Path(name).is_absolute() and ".." not in Path(name).parts
        inside = inside and any(file.resolve().is_relative_to(folder) for folder in beside)
        there = inside and file.is_file()
        have = file.stat().st_size if there else 0
    except (OSError, ValueError) as error:  # too long a name, a NUL
        raise EdgeError(f"{label} is kept in a file of no valid name: {error}", _AGAIN) from error
    if not inside:
        raise EdgeError(
            f"{label} is kept in `{name}`, which is not beside the ONNX file",
            "put the data into the ONNX file's folder, or export with the weights inside",
        )
    if not there:
        raise EdgeError(
            f"`{path}` keeps the weights `{tensor.name}` in the file `{name}`, which is missing",
            f"put `{name}` beside the ONNX file, or export with the weights inside",
        )
    try:
        offset, length = int(told.get("offset") or 0), int(told.get("length") or size)
    except ValueError:
        raise EdgeError(f"{label} has an offset or a length that is not a number", _AGAIN) from None
    if offset < 0 or length != size or offset + length > have:
        raise EdgeError(
            f"{label} is {size:,} bytes; its place in `{name}` is {length:,} bytes from {offset:,} on, of {have:,}",
            f"`{name}` belongs to another model or is cut short: {_AGAIN}",
        )


def check_windows(nodes: Iterable[NodeProto], path: Path) -> None:
    """Refuse windows, steps and paddings of convolutions and pools that no image has: they cost hours.

    Raises:
        EdgeError: always then; it names the node.
    """
    for node in nodes:
        for attribute in node.attribute:
            most = max(map(abs, attribute.ints), default=0) if attribute.name in _WINDOWS else 0
            if most > MOST_SIDE:
                label = f"node `{node.name or next(iter(node.output), '')}` ({node.op_type}) of `{path}`"
                raise EdgeError(f"{label} has the `{attribute.name}` {most:,}, more than {MOST_SIDE:,}", _AGAIN)


def check_sizes(inferred: GraphProto, path: Path) -> None:
    """Refuse tensors that no memory holds: what would compute them allocates first and fails then.

    Raises:
        EdgeError: always then; it names the tensor.
    """
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_value")]
        if any(size < 0 for size in sizes) or math.prod(sizes) > MOST_ELEMENTS:
            told = " x ".join(map(str, sizes))
            raise EdgeError(
                f"tensor `{value.name}` of `{path}` would have the size {told}, more than {MOST_ELEMENTS:,} elements",
                "export the model for a smaller input",
            )


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterator[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _of_graph(graph)
