"""Adaptive pooling: which of it an ONNX graph can hold, asked before a network is trained and when it is exported."""

from __future__ import annotations

from typing import Any

from torch.nn import functional
from torch.overrides import TorchFunctionMode

from edgecnn.process.errors import EdgeError

GRIDS = (functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d, functional.adaptive_max_pool2d_with_indices)


def window(side: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the pooling window that brings a map of `side` to `grid`.

    Raises:
        EdgeError: windows of several sizes would be needed, and no ONNX operator has those.
    """
    height, width = side
    rows, columns = grid
    if height % rows or width % columns:
        raise EdgeError(
            f"the network pools {height}x{width} to {rows}x{columns}, which no ONNX operator does",
            f"choose `image_size` so that the map before pooling is a multiple of {rows}x{columns}",
        )
    return height // rows, width // columns


class Pools(TorchFunctionMode):
    """While it lasts, adaptive pooling that can't be exported raises the EdgeError of `window`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every call of a torch function comes through here."""
        given = kwargs or {}
        if func in GRIDS:
            images, grid = (*args, *(given[name] for name in ("input", "output_size") if name in given))[:2]
            rows, columns = (grid, grid) if isinstance(grid, int) else grid
            height, width = images.shape[-2:]
            window((height, width), (rows or height, columns or width))
        return func(*args, **given)
