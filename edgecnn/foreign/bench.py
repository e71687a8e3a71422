"""`edgecnn bench`: one or two model or engine files timed on a device that is here."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgecnn.families.onnx.input import of_told_size
from edgecnn.measure.stats import pair_ratio
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.device import DeviceProfile
from edgecnn.recipe.recipe import BenchSpec
from edgecnn.recipe.spec import describe_fault
from edgecnn.recipe.yaml_file import parse_yaml
from edgecnn.records import SpeedFile
from edgecnn.targets.hosts import HERE, Boards
from edgecnn.targets.target import connect
from edgecnn.verdict.board_figures import board_notes, board_text


def bench(
    model: Path, baseline: Path | None, profile: DeviceProfile, sets: Sequence[str], boards: Boards = HERE,
    preprocessing: str = "",
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Time `model`, alternating with `baseline` when given; returns (JSON document, text). Milliseconds per batch.

    Args:
        preprocessing: as `--input` has it: the size of images that a graph leaves free, and its layout.

    Raises:
        EdgeError: a file is missing, a setting is wrong, or the device can't run anything here.
    """
    import numpy as np

    for path in (model, *([baseline] if baseline else [])):
        if not path.is_file():
            raise EdgeError(f"no model or engine `{path}`", "give the path of an ONNX file or of an engine")
    spec, target = bench_spec(sets), connect(profile, boards)
    with tempfile.TemporaryDirectory(prefix="edgecnn-") as scratch:
        first, second = (
            of_told_size(one, preprocessing, Path(scratch, str(number)))
            for number, one in enumerate((baseline or model, model))
        )
        times = target.time_files(first, second, spec)
    if times is None:
        raise EdgeError(
            f"`{profile.name}` cannot be timed here: {target.facts.hardware}",
            "time it on the device, or choose --device cpu-x86",
        )
    document: dict[str, Any] = {"device": profile.name, "conditions": times.conditions, "unit": "ms per batch"}
    lines = []
    named = [("model", model, times.second_ms)] + ([("baseline", baseline, times.first_ms)] if baseline else [])
    for role, path, ms in named:
        p50, p90, p99 = (float(value) for value in np.percentile(ms, (50, 90, 99)))
        document[role] = {"file": str(path), "p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "runs": len(ms)}
        lines.append(f"{role:<9} p50 {p50:.3f}  p90 {p90:.3f}  p99 {p99:.3f} ms · {len(ms)} runs · {path}")
    if baseline:
        ratio = pair_ratio(times.first_ms, times.second_ms)
        speedup = float(np.percentile(times.first_ms, 5) / np.percentile(times.second_ms, 5))
        document["speedup"] = {
            "p5_ratio": speedup,
            "pair_median": 1 / ratio.median,
            "lower": 1 / ratio.upper,
            "upper": 1 / ratio.lower,
        }
        lines.append(
            f"speed-up  {1 / ratio.median:.2f}x [{1 / ratio.upper:.2f}, {1 / ratio.lower:.2f}] (median of pairs)"
            f" · {speedup:.2f}x (5th percentiles){' · the model is SLOWER' if ratio.lower > 1 else ''}"
        )
        if abs(speedup * ratio.median - 1) > 0.05:
            lines.append("the machine was noisy: the two speed-ups differ by more than 5 %")
    told = {key: value for key, value in times.conditions.items() if value not in ("", None)}
    flat = {key: value for key, value in told.items() if not isinstance(value, (dict, list))}
    lines.append(" · ".join(f"{key.replace('_', ' ')} {value}" for key, value in flat.items()))
    lines += _of_boards(times.conditions, "model", "baseline" if baseline else "")
    return document, "\n".join(lines)


def _of_boards(conditions: Mapping[str, Any], model: str, baseline: str) -> list[str]:
    """What only boards tell: the state they were in, times with transfers, energy, and each one's own figures."""
    if "board" not in conditions:
        return []
    speed = SpeedFile.model_validate({**conditions, "measured": True})
    lines = [board_text(speed)]
    for words, times in (("with transfers", speed.io_ms), ("from image to output", speed.e2e_ms)):
        shown = [
            f"{name} p50 {times[part]['p50_ms']:.3f} ms" for part, name in _parts(model, baseline) if part in times
        ]
        if shown:
            lines.append(f"{words}: {', '.join(shown)}")
    energy = [
        f"{name} {speed.energy_mj[part]:.3g} mJ" for part, name in _parts(model, baseline) if speed.energy_mj.get(part)
    ]
    if energy:
        lines.append(f"energy per inference above idle: {', '.join(energy)}")
    lines += [
        f"{host}: {model} p50 {one.int8['p50_ms']:.3f} ms"
        for host, one in speed.boards.items()
        if len(speed.boards) > 1
    ]
    return [*lines, *board_notes(speed)]


def _parts(model: str, baseline: str) -> list[tuple[str, str]]:
    """Which of the two timed is shown under which name: the model is timed second."""
    return [("second", model), *([("first", baseline)] if baseline else [])]


def bench_spec(sets: Sequence[str]) -> BenchSpec:
    """The timing that `KEY=VALUE` texts ask for, as `min_pairs=64` or `bench.min_pairs=64`.

    Raises:
        EdgeError: an unknown key or a wrong value.
    """
    values = {}
    for text in sets:
        key, _, value = text.partition("=")
        values[key.strip().removeprefix("bench.")] = parse_yaml(value, f"--set {text}")
    try:
        return BenchSpec.model_validate(values)
    except ValidationError as error:
        raise EdgeError(f"--set: {describe_fault(error)}", f"keys: {', '.join(BenchSpec.model_fields)}") from error
