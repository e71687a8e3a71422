"""`edgecnn quantize`: INT8 for an ONNX file that edgecnn did not export. No torch needed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from edgecnn.device import DeviceProfile, kernels
from edgecnn.errors import EdgeError
from edgecnn.foreign_boxes import as_detector, labelled_boxes, share_out_boxes
from edgecnn.foreign_budget import promise_of, recover_of, share_out, verdict_of
from edgecnn.foreign_input import fixed, free_sides, image_shapes, told_by_exporter
from edgecnn.io_contract import MOST_SIDE, InputContract, IoContract, OutputContract, read_contract
from edgecnn.needs import check_writable
from edgecnn.progress import current
from edgecnn.quantize import check_onnx, check_readable, quantize_model
from edgecnn.recipe import EffortName, Normalization, QuantizeSpec, RangeMethod
from edgecnn.recipe_file import nearest_hint
from edgecnn.store import Artifact
from edgecnn.target import connect

if TYPE_CHECKING:
    from edgecnn.quantize.arrays import NamedArrays

KEYS = ("mean", "std", "layout", "size", "range", "color", "fit")
FITS = ("letterbox", "crop", "stretch")


def quantize_foreign(
    model: Path, *, data: Path, profile: DeviceProfile, images: int | None, ranges: str, out: Path, preprocessing: str,
    keep_float: tuple[str, ...], max_accuracy_drop: float | None = None, recover: str = "auto",
    effort: EffortName = "balanced", select_images: int | None = None, decoder: str = "",
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Quantize `model` for `profile` and write the result to `out`; returns (JSON document, text).

    With labelled boxes as `data` (a YOLO data.yaml, a COCO JSON) the model is a detector, judged by its mAP50-95; the
    layout of its output is `decoder`, or found by its shape (see `edgecnn.decode`).

    The rungs of `effort` are climbed always. With `max_accuracy_drop` the ladder is climbed further, up to `recover`,
    judged on labelled images of `data` that do not calibrate. A killed climb continues from `out/.climb`. The
    document's `verdict` says whether the budget holds.

    Files: model.int8.onnx, model.int8.typed.onnx (devices with FP16 islands), the engine where one could be compiled
    here, report.json; each appears whole.

    Raises:
        EdgeError: the model or images are unusable, the preprocessing is not told, TensorRT's rules refuse, or a budget
            is given without labels or for a model that is no better than a constant answer.
    """
    profile.require_int8()
    check_onnx(model)
    boxes = labelled_boxes(data, judged=max_accuracy_drop is not None)
    feeds = feeds_of(model, data) if boxes is None else None
    contract = contract_of(model, preprocessing, "letterbox" if boxes else "crop") if feeds is None else None
    if boxes is not None and contract is not None:
        contract = as_detector(model, contract, boxes[0].classes, decoder)
    elif decoder:
        raise EdgeError(f"--decode is for labelled boxes, and `{data}` has none", "give a YOLO data.yaml or COCO JSON")
    promise = promise_of(max_accuracy_drop, "map50_95" if boxes else "top1")
    stop = recover_of(recover, max_accuracy_drop)
    typed = {"images": images, "select_images": select_images}
    numbers = {name: value for name, value in typed.items() if value is not None}
    try:
        spec = QuantizeSpec.model_validate(
            {"ranges": ranges, "keep_float": keep_float, "recover": stop, "effort": effort, **numbers}
        )
    except ValueError:
        raise EdgeError(f"no range method `{ranges}`", nearest_hint(ranges, get_args(RangeMethod))) from None
    check_writable(out)
    target = connect(profile)
    with _without_empty(out), tempfile.TemporaryDirectory(prefix="edgecnn-") as scratch:
        made = Path(scratch, "quantize")
        made.mkdir()
        given = _of_one_size(model, contract, feeds, made) if target.scheme.placement == "tensorrt" else model
        if contract is not None:
            pixels, selected, held = (
                share_out_boxes(boxes, contract, spec, promise) if boxes else share_out(data, contract, spec, promise)
            )
            quantize_model(
                made, spec, target.scheme, given, pixels, contract, promise=promise, selected=selected, held=held,
                kernels=kernels(target.scheme, target.facts), folder=out / ".climb",
            )  # fmt: skip
        elif feeds is not None:
            quantize_model(made, spec, target.scheme, given, feeds, None, promise=promise, folder=out / ".climb")
        compiled = Path(scratch, "compile")
        compiled.mkdir()
        target.compile(compiled, profile, target.facts, Artifact("quantize", "", made))
        engine = json.loads((compiled / "engine.json").read_text())
        record = json.loads((made / "quantize.json").read_text())
        document = {
            "schema_version": 1, "model": model.name, "device": profile.name,
            "input": contract.model_dump(mode="json") if contract else {"arrays": feeds.shapes() if feeds else {}},
            "size_mb": {"float": model.stat().st_size / 1e6, "int8": (made / "model.onnx").stat().st_size / 1e6},
            "checks": engine["checks"], "note": engine["note"], "verdict": verdict_of(record)[0], "quantize": record,
        }  # fmt: skip
        (made / "report.json").write_text(json.dumps(document, indent=1))
        names = {"model.onnx": "model.int8.onnx", "typed.onnx": "model.int8.typed.onnx", "report.json": "report.json"}
        written = [_deliver(made / name, out / final) for name, final in names.items() if (made / name).exists()]
        if engine["engine"] and engine["engine"].endswith(".engine"):
            written.append(_deliver(compiled / engine["engine"], out / engine["engine"]))
    return document, _text(document, written)


@contextlib.contextmanager
def _without_empty(folder: Path) -> Iterator[None]:
    """What fails within it leaves no empty folder that was not there before."""
    there = folder.exists()
    try:
        yield
    except BaseException:
        if not there:
            with contextlib.suppress(OSError):  # it holds a climb that can be continued
                folder.rmdir()
        raise


def _of_one_size(model: Path, contract: IoContract | None, feeds: NamedArrays | None, folder: Path) -> Path:
    """The model, or a copy whose free sizes are those of its images: TensorRT leaves the batch alone free."""
    if not (free := free_sides(model)):
        return model
    if contract is not None:
        shapes = image_shapes(model, contract.input.size, contract.input.layout)
    else:
        shapes = {name: tuple(shape) for name, shape in feeds.shapes().items() if name in free} if feeds else {}
    told = ", ".join(f"`{name}` {' x '.join(map(str, shape[1:]))}" for name, shape in shapes.items())
    current().note(f"the INT8 model takes {told} only: TensorRT builds for one size")
    copies = folder / "one_size"
    copies.mkdir()
    return fixed(model, shapes, copies)


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


def result_text(document: dict[str, Any], where: str) -> str:
    """What `edgecnn quantize` said of a result, from the report that it left.

    Raises:
        EdgeError: the report is damaged.
    """
    try:
        return _text(document, [])
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, StopIteration) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise EdgeError(f"`{where}` is damaged: {what}", "run `edgecnn quantize` again") from error


def _deliver(source: Path, final: Path) -> Path:
    """Move a finished file into place in one step, also across file systems."""
    partial = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, partial)
        os.replace(partial, final)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise EdgeError(f"cannot write `{final}`: {error.strerror}", "choose another folder with --out") from error
    return final


def _text(document: dict[str, Any], written: list[Path]) -> str:
    from edgecnn.report.wording import checked_text

    record = document["quantize"]
    coverage, sizes = record["coverage"], document["size_mb"]
    lines = [
        *(f"WARNING: {warning}" for warning in record["warnings"]),
        f"INT8 coverage  {coverage['macs']:.1%} of MACs, {coverage['activation_bytes']:.1%} of activation bytes",
        _sqnr_text(record),
        *_typed_text(record),
        f"size           {sizes['float']:.2f} → {sizes['int8']:.2f} MB",
        *(f"{checked_text(c['passed']):<14} {c['name']}" for c in document["checks"]),
        *([document["note"]] if document["note"] else []),
        *_climb_text(record),
        *(f"wrote {path}" for path in written),
    ]
    return "\n".join(lines)


def _sqnr_text(record: dict[str, Any]) -> str:
    """What the outputs keep, and over which images."""
    images = f"{record['compared_images']:,} {'other images' if record['compared_held'] else 'calibration images'}"
    parts = []
    if record["sqnr_db"] is not None:
        parts.append(f"{record['sqnr_median_db']:.1f} dB median image, {record['sqnr_db']:.1f} dB pooled")
    if record["agreement"] is not None:
        parts.append(f"same answer {100 * record['agreement']:.1f} %")
    return f"SQNR           {', '.join(parts) or 'not told'} (outputs, {images}, float simulation)"


def _typed_text(record: dict[str, Any]) -> list[str]:
    """What FP16 arithmetic makes of the typed file; nothing where there is none."""
    typed = record["typed"]
    if typed is None or typed["sqnr_db"] is None:
        return []
    both = f"{typed['sqnr_db']:.1f} dB in FP16 arithmetic, {typed['fp32_sqnr_db']:.1f} dB in FP32"
    return [f"typed file     {both} (worst output, {typed['images']} calibration images)"]


def _climb_text(record: dict[str, Any]) -> list[str]:
    """The ladder as it was climbed, and whether the budget holds; without one a line of its rungs."""
    from edgecnn.report.figures import ladder
    from edgecnn.report.stage_files import QuantizeFile
    from edgecnn.report.wording import ladder_lines

    state, sentence = verdict_of(record)
    climbed = ladder(QuantizeFile.model_validate(record))
    if climbed is None or (state is None and len(climbed.rungs) == 1):
        return []
    if state is None:  # no budget, so no accuracies to show
        steps = [
            f"{rung.rung} {rung.sqnr_db or 0.0:.1f} dB{'' if rung.kept else ' (not kept)'}" for rung in climbed.rungs
        ]
        return [f"rungs          {', '.join(steps)} (median of held calibration images)"]
    split = (
        f"{record['calibration']['images']:,} images calibrated, {record['ladder'][0]['images']:,} others judged"
        f" ({climbed.judged})"
    )
    return ["", split, *ladder_lines(climbed), *record["recovery"]["notes"], sentence, ""]


def feeds_of(model: Path, data: Path) -> NamedArrays | None:
    """The arrays of an .npz that feed the model's inputs by name; None where `data` holds images.

    A model with several inputs is always fed so; one with a single input if the file has an array of its name and no
    `images` or `blob`.

    Raises:
        EdgeError: several inputs, and `data` is not an .npz.
    """
    import onnx

    from edgecnn.quantize.arrays import read_arrays

    graph = onnx.load(str(model), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in weights]
    if len(inputs) > 1 and data.suffix != ".npz":
        raise EdgeError(
            f"`{model}` has {len(inputs)} inputs ({', '.join(inputs)}), and `{data}` is not an .npz file",
            "give --data an .npz with one array per input, samples first: numpy.savez(path, **{name: array})",
        )
    if data.suffix != ".npz" or not data.is_file():
        return None
    arrays = read_arrays(data)
    own = len(inputs) > 1 or (inputs[0] in arrays.arrays and not {"images", "blob"} & set(arrays.arrays))
    return arrays if own else None


def contract_of(model: Path, text: str, fit: str = "crop") -> IoContract:
    """The model's contract: from its own metadata, else from what `--input`, its exporter and its graph tell.

    Args:
        fit: how images are brought to size where neither says it.

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
            raise EdgeError(f"--input: `{part}` is neither key=value nor one of {', '.join(FITS)}")
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
        raise EdgeError(f"--input: `{key}={values[key]}` is not a list of numbers") from None
    if len(numbers) not in (1, channels):
        raise EdgeError(f"--input: `{key}` has {len(numbers)} numbers, the model's input {channels} channels")
    return numbers if len(numbers) == channels else numbers * channels


def _inferred(model: Path, told: dict[str, str]) -> IoContract:
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise EdgeError(f"`{model}` has {len(inputs)} inputs ({names}); one image input is needed")
    kind = inputs[0].type.tensor_type
    shape = [dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim]
    if len(shape) != 4:
        raise EdgeError(f"input `{inputs[0].name}` of `{model}` has {len(shape)} dimensions; an image batch has 4")
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
            f"the layout of input `{inputs[0].name}` {shape} is not clear", "say it: --input layout=nchw or nhwc"
        )
    channels, sides = (shape[1], shape[2:]) if layout == "NCHW" else (shape[3], shape[1:3])
    channels = channels or 3
    if channels not in (1, 3):
        raise EdgeError(f"input `{inputs[0].name}` of `{model}` has {channels} channels; images have 1 or 3")
    mean, std = _numbers(told, "mean", channels), _numbers(told, "std", channels)
    dtype = dtypes[kind.elem_type]
    if dtype != "uint8" and mean is None and std is None and "range" not in told:
        raise EdgeError(
            f"`{model}` does not say how its float input is prepared",
            "tell it: --input mean=0.485,0.456,0.406,std=0.229,0.224,0.225 (of 0..1 values), or range=1, or range=255",
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
        raise EdgeError(f"`{model}` takes any image size, so one must be told", "for example --input size=224")
    if given is None:
        return (int(sides[0] or 0), int(sides[1] or 0))
    if any(side is not None and side != wish for side, wish in zip(sides, given, strict=True)):
        raise EdgeError(f"--input size={told['size']}, but `{model}` takes {sides[0]}x{sides[1]}")
    return given
