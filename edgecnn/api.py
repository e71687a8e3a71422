"""What the commands do, without printing: the CLI and a program call the same functions."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecnn.needs import Need, check_library_names, check_writable, needs, refuse
from edgecnn.process.disk import cache_root
from edgecnn.process.errors import EdgeError, printable
from edgecnn.recipe.load import load_device, load_recipe
from edgecnn.recipe.recipe import EffortName, Recipe
from edgecnn.report import Report
from edgecnn.store.stage import Decision, Stopped, Store, age_text
from edgecnn.targets.hosts import HERE, Boards

if TYPE_CHECKING:
    from edgecnn.targets.target import Target


@dataclass(frozen=True)
class Built:
    """A build's end: its report and run folder (None when stopped by `until`), and the stages that were made."""

    report: Report | None
    run: Path | None
    made: tuple[str, ...]
    measured_ago: str = ""  # age of the kept timing; empty when it was taken now


@dataclass(frozen=True)
class Summary:
    """A result as a JSON-ready document and as text for a person."""

    document: dict[str, Any]
    text: str


def build_recipe(
    recipe: str, *, device: str | None = None, boards: Boards = HERE, sets: Sequence[str] = (),
    until: str | None = None, out: Path | None = None, remeasure: bool = False, trust_weights: bool = False,
) -> Built:  # fmt: skip
    """Build a recipe and publish its run.

    Args:
        boards: where to build, score and time; those of the environment, or this machine, where none are given.

    Raises:
        EdgeError: the recipe is wrong, something it needs is missing, no board answers (all before any stage), or a
            stage failed.
    """
    loaded = load_recipe(recipe, sets, device)
    profile = load_device(loaded.device)
    boards = boards.of(profile)
    refuse(needs(loaded, profile, boards))
    folder = out or Path("runs") / loaded.name / profile.name
    check_writable(folder)
    from edgecnn.pipeline import STAGES, build, compile_beside
    from edgecnn.targets.target import connect
    from edgecnn.verdict.runs import publish, require_latest

    if until is not None and until not in STAGES:
        raise EdgeError(f"there is no stage `{until}`", f"stages: {', '.join(STAGES)}")
    require_latest(folder)
    target = connect(profile, boards)
    check_library_names(loaded, lambda: _rehearsed(loaded, target))
    # For the child processes that load weights; a later build of the same program starts untrusting again.
    os.environ["EDGECNN_TRUST_WEIGHTS"] = "1" if trust_weights else "0"
    store = Store(cache_root(), recipe=loaded.name, until=until, remeasure=remeasure)
    try:
        report, evidence = build(loaded, target, store)
        compiled = [compile_beside(loaded, name, store) for name in loaded.compile_for]
    except Stopped:
        return Built(None, None, _made(store.decisions))
    report = report.with_compiled([result for result, _ in compiled])
    run, report = publish(
        folder, loaded, report, evidence, [engine for _, engine in compiled if engine], store.versions
    )
    made = _made(store.decisions)
    return Built(report, run, made, "" if "speed" in made else age_text(evidence.speed.taken))


def _made(decisions: list[Decision]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(decision.stage for decision in decisions if not decision.kept))


def plan_recipe(
    recipe: str, *, device: str | None = None, boards: Boards = HERE, sets: Sequence[str] = ()
) -> tuple[list[Decision], list[Need]]:
    """What a build would run or keep, with reasons, and what is missing. Makes nothing.

    Raises:
        EdgeError: the recipe is wrong, its family has no such model, or no board answers.
    """
    from edgecnn.targets.target import connect

    loaded = load_recipe(recipe, sets, device)
    profile = load_device(loaded.device)
    boards = boards.of(profile)
    found = needs(loaded, profile, boards)
    decisions = _rehearsed(loaded, connect(profile, boards))
    if not any(need.stops for need in found):
        check_library_names(loaded, lambda: decisions)
    return decisions, found


def _rehearsed(recipe: Recipe, target: Target) -> list[Decision]:
    from edgecnn.pipeline import build, compile_beside

    store = Store(cache_root(), recipe=recipe.name, rehearse=True)
    with contextlib.suppress(Stopped):
        build(recipe, target, store)
    for name in recipe.compile_for:
        store.until = f"compile-int8@{load_device(name).name}"
        with contextlib.suppress(Stopped):
            compile_beside(recipe, name, store)
    return list({decision.stage: decision for decision in store.decisions}.values())


def resolve_run(path: Path) -> Path:
    """A run folder given itself, or the `latest` of a folder of runs.

    Raises:
        EdgeError: there is no report.json.
    """
    for folder in (path, path / "latest"):
        if (folder / "report.json").is_file():
            return folder.resolve()
    raise EdgeError(
        f"`{path}` holds no run: it has no report.json", "give a run folder, such as runs/quickstart/cpu-x86/latest"
    )


def read_quantized(folder: Path) -> Summary | None:
    """The result that `edgecnn quantize` left in a folder; None where its report.json is of a build, or not JSON.

    Raises:
        EdgeError: the report is damaged.
    """
    path = folder / "report.json"
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or "quantize" not in document:
        return None
    from edgecnn.foreign.quantize import result_text

    return Summary(document, result_text(document, str(path)))


def read_form(file: Path) -> str:
    """One of the forms of a report that a run folder holds, for stdout.

    Raises:
        EdgeError: it isn't there, or isn't a report.
    """
    from edgecnn.report import parse_report

    quantized = read_quantized(file.parent)
    if quantized and file.name != "report.json":
        raise EdgeError(f"`{file.parent}` was left by `edgecnn quantize`, which writes no {file.name}", "leave it out")
    try:
        text = file.read_text(encoding="utf-8").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise EdgeError(f"cannot read `{file}`: {why}", "build the run again") from error
    if file.name == "report.json" and not quantized:
        parse_report(text, str(file))
    return printable(text) if sys.stdout.isatty() else text


def check_run(
    run: Path, baseline: Path, *, max_regression: float, boards: Boards = HERE, sets: Sequence[str] = ()
) -> Report:
    """Compare a run with a stored baseline; speed is always measured anew, both models in one session.

    Args:
        sets: `bench.KEY=VALUE` texts, for the timing.
    """
    from edgecnn.foreign.bench import bench_spec
    from edgecnn.report import read_report
    from edgecnn.targets.target import connect
    from edgecnn.verdict.baseline import check

    profile = load_device(read_report(run).device)
    target = connect(profile, boards.of(profile))
    spec = bench_spec(sets)
    return check(
        run, baseline, max_regression=max_regression,
        time_files=lambda first, second: target.time_files(first, second, spec),
    )  # fmt: skip


def quantize_file(
    model: Path, *, data: Path, device: str, images: int | None, ranges: str, out: Path, preprocessing: str,
    keep_float: tuple[str, ...], max_accuracy_drop: float | None = None, recover: str = "auto",
    effort: EffortName = "balanced", select_images: int | None = None, decoder: str = "",
) -> Summary:  # fmt: skip
    """Quantize any ONNX file for a device and write model.int8.onnx (and the typed one) and report.json to `out`."""
    from edgecnn.foreign.quantize import quantize_foreign

    return Summary(
        *quantize_foreign(
            model, data=data, profile=load_device(device), images=images, ranges=ranges, out=out,
            preprocessing=preprocessing, keep_float=keep_float, max_accuracy_drop=max_accuracy_drop, recover=recover,
            effort=effort, select_images=select_images, decoder=decoder,
        )
    )  # fmt: skip


def bench_files(
    model: Path, baseline: Path | None, *, device: str, sets: Sequence[str], boards: Boards = HERE,
    preprocessing: str = "",
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Time one file, or two as interleaved pairs, on a device that is here or that a host answers for."""
    from edgecnn.foreign.bench import bench

    profile = load_device(device)
    return bench(model, baseline, profile, sets, boards.of(profile), preprocessing)


def doctor_findings() -> tuple[list[dict[str, str]], str]:
    """What is here, what it can serve, and the fixes."""
    from dataclasses import asdict

    from edgecnn.cli.doctor import examine

    findings = examine()
    marks = {"ok": "ok     ", "warn": "warning", "missing": "missing"}
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.state]}  {finding.topic}: {finding.detail}")
        if finding.fix:
            lines.append(f"         fix: {finding.fix}")
    return [asdict(finding) for finding in findings], "\n".join(lines)
