"""Calibration feeds of any graph: one array per input, for several inputs and for what is not an image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgecnn.data.archives import Archive, read_array
from edgecnn.process.errors import EdgeError
from edgecnn.store.digests import is_regular

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class NamedArrays:
    """One array per graph input, by name: (samples, *shape of one sample), values as the graph takes them.

    Made by `read_arrays` from an .npz; `source` is its name, for errors.
    """

    arrays: dict[str, np.ndarray]
    source: str = "the arrays"

    def __len__(self) -> int:
        return min((len(array) for array in self.arrays.values()), default=0)

    def feed(self, chosen: list[int], batch: int) -> dict[str, np.ndarray]:
        """Samples `chosen` of every input, filled up to `batch` with the last of them."""
        filled = chosen + [chosen[-1]] * (batch - len(chosen))
        return {name: np.ascontiguousarray(array[filled]) for name, array in self.arrays.items()}

    def digest(self, number: int) -> str:
        """SHA-256 of one sample: names, types, shapes and values of all its arrays."""
        found = hashlib.sha256()
        for name in sorted(self.arrays):
            sample = np.ascontiguousarray(self.arrays[name][number])
            found.update(f"{name} {sample.dtype.str} {sample.shape} ".encode())
            found.update(sample.tobytes())
        return found.hexdigest()

    def values(self) -> int:
        """How many values the largest input of one sample has."""
        return max(int(np.prod(array.shape[1:])) for array in self.arrays.values())

    def shapes(self) -> dict[str, list[int]]:
        """The shape of every array."""
        return {name: list(array.shape) for name, array in self.arrays.items()}

    def fit(self, inputs: list[ir.Value]) -> None:
        """Refuse arrays that are not these graph inputs.

        Raises:
            EdgeError: an input without array, an array without input, another dtype, shape or number of samples, NaN
                or infinity, or inputs that don't share one batch dimension.
        """
        names = [value.name or "" for value in inputs]
        described = ", ".join(f"`{value.name}` {_described(value)}" for value in inputs)
        hint = f"one array per input, samples first: {described}"
        for name in names:
            if name not in self.arrays:
                raise EdgeError(f"{self.source} has no array `{name}`, which the graph takes", hint)
        for name in self.arrays:
            if name not in names:
                raise EdgeError(f"{self.source} has an array `{name}`, which is not an input of the graph", hint)
        if len({len(array) if array.ndim else 0 for array in self.arrays.values()}) != 1:
            counts = ", ".join(f"`{name}` {len(array) if array.ndim else 0}" for name, array in self.arrays.items())
            raise EdgeError(f"the arrays of {self.source} have different numbers of samples: {counts}", hint)
        if len({_batch(value) for value in inputs}) != 1:
            raise EdgeError(
                f"the graph's inputs do not share one batch dimension: {described}",
                "export every input with the batch as its first dimension",
            )
        for value in inputs:
            self._fit_one(value, self.arrays[value.name or ""], hint)

    def _fit_one(self, value: ir.Value, array: np.ndarray, hint: str) -> None:
        wanted = value.dtype.numpy() if value.dtype is not None else array.dtype
        if array.dtype != wanted:
            raise EdgeError(f"array `{value.name}` of {self.source} is {array.dtype}; the graph takes {wanted}", hint)
        shape = list(value.shape or [])
        fits = len(shape) == array.ndim and all(
            not isinstance(want, int) or want == have for want, have in zip(shape[1:], array.shape[1:], strict=True)
        )
        if not fits:
            raise EdgeError(
                f"array `{value.name}` of {self.source} has the shape {array.shape}; "
                f"the graph takes {_described(value)}",
                hint,
            )
        if value.dtype in _FLOATS:
            for number, sample in enumerate(array):
                if not np.isfinite(sample).all():
                    raise EdgeError(
                        f"array `{value.name}` of {self.source} holds NaN or infinity in sample {number}",
                        "correct the file: such a sample would decide every range",
                    )


def read_arrays(path: Path) -> NamedArrays:
    """All arrays of an .npz.

    Raises:
        EdgeError: no such file, or not an .npz of arrays.
    """
    if path.suffix != ".npz" or not is_regular(path):
        raise EdgeError(f"`{path}` is not an .npz file", "numpy.savez(path, **{input name: array, samples first})")
    arrays = {name: read_array(path, name) for name in Archive(path).keys()}  # noqa: SIM118
    if single := [name for name, array in arrays.items() if not array.ndim]:
        raise EdgeError(f"array `{single[0]}` of `{path.name}` is one number", "one array per input, samples first")
    return NamedArrays(arrays, f"`{path.name}`")


def _batch(value: ir.Value) -> int | None:
    """The static first dimension, None where it is free."""
    first = value.shape[0] if value.shape is not None and len(value.shape) else 0
    return first if isinstance(first, int) else None


def _described(value: ir.Value) -> str:
    kind = value.dtype.numpy() if value.dtype is not None else "of unknown type"
    shape = ", ".join(str(size) if isinstance(size, int) else "*" for size in value.shape or [])
    return f"{kind} ({shape})"
