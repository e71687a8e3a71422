"""`edgecnn sensitivity`: which layers of an ONNX file cost its accuracy in INT8, as a table, JSON and a plot."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecnn.data import load_images
from edgecnn.families.onnx.input import contract_of
from edgecnn.foreign.quantize import feeds_of, spec_of
from edgecnn.needs import check_writable
from edgecnn.onnx_file import check_onnx
from edgecnn.process.disk import write_json
from edgecnn.process.versions import install_command
from edgecnn.recipe.load import load_device
from edgecnn.targets.target import connect

if TYPE_CHECKING:
    from edgecnn.quantize.noise.sensitivity import Row, Sensitivity

SCHEMA_VERSION = 1
SHOWN = 30  # rows of the table on a terminal; the JSON has all


def measure_file(
    model: Path, *, data: Path, device: str, images: int | None, ranges: str, out: Path, preprocessing: str,
    keep_float: tuple[str, ...] = (),
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Measure `model` for a device; write sensitivity.json and, with matplotlib, sensitivity.png to `out`.

    Returns:
        (JSON document, text).

    Raises:
        EdgeError: the model or images are unusable, or the preprocessing is not told.
    """
    from edgecnn.quantize.noise.sensitivity import sensitivity

    profile = load_device(device)
    profile.require_int8()
    check_onnx(model)
    feeds = feeds_of(model, data)
    contract = contract_of(model, preprocessing) if feeds is None else None
    number = {} if images is None else {"images": images}
    spec = spec_of({"ranges": ranges, "keep_float": keep_float, **number})
    check_writable(out)
    target = connect(profile)
    if contract is not None:
        given = contract.input
        pixels, labels = load_images(data, given.size, given.channels, given.fit, limit=spec.images, seed=0)
        found = sensitivity(model, contract, pixels, target.scheme, spec, labels)
    else:
        assert feeds is not None
        found = sensitivity(model, None, feeds, target.scheme, spec)
    document = {
        "schema_version": SCHEMA_VERSION, "model": model.name, "device": profile.name,
        "scheme": target.scheme.model_dump(), "ranges": ranges, **found.as_json(),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "sensitivity.json"]
    write_json(written[0], document)
    if importlib.util.find_spec("matplotlib") is not None:
        from edgecnn.foreign.sensitivity_plot import save_plot

        written.append(out / "sensitivity.png")
        save_plot(written[1], found, f"{model.name} for {profile.name}")
        note = ""
    else:
        note = f"no plot: it needs matplotlib, {install_command('report')}"
    return document, "\n".join([table(found), *([note] if note else []), *(f"wrote {path}" for path in written)])


def table(found: Sensitivity) -> str:
    """The rows for a person, the most to blame first, under what the whole model loses."""
    whole = ", ".join(f"`{name}` {value:.1f} dB" for name, value in found.outputs_db.items())
    weights, activations = found.weights_db, found.activations_db
    lines = [
        f"SQNR of the outputs with everything in INT8: {whole} ({found.measured} of {found.images} calibration images,"
        " float simulation)",
        f"only weights {weights:.1f} dB, only activations {activations:.1f} dB; answers changed on {found.changed} of"
        f" {found.measured} images" + _accuracy(found),
        f"the layers' errors alone add up to {1 / found.explained if found.explained else 1:.2f} times the whole",
        "",
    ]
    heads = [
        "share",
        "alone dB",
        "weights dB",
        "activation dB",
        "blame",
        "in place dB",
        "range",
        "method",
        "beyond",
        "layer",
    ]
    quantized = [row for row in found.rows if row.alone_db is not None]
    cells = [heads, *(_cells(row) for row in quantized[:SHOWN])]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    left = {4, 6, 7, 9}
    for line in cells:
        parts = [
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    if len(quantized) > SHOWN:
        lines.append(f"… and {len(quantized) - SHOWN} more in sensitivity.json")
    floats = [row for row in found.rows if row.alone_db is None]
    lines += [f"float: {row.name}: {row.why_float}" for row in floats]
    return "\n".join(lines)


def _accuracy(found: Sensitivity) -> str:
    if found.top1 is None or found.float_top1 is None:
        return ""
    return f"; top-1 {100 * found.float_top1:.1f} → {100 * found.top1:.1f} % on them"


def _cells(row: Row) -> list[str]:
    def decibels(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    return [
        f"{row.share:.1%}", decibels(row.alone_db), decibels(row.weights_db), decibels(row.activation_db),
        row.blame or "-", decibels(row.in_place_db), f"{row.low or 0.0:.3g} … {row.high or 0.0:.3g}", row.method or "-",
        f"{row.saturation or 0.0:.3%}", f"{row.name} ({row.op})",
    ]  # fmt: skip
