"""`edgecnn quantize`: INT8 for an ONNX file that edgecnn did not export. No torch needed."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from edgecnn.families.onnx.detector import as_detector
from edgecnn.families.onnx.input import contract_of, fixed, free_sides, image_shapes
from edgecnn.foreign.boxes import labelled_boxes, share_out_boxes
from edgecnn.foreign.budget import promise_of, recover_of, share_out, verdict_of
from edgecnn.needs import check_writable
from edgecnn.onnx_file import check_onnx
from edgecnn.process.disk import replacing
from edgecnn.process.errors import EdgeError
from edgecnn.process.progress import current
from edgecnn.quantize import quantize_model
from edgecnn.recipe.device import DeviceProfile, kernels
from edgecnn.recipe.io_contract import IoContract, fed_inputs
from edgecnn.recipe.load import nearest_hint
from edgecnn.recipe.recipe import EffortName, QuantizeSpec, RangeMethod, TaskName
from edgecnn.store.stage import Artifact
from edgecnn.targets.target import connect

if TYPE_CHECKING:
    from edgecnn.quantize.calibration.arrays import NamedArrays


def quantize_foreign(
    model: Path, *, data: Path, profile: DeviceProfile, images: int | None, ranges: str, out: Path, preprocessing: str,
    keep_float: tuple[str, ...], max_accuracy_drop: float | None = None, recover: str = "auto",
    effort: EffortName = "balanced", select_images: int | None = None, decoder: str = "",
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Quantize `model` for `profile` and write the result to `out`; returns (JSON document, text).

    With labelled boxes as `data` (a YOLO data.yaml, a COCO JSON) the model is a detector, judged by its mAP50-95; the
    layout of its output is `decoder`, or found by its shape (see `edgecnn.tasks.detect.decode`).

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
    spec = spec_of({"ranges": ranges, "keep_float": keep_float, "recover": stop, "effort": effort, **numbers})
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
            "checks": engine["checks"], "note": engine["note"],
            "verdict": verdict_of(record, contract.task if contract else "classify")[0], "quantize": record,
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


def spec_of(values: dict[str, Any]) -> QuantizeSpec:
    """How to quantize, from what an option or an argument gave by key.

    Raises:
        EdgeError: a wrong value.
    """
    try:
        return QuantizeSpec.model_validate(values)
    except ValidationError as error:
        wrong = error.errors()[0]
        key = str(wrong["loc"][0]) if wrong["loc"] else ""
        if key == "ranges":
            hint = nearest_hint(str(values[key]), get_args(RangeMethod))
            raise EdgeError(f"no range method `{values[key]}`", hint) from None
        raise EdgeError(f"`{key}` is {wrong['input']!r}: {wrong['msg'].lower()}", "correct it") from None


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
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with replacing(final) as partial:
            shutil.copyfile(source, partial)
    except OSError as error:
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
        *_climb_text(record, document["input"].get("task", "classify")),
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


def _climb_text(record: dict[str, Any], task: TaskName) -> list[str]:
    """The ladder as it was climbed, and whether the budget holds; without one a line of its rungs."""
    from edgecnn.records import QuantizeFile
    from edgecnn.report.wording import ladder_lines
    from edgecnn.verdict.figures import ladder

    state, sentence = verdict_of(record, task)
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

    from edgecnn.quantize.calibration.arrays import read_arrays

    graph = onnx.load(str(model), load_external_data=False).graph
    inputs = [value.name for value in fed_inputs(graph)]
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
