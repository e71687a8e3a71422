"""What a foreign ONNX file and its user say of the input beside the graph: an exporter's metadata, and a fixed size."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecnn.errors import EdgeError
from edgecnn.io_contract import MOST_SIDE

if TYPE_CHECKING:
    import onnx

_ULTRALYTICS = frozenset({"task", "stride", "imgsz", "names"})
_LONGEST = 200  # characters of a size in metadata


def told_by_exporter(model: Path) -> dict[str, str]:
    """What the metadata of an Ultralytics export tell, as `--input` would: RGB in 0..1, its size, how images fit.

    Empty for other files. A size that isn't one possible side or a pair of them is left out.
    """
    found = {prop.key: prop.value for prop in _read(model).metadata_props}
    if not found.keys() >= _ULTRALYTICS:
        return {}
    told = {
        "range": "1",
        "color": "rgb",
        "layout": "nchw",
        "fit": "crop" if found["task"] == "classify" else "letterbox",
    }
    try:
        size = ast.literal_eval(found["imgsz"][:_LONGEST])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return told
    sides = [size] if isinstance(size, int) else size
    if (
        isinstance(sides, (list, tuple))
        and len(sides) in (1, 2)
        and all(type(side) is int and 0 < side <= MOST_SIDE for side in sides)
    ):
        told["size"] = "x".join(str(side) for side in sides)
    return told


def _read(model: Path) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.load(str(model), load_external_data=False)
    except Exception as error:  # protobuf raises its own kinds
        raise EdgeError(f"`{model}` is not a readable ONNX file: {error}", "export the model again") from error


def free_sides(model: Path) -> dict[str, list[int | None]]:
    """Shapes of the inputs that have a free dimension besides the batch; None where it is free."""
    graph = _read(model).graph
    weights = {tensor.name for tensor in graph.initializer}
    shapes = {
        value.name: [dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim]
        for value in graph.input
        if value.name not in weights
    }
    return {name: shape for name, shape in shapes.items() if None in shape[1:]}


def fixed(model: Path, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> Path:
    """A copy of the file under `folder` whose inputs have these sizes, the batch left as it is; outputs follow.

    Args:
        shapes: by input name, the batch in front.

    Raises:
        EdgeError: the graph does not work at that size.
    """
    import onnx

    loaded = onnx.load(str(model))
    names: dict[str, int] = {}
    for value in loaded.graph.input:
        if value.name not in shapes:
            continue
        for dim, size in list(zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True))[1:]:
            if dim.dim_param:
                names[dim.dim_param] = size
            dim.dim_value = size
    for value in loaded.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_value = names[dim.dim_param]
    del loaded.graph.value_info[:]
    try:
        onnx.shape_inference.infer_shapes(loaded, strict_mode=True)
        path = folder / model.name
        onnx.save(loaded, str(path))
    except Exception as error:
        told = ", ".join(f"`{name}` {' x '.join(map(str, shape[1:]))}" for name, shape in shapes.items())
        raise EdgeError(
            f"`{model}` does not work with {told}: {str(error).strip().splitlines()[0]}", "give a size that it takes"
        ) from error
    return path


def image_shapes(model: Path, size: tuple[int, int] | None, layout: str) -> dict[str, tuple[int, ...]]:
    """Shapes for the image inputs whose height and width are free, at a size (height, width); the batch is 1.

    Raises:
        EdgeError: such an input, and no size is told; or its layout is not clear.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in free_sides(model).items():
        if size is None:
            raise EdgeError(f"`{model}` takes any image size at `{name}`, so one must be told", "as --input size=224")
        where = layout.lower() or ("nhwc" if len(shape) == 4 and shape[3] in (1, 3) else "nchw")
        if len(shape) != 4 or where not in ("nchw", "nhwc") or shape[1 if where == "nchw" else 3] is None:
            raise EdgeError(
                f"input `{name}` of `{model}` is {shape}, not an image batch", "export it with its sizes fixed"
            )
        sides = shape[2:] if where == "nchw" else shape[1:3]
        if any(side not in (None, wish) for side, wish in zip(sides, size, strict=True)):
            raise EdgeError(f"--input size={size[0]}x{size[1]}, but `{name}` of `{model}` is {shape}", "give its size")
        channels: Any = shape[1] if where == "nchw" else shape[3]
        found[name] = (1, channels, *size) if where == "nchw" else (1, *size, channels)
    return found
