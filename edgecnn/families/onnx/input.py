"""What a foreign ONNX file and its user say of its input: `--input`, an exporter's metadata, and a fixed size."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from edgecnn.onnx_file import check_readable
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.io_contract import MOST_SIDE, InputContract, IoContract, OutputContract, fed_inputs, read_contract
from edgecnn.recipe.load import nearest_hint
from edgecnn.recipe.recipe import Normalization

if TYPE_CHECKING:
    import onnx

KEYS = ("mean", "std", "layout", "size", "range", "color", "fit")
FITS = ("letterbox", "crop", "stretch")
_ULTRALYTICS = frozenset({"task", "stride", "imgsz", "names"})
_LONGEST = 200  # characters of a size in metadata
_LONGEST_NAMES = 1_000_000  # of the classes' names


def contract_of(model: Path, text: str, fit: str = "crop", size: tuple[int, int] | None = None) -> IoContract:
    """The model's contract: from its own metadata, else from what `--input`, its exporter and its graph tell.

    Args:
        fit: how images are brought to size where neither says it.
        size: (height, width) of a graph that leaves them free, where neither says it.

    Raises:
        EdgeError: told twice, not told, or not what the graph has.
    """
    found = read_contract(model)
    if found and text:
        raise EdgeError(f"`{model}` carries its own preprocessing, and --input gives another", "leave --input out")
    if found:
        return found
    exported = told_by_exporter(model)
    if not free_sides(model):
        exported.pop("size", None)  # the graph itself says it
    elif size is not None:
        exported = {"size": f"{size[0]}x{size[1]}", **exported}
    return _inferred(model, {"fit": fit, **exported, **_parse(text)})


def _parse(text: str) -> dict[str, str]:
    """`mean=0.5,0.5,0.5,std=0.2,layout=nchw,letterbox` → values by key; a bare number continues the key before it."""
    values: dict[str, str] = {}
    last = ""
    for part in (p.strip() for p in text.split(",") if p.strip()):
        key, separator, value = part.partition("=")
        if separator:
            last = key.strip().lower()
            if last not in KEYS:
                raise EdgeError(f"--input has no `{last}`", nearest_hint(last, [*KEYS, *FITS]))
            if last in values:
                raise EdgeError(f"--input gives `{last}` twice", "keep one")
            values[last] = value.strip()
        elif part.lower() in FITS:
            if "fit" in values:
                raise EdgeError(f"--input gives `{values['fit']}` and `{part}`", "keep one")
            values["fit"] = part.lower()
        elif last in ("mean", "std"):
            values[last] += f",{part}"
        else:
            raise EdgeError(
                f"--input: `{part}` is neither key=value nor one of {', '.join(FITS)}",
                "for example --input mean=0.5,std=0.5,letterbox",
            )
    if (layout := values.get("layout", "nchw")).lower() not in ("nchw", "nhwc"):
        raise EdgeError(f"--input: no layout `{layout}`", "write layout=nchw or layout=nhwc")
    return values


def _numbers(values: dict[str, str], key: str, channels: int) -> tuple[float, ...] | None:
    if key not in values:
        return None
    try:
        numbers = tuple(float(part) for part in values[key].split(","))
        if not all(map(math.isfinite, numbers)):
            raise ValueError(values[key])
    except ValueError:
        raise EdgeError(
            f"--input: `{key}={values[key]}` is not a list of numbers", "for example --input mean=0.5,std=0.5"
        ) from None
    if len(numbers) not in (1, channels):
        raise EdgeError(
            f"--input: `{key}` has {len(numbers)} numbers, the model's input {channels} channels",
            "give one number, or one for each channel",
        )
    return numbers if len(numbers) == channels else numbers * channels


def _inferred(model: Path, told: dict[str, str]) -> IoContract:
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    inputs = fed_inputs(graph)
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise EdgeError(
            f"`{model}` has {len(inputs)} inputs ({names}); one image input is needed",
            "`edgecnn quantize --data feeds.npz` takes one array per input",
        )
    kind = inputs[0].type.tensor_type
    shape = [dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim]
    if len(shape) != 4:
        raise EdgeError(
            f"input `{inputs[0].name}` of `{model}` has {len(shape)} dimensions; an image batch has 4",
            "`edgecnn quantize --data feeds.npz` takes one array per input",
        )
    kinds = onnx.TensorProto
    dtypes = {kinds.UINT8: "uint8", kinds.FLOAT16: "float16", kinds.FLOAT: "float32"}
    if kind.elem_type not in dtypes:
        name = onnx.TensorProto.DataType.Name(kind.elem_type)
        raise EdgeError(
            f"input `{inputs[0].name}` of `{model}` is {name}; images are fed as uint8, float16 or float32",
            "give --data an .npz with one array per input, samples first, or export again",
        )
    layout = told.get("layout", "").upper() or _layout(shape)
    if layout not in ("NCHW", "NHWC"):
        raise EdgeError(
            f"the layout of the input `{inputs[0].name}` {shape} is not clear",
            "give it: --input layout=nchw or layout=nhwc",
        )
    channels, sides = (shape[1], shape[2:]) if layout == "NCHW" else (shape[3], shape[1:3])
    channels = channels or 3
    if channels not in (1, 3):
        raise EdgeError(
            f"input `{inputs[0].name}` of `{model}` has {channels} channels; images have 1 or 3",
            "`edgecnn quantize --data feeds.npz` takes one array per input",
        )
    mean, std = _numbers(told, "mean", channels), _numbers(told, "std", channels)
    dtype = dtypes[kind.elem_type]
    if dtype != "uint8" and mean is None and std is None and "range" not in told:
        raise EdgeError(
            f"`{model}` does not say how its float input is prepared",
            "give it: --input mean=0.485,0.456,0.406,std=0.229,0.224,0.225 (of 0..1 values), or range=1, or range=255",
        )
    try:
        top = float(told.get("range", "255" if dtype == "uint8" else "1"))
        if not 0 < top < math.inf:
            raise ValueError(f"range={top:g} is not a positive number")
        size = _size(told, sides, str(model))
        return IoContract(
            task="classify",
            input=InputContract.model_validate(
                {
                    "name": inputs[0].name, "layout": layout, "dtype": dtype, "range": (0.0, top), "size": size,
                    "channels": channels, "color": told.get("color", "gray" if channels == 1 else "rgb"),
                    "fit": told["fit"],
                }
            ),
            normalization=Normalization(mean=mean or (0.0,) * channels, std=std or (1.0,) * channels),
            normalization_inside=dtype == "uint8",
            outputs=tuple(OutputContract(name=value.name, meaning="") for value in graph.output),
            classes=(),
        )  # fmt: skip
    except ValidationError as error:
        told_wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise EdgeError(f"--input is not valid: {told_wrong}", f"known are {', '.join(KEYS)}") from error
    except ValueError as error:
        raise EdgeError(f"--input is not valid: {error}") from error


def _layout(shape: list[int | None]) -> str:
    if shape[1] in (1, 3) and shape[3] not in (1, 3):
        return "NCHW"
    return "NHWC" if shape[3] in (1, 3) and shape[1] not in (1, 3) else ""


def _size(told: dict[str, str], sides: list[int | None], model: str) -> tuple[int, int]:
    """(height, width): told as `224` or `480x640`, or the graph's own; a contradiction is an error."""
    given: tuple[int, int] | None = None
    if "size" in told:
        parts = told["size"].lower().split("x")
        if len(parts) > 2 or not all(
            part.isdecimal() and len(part) < 6 and 0 < int(part) <= MOST_SIDE for part in parts
        ):
            raise EdgeError(
                f"--input: `size={told['size']}` is not a size in pixels",
                f"write one side, `size=224`, or height and width, `size=480x640`; a side has at most {MOST_SIDE:,}",
            )
        given = (int(parts[0]), int(parts[-1]))
    if given is None and None in sides:
        raise EdgeError(f"`{model}` takes any image size, so you must give one", "for example --input size=224")
    if given is None:
        return (int(sides[0] or 0), int(sides[1] or 0))
    if any(side is not None and side != wish for side, wish in zip(sides, given, strict=True)):
        raise EdgeError(f"--input size={told['size']}, but `{model}` takes {sides[0]}x{sides[1]}", "drop `size`")
    return given


def of_told_size(model: Path, text: str, folder: Path) -> Path:
    """The file to time: itself, or a copy under `folder` with the size that `--input` or its exporter tells.

    Raises:
        EdgeError: the file is damaged; no size is told for a graph that leaves it free, or one that contradicts it.
    """
    if model.suffix != ".onnx":
        return model
    check_readable(model)
    if not (text or free_sides(model)):
        return model
    told = {**told_by_exporter(model), **_parse(text)}
    size = _size(told, [None, None], str(model)) if "size" in told else None
    shapes = image_shapes(model, size, told.get("layout", ""))
    if not shapes:
        return model
    folder.mkdir()
    return fixed(model, shapes, folder)


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


def classes_of_exporter(model: Path) -> tuple[str, ...]:
    """The classes that the metadata of an Ultralytics export name, by their numbers; empty where they don't."""
    found = {prop.key: prop.value for prop in _read(model).metadata_props}
    if not found.keys() >= _ULTRALYTICS:
        return ()
    try:
        names = ast.literal_eval(found["names"][:_LONGEST_NAMES])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    told = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return tuple(names) if told else ()


def _read(model: Path) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.load(str(model), load_external_data=False)
    except Exception as error:  # protobuf raises its own kinds
        raise EdgeError(f"`{model}` is not a readable ONNX file: {error}", "export the model again") from error


def free_sides(model: Path) -> dict[str, list[int | None]]:
    """Shapes of the inputs that have a free dimension besides the batch; None where it is free."""
    graph = _read(model).graph
    shapes = {
        value.name: [dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim]
        for value in fed_inputs(graph)
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
            f"`{model}` does not work with {told}: {str(error).strip().splitlines()[0]}", "give a size that it accepts"
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
            raise EdgeError(
                f"`{model}` takes any image size at `{name}`, so you must give one", "for example --input size=224"
            )
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
