"""A file's inputs and outputs: what a delivered graph must have exactly as the user's file has it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from edgecnn.process.errors import InternalError
from edgecnn.recipe.io_contract import fed_inputs

Dims = tuple[int | str, ...]


@dataclass(frozen=True)
class Ends:
    """Inputs (without initializers that are inputs too) and outputs in order, as the file declares them."""

    inputs: tuple[onnx.ValueInfoProto, ...]
    outputs: tuple[onnx.ValueInfoProto, ...]

    @staticmethod
    def of(model: onnx.ModelProto | Path) -> Ends:
        """Of a model or file."""
        proto = onnx.load(str(model), load_external_data=False) if isinstance(model, Path) else model
        return Ends(tuple(fed_inputs(proto.graph)), tuple(proto.graph.output))

    def declare(self, model: onnx.ModelProto) -> None:
        """Give the model's inputs and outputs the declared types and shapes, in place.

        Raises:
            InternalError: name, order, type or rank is another, or a size that both know.
        """
        found = Ends.of(model)
        for kind, wanted, got in (("input", self.inputs, found.inputs), ("output", self.outputs, found.outputs)):
            if [value.name for value in wanted] != [value.name for value in got]:
                raise _differs(f"the {kind}s {_names(got)}", _names(wanted))
            for want, have in zip(wanted, got, strict=True):
                if not _fits(want.type, have.type):
                    raise _differs(f"{kind} `{have.name}` {_described(have)}", _described(want))
                have.type.CopyFrom(want.type)


def _fits(want: onnx.TypeProto, have: onnx.TypeProto) -> bool:
    """The same kind; and sizes that do not contradict each other."""
    if want.WhichOneof("value") != have.WhichOneof("value"):
        return False
    if not want.HasField("tensor_type"):
        return True
    if want.tensor_type.elem_type != have.tensor_type.elem_type:
        return False
    known, found = _dims(want), _dims(have)
    if known is None or found is None:
        return True
    return len(known) == len(found) and all(
        a == b or isinstance(a, str) or isinstance(b, str) for a, b in zip(known, found, strict=True)
    )


def _dims(kind: onnx.TypeProto) -> Dims | None:
    if not kind.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.tensor_type.shape.dim
    )


def _described(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = _dims(value.type)
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower() if tensor.elem_type else "without a type"
    return f"{kind} {'of unknown rank' if dims is None else '(' + ', '.join(map(str, dims)) + ')'}"


def _names(values: tuple[onnx.ValueInfoProto, ...]) -> str:
    return ", ".join(f"`{value.name}`" for value in values)


def _differs(have: str, want: str) -> InternalError:
    return InternalError(f"the graph that edgecnn made has {have}; the file has {want}")
