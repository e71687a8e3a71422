"""Attributes and constant inputs of an ONNX node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgecnn.quantize.graph.canonical import constant


def has(node: ir.Node, index: int) -> bool:
    """Whether the node has its input `index`."""
    return len(node.inputs) > index and node.inputs[index] is not None


def constant_of(node: ir.Node, index: int) -> np.ndarray:
    """The constant that is its input `index`."""
    array = constant(node.inputs[index])
    assert array is not None
    return array


def bound_of(node: ir.Node, index: int) -> float | None:
    """A Clip's bound, or None."""
    return float(constant_of(node, index).reshape(-1)[0]) if has(node, index) else None


def axes_of(node: ir.Node, rank: int) -> list[int]:
    """Axes, of an input since opset 13 or 18, of an attribute before; from 0 on where the rank is known."""
    listed = [int(n) for n in constant_of(node, 1)] if has(node, 1) else list(node.attributes.get_ints("axes", []))
    return [axis % rank if rank else axis for axis in listed]


def even(pads: Sequence[int]) -> bool:
    """Whether padding is the same before and after."""
    half = len(pads) // 2
    return pads[:half] == pads[half:]
