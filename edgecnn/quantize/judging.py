"""What the judges of classifiers and detectors share: which images decide, by whose kernels, and each drop once."""

from __future__ import annotations

import hashlib

import onnx_ir as ir

from edgecnn.device import Scheme
from edgecnn.quantize.candidate import Candidate, Drop


class Judging:
    """A judge in the making: it sets these, and gives `_lost`.

    Attributes:
        numbers: of the labelled images that decide.
        kernels: name of the CPU whose own INT8 kernels run candidates; '' for the float simulation.
        known: drops by the digest of the quantized graph.
    """

    scheme: Scheme
    kernels: str
    numbers: list[int]
    known: dict[str, Drop]

    @property
    def images(self) -> int:
        """How many labelled images decide."""
        return len(self.numbers)

    @property
    def how(self) -> str:
        """What computes a candidate's answers."""
        return f"INT8 kernels of {self.kernels}" if self.kernels else "float simulation"

    def drop(self, candidate: Candidate) -> Drop:
        """What INT8 loses against the float model, with one-sided 95 % bounds; the same graph is run once."""
        quantized = candidate.quantized(self.scheme)
        content = ir.serde.serialize_model(quantized).SerializeToString(deterministic=True)
        key = hashlib.sha256(content).hexdigest()
        if key not in self.known:
            self.known[key] = self._lost(quantized)
        return self.known[key]

    def _lost(self, quantized: ir.Model) -> Drop:
        raise NotImplementedError
