"""What the commands do, without printing: the command line and a program call the same functions.

Nothing here reads or changes the state of the process: the store's folder, whom to trust and who shows progress are
arguments. (What is left out is read from the environment, as the command line reads it.)
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecnn.needs import Need, check_library_names, check_writable, needs, refuse
from edgecnn.process.child import child_environment
from edgecnn.process.disk import cache_root
from edgecnn.process.errors import EdgeError, printable
from edgecnn.process.progress import Progress, showing
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


Sets = Mapping[str, object] | Sequence[str]
Hosts = Boards | Sequence[str]


# Builds of one process run one after the other: each takes all cores, and their files are told apart by process.
_ONE_BUILD = threading.Lock()


def build(
    recipe: str | Path | Recipe, *, device: str | None = None, hosts: Hosts = HERE, set: Sets = (),
    until: str | None = None, out: str | Path | None = None, remeasure: bool = False, trust_weights: bool = False,
    cache: str | Path | None = None, progress: Progress | None = None,
) -> Built:  # fmt: skip
    """Build a recipe and publish its run.

    Args:
        recipe: a file, the name of a packed recipe, or a recipe in memory.
        device: takes the place of the recipe's.
        hosts: boards that stand for the device, as `user@host[:port]`; none: those of EDGECNN_HOST_<DEVICE>, else this
            machine.
        set: recipe keys in place of the file's, as `{"train.epochs": 3}`, or `KEY=VALUE` texts.
        until: stop after this stage.
        out: folder for the runs, instead of `runs/RECIPE/DEVICE`.
        remeasure: time again even if a stored timing matches.
        trust_weights: load .pt files that hold more than tensors; they can run code.
        cache: folder of the store; default EDGECNN_CACHE, else `~/.cache/edgecnn`.
        progress: who shows progress and notes; default: nobody.

    Raises:
        EdgeError: the recipe is wrong, something it needs is missing, no board answers (all before any stage), or a
            stage failed.
    """
    with _ONE_BUILD, _shown(progress), child_environment(EDGECNN_TRUST_WEIGHTS="1" if trust_weights else "0"):
        return _build(
            _recipe(recipe, set, device), _boards(hosts), until, Path(out) if out else None, remeasure,
            Path(cache) if cache else None,
        )  # fmt: skip


def _build(
    loaded: Recipe, boards: Boards, until: str | None, out: Path | None, remeasure: bool, cache: Path | None
) -> Built:
    profile = load_device(loaded.device)
    boards = boards.of(profile)
    refuse(needs(loaded, profile, boards))
    folder = out or Path("runs") / loaded.name / profile.name
    check_writable(folder)
    from edgecnn import pipeline
    from edgecnn.targets.target import connect
    from edgecnn.verdict.runs import publish, require_latest

    if until is not None and until not in pipeline.stage_names():
        raise EdgeError(f"there is no stage `{until}`", f"stages: {', '.join(pipeline.stage_names())}")
    require_latest(folder)
    target = connect(profile, boards)
    check_library_names(loaded, lambda: _rehearsed(loaded, target, cache))
    store = Store(cache or cache_root(), recipe=loaded.name, until=until, remeasure=remeasure)
    try:
        report, evidence = pipeline.build(loaded, target, store)
        compiled = [pipeline.compile_beside(loaded, name, store) for name in loaded.compile_for]
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


def plan(
    recipe: str | Path | Recipe, *, device: str | None = None, hosts: Hosts = HERE, set: Sets = (),
    cache: str | Path | None = None,
) -> tuple[list[Decision], list[Need]]:  # fmt: skip
    """What a build would run or keep, with reasons, and what is missing. Makes nothing; arguments as of `build`.

    Raises:
        EdgeError: the recipe is wrong, its family has no such model, or no board answers.
    """
    from edgecnn.targets.target import connect

    loaded = _recipe(recipe, set, device)
    profile = load_device(loaded.device)
    boards = _boards(hosts).of(profile)
    found = needs(loaded, profile, boards)
    decisions = _rehearsed(loaded, connect(profile, boards), Path(cache) if cache else None)
    if not any(need.stops for need in found):
        check_library_names(loaded, lambda: decisions)
    return decisions, found


def _recipe(recipe: str | Path | Recipe, sets: Sets, device: str | None) -> Recipe:
    if isinstance(recipe, Recipe):
        if sets or device:
            raise EdgeError("`set` and `device` are for a recipe's file", "change the recipe in memory itself")
        return recipe
    return load_recipe(str(recipe), _texts(sets), device)


def _texts(sets: Sets) -> list[str]:
    """KEY=VALUE texts, as the command line takes them; a mapping's texts stay texts, whatever they look like."""
    if isinstance(sets, Mapping):
        try:
            return [f"{key}={json.dumps(value, ensure_ascii=False, default=_plain)}" for key, value in sets.items()]
        except (TypeError, ValueError, RecursionError) as error:
            raise EdgeError(f"`set` holds no value of a recipe: {error}", "give numbers, texts, lists") from None
    return list(_listed("set", sets))


def _plain(value: object) -> object:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy's
        return value.tolist()
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def _listed(name: str, values: Sequence[str]) -> Sequence[str]:
    """A text is a sequence of texts too, of its letters: nobody means that."""
    if isinstance(values, str):
        raise EdgeError(f"`{name}` is one text, and a list is asked for", f"write {name}=[{values!r}]")
    return values


def _boards(hosts: Hosts) -> Boards:
    return hosts if isinstance(hosts, Boards) else Boards(tuple(_listed("hosts", hosts)))


def _shown(progress: Progress | None) -> AbstractContextManager[None]:
    return showing(progress) if progress else contextlib.nullcontext()


def _rehearsed(recipe: Recipe, target: Target, cache: Path | None) -> list[Decision]:
    from edgecnn.pipeline import build, compile_beside

    store = Store(cache or cache_root(), recipe=recipe.name, rehearse=True)
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


def check(
    run: str | Path, baseline: str | Path, *, max_regression: float = 0.0025, hosts: Hosts = HERE, set: Sets = ()
) -> Report:
    """Compare a run with a stored baseline; speed is always measured anew, both models in one session.

    Args:
        run: a run folder, or one whose `latest` is meant.
        max_regression: largest loss of accuracy against the baseline, a fraction of 1.
        set: `bench.KEY` values for the timing.

    Raises:
        EdgeError: not a run, not a baseline, or a wrong value.
    """
    from edgecnn.foreign.bench import bench_spec
    from edgecnn.report import read_report
    from edgecnn.targets.target import connect
    from edgecnn.verdict import baseline as baselines

    folder = resolve_run(Path(run))
    profile = load_device(read_report(folder).device)
    target = connect(profile, _boards(hosts).of(profile))
    spec = bench_spec(_texts(set))
    return baselines.check(
        folder, Path(baseline), max_regression=max_regression,
        time_files=lambda first, second: target.time_files(first, second, spec),
    )  # fmt: skip


def quantize(
    model: str | Path, *, data: str | Path, device: str = "cpu-x86", max_accuracy_drop: float | None = None,
    out: str | Path = "quantized", images: int | None = None, select_images: int | None = None, ranges: str = "auto",
    effort: EffortName = "balanced", recover: str = "auto", keep_float: Sequence[str] = (), input: str = "",
    decode: str = "", progress: Progress | None = None,
) -> Summary:  # fmt: skip
    """Quantize any ONNX file for a device; write model.int8.onnx (and the typed one) and report.json to `out`.

    Args:
        data: images, labelled or not, or arrays by input name; see `edgecnn quantize --help`.
        max_accuracy_drop: the budget, a fraction of 1, that labelled images judge; None: fidelity alone.
        input: how the file takes images. decode: layout of a detector's output.

    Raises:
        EdgeError: the model or the images are unusable, or an argument is wrong.
    """
    from edgecnn.foreign.quantize import quantize_foreign

    with _shown(progress):
        return Summary(
            *quantize_foreign(
                Path(model), data=Path(data), profile=load_device(device), images=images, ranges=ranges, out=Path(out),
                preprocessing=input, keep_float=tuple(_listed("keep_float", keep_float)),
                max_accuracy_drop=max_accuracy_drop, recover=recover, effort=effort, select_images=select_images,
                decoder=decode,
            )
        )  # fmt: skip


def bench(
    model: str | Path, baseline: str | Path | None = None, *, device: str = "cpu-x86", hosts: Hosts = HERE,
    set: Sets = (), input: str = "",
) -> Summary:  # fmt: skip
    """Time one file, or two as interleaved pairs, on a device that is here or that a host answers for.

    Raises:
        EdgeError: a file can't be run there, or no board answers.
    """
    from edgecnn.foreign import bench as benches

    profile = load_device(device)
    other = Path(baseline) if baseline else None
    return Summary(*benches.bench(Path(model), other, profile, _texts(set), _boards(hosts).of(profile), input))
