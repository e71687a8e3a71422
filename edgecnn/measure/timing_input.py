"""What a timed model is fed, and when enough pairs were timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.backends import Arrays, TensorInfo
from edgecnn.process.errors import EdgeError


def feeds(inputs: tuple[TensorInfo, ...], batch: int, file: Path) -> Arrays:
    """Random arrays for these inputs, the same every time: uint8 0..255, floats 0..1, other integers 0 and 1.

    Raises:
        EdgeError: a free dimension besides the batch, or a fixed batch other than `batch`.
    """
    random = np.random.default_rng(0)
    found = {}
    for one in inputs:
        if None in one.shape[1:]:
            raise EdgeError(
                f"`{file}` cannot be timed: input `{one.name}` has free dimensions {one.shape}",
                "for an image give its size, --input size=224; otherwise export the model with fixed sizes",
            )
        fixed = one.shape[0] if one.shape else None
        if fixed not in (None, batch):
            raise EdgeError(
                f"`{file}` has a fixed batch of {fixed}, the bench asks {batch}", f"set bench.batch={fixed}"
            )
        shape = (batch, *(size or 1 for size in one.shape[1:])) if one.shape else ()
        kind = np.dtype(one.dtype)
        if kind == np.uint8:
            found[one.name] = random.integers(0, 256, shape, np.uint8)
        elif kind.kind == "f":
            found[one.name] = random.random(shape).astype(kind)
        else:
            found[one.name] = random.integers(0, 2, shape).astype(kind)
    return found


def undecided_by(rule: str) -> Callable[[Any, Any], bool]:
    """When more pairs are wanted.

    `speed`: it isn't clear which of the two is faster, or by more than the margins. `regression`: neither slower nor
    equal is shown.
    """
    from edgecnn.measure.latency_rule import latency_state
    from edgecnn.measure.stats import pair_ratio

    def regression(first_ms: Any, second_ms: Any) -> bool:
        return latency_state(pair_ratio(first_ms, second_ms), len(first_ms)) == "not-enough-evidence"

    def speed(first_ms: Any, second_ms: Any) -> bool:
        ratio = pair_ratio(first_ms, second_ms)
        undecided = latency_state(ratio, len(first_ms)) == "not-enough-evidence"
        return undecided or ratio.lower <= 1.0 <= ratio.upper

    match rule:
        case "speed":
            return speed
        case "regression":
            return regression
        case other:
            raise EdgeError(f"no timing rule `{other}`")
