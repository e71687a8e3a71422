"""A candidate as bytes: what lets a killed climb continue, and what a rung's key is made of.

One .npz file without pickles: the float graph (unless it is the canonical one), the chosen integers and biases, and a
JSON with the rest. The same candidate gives the same digest, whatever made it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from pydantic import TypeAdapter

from edgecnn.data.archives import DAMAGED
from edgecnn.process.disk import fsync
from edgecnn.quantize.ladder.candidate import Candidate
from edgecnn.quantize.place.placement import Placement
from edgecnn.quantize.write.rewrite import Overrides
from edgecnn.quantize.write.weights import IntegerWeight

Json = dict[str, Any]


def digest(candidate: Candidate) -> str:
    """SHA-256 of everything that decides the INT8 model; how it came about (rungs, notes, methods) is left out."""
    content = hashlib.sha256(model_bytes(candidate.model))
    content.update(_placements().dump_json(candidate.placement))
    content.update(json.dumps(sorted(candidate.ranges.items())).encode())
    for name, array in sorted(_arrays(candidate.overrides).items()):
        content.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return content.hexdigest()


def write(path: Path, candidate: Candidate, model: ir.Model, told: Json) -> None:
    """Write a candidate and what is told about it, in one step and durably: a reader sees all of it or nothing.

    Args:
        model: the canonical graph; a candidate made from it is stored without its graph.
        told: JSON-ready.
    """
    document = {
        "told": told,
        "own_model": candidate.model is not model,
        "placement": _placements().dump_python(candidate.placement, mode="json"),
        "ranges": candidate.ranges,
        "methods": candidate.methods,
        "rungs": candidate.rungs,
        "notes": candidate.notes,
        "axes": {name: weight.axis for name, weight in candidate.overrides.weights.items()},
    }
    arrays = _arrays(candidate.overrides)
    arrays["document"] = np.frombuffer(json.dumps(document).encode(), np.uint8)
    if document["own_model"]:
        arrays["model"] = np.frombuffer(model_bytes(candidate.model), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # the stub takes the names for allow_pickle
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(buffer.getvalue())
    fsync(temporary)
    os.replace(temporary, path)
    fsync(path.parent)


def read(path: Path, model: ir.Model) -> tuple[Candidate, Json] | None:
    """The inverse of `write`; None where there is no file, or one that is not whole."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        document = json.loads(arrays.pop("document").tobytes())
        own = arrays.pop("model", None)
        if own is not None:
            model = ir.serde.deserialize_model(onnx.ModelProto.FromString(own.tobytes()))
        weights = {
            name: IntegerWeight(arrays[f"values {name}"], arrays[f"scales {name}"], axis)
            for name, axis in document["axes"].items()
        }
        biases = {name.removeprefix("bias "): array for name, array in arrays.items() if name.startswith("bias ")}
        candidate = Candidate(
            model=model,
            placement=_placements().validate_python(document["placement"]),
            ranges={name: (low, high) for name, (low, high) in document["ranges"].items()},
            methods=document["methods"],
            overrides=Overrides(weights, biases),
            rungs=tuple(document["rungs"]),
            notes=tuple(document["notes"]),
        )
        return candidate, document["told"]
    except (*DAMAGED, OSError, AttributeError, IndexError, DecodeError):
        return None


@cache
def _placements() -> TypeAdapter[Placement]:
    return TypeAdapter(Placement)


def model_bytes(model: ir.Model) -> bytes:
    """The graph as bytes, the same for the same graph."""
    return bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))


def _arrays(overrides: Overrides) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, weight in overrides.weights.items():
        found[f"values {name}"], found[f"scales {name}"] = weight.values, weight.scales
    found |= {f"bias {name}": bias for name, bias in overrides.biases.items()}
    return found
