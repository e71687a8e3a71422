"""The commands: parse, call, print. Imports nothing heavy at start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from edgecnn import __version__
from edgecnn.cli.bench import bench
from edgecnn.cli.border import run
from edgecnn.cli.devices import devices
from edgecnn.cli.options import (
    AsJson,
    DeviceGiven,
    Hosts,
    Images,
    InputText,
    Links,
    LockClocks,
    PowerMode,
    Quiet,
    Ranges,
    Sets,
    Strict,
    boards_of,
    complete_device,
    complete_recipe,
    finite,
    show_progress,
    timing_sets,
)
from edgecnn.cli.options import print_result as _print
from edgecnn.cli.sensitivity import sensitivity
from edgecnn.process.errors import EdgeError, printable
from edgecnn.recipe.recipe import EffortName

app = typer.Typer(
    name="edgecnn", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turn a CNN, a dataset and the name of a device into an INT8 model proved on that device.",
    epilog="Exit codes: 0 pass, 1 a budget failed or a regression, 2 bad input, 3 incomplete or not enough evidence,"
    " 70 an internal error, 130 Ctrl-C.",
)  # fmt: skip
app.add_typer(devices, name="devices")

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A recipe file, or the name of a packed recipe.", autocompletion=complete_recipe
    ),
]
DeviceName = Annotated[
    str | None,
    typer.Option("--device", help="Use this device instead of the recipe's.", autocompletion=complete_device),
]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"edgecnn {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command()
def build(
    recipe: RecipeName, device: DeviceName = None, host: Hosts = [], link: Links = [], set_: Sets = [],  # noqa: B006  # typer reads it
    until: Annotated[str | None, typer.Option(help="Stop once this stage is finished.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the runs, instead of runs/RECIPE/DEVICE.")] = None,
    power_mode: PowerMode = None, lock_clocks: LockClocks = False,
    remeasure: Annotated[bool, typer.Option("--remeasure", help="Time again even if a stored timing matches.")] = False,
    trust_weights: Annotated[
        bool, typer.Option("--trust-weights", help="Load .pt files that hold more than tensors. They can run code.")
    ] = False,
    strict: Strict = False, as_json: AsJson = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Take a recipe from labelled images to a verdict on its device."""
    from edgecnn import api

    with show_progress(as_json, quiet):
        result = api.build(
            recipe, device=device, hosts=boards_of(host, link),
            set=[*set_, *timing_sets(power_mode, lock_clocks)], until=until, out=out, remeasure=remeasure,
            trust_weights=trust_weights,
        )  # fmt: skip
    if result.report is None:
        _print(as_json, {"stopped_after": until}, f"stopped after `{until}`; the stages made are kept")
        return
    from edgecnn.report.table import print_report

    document = {
        "run": str(result.run),
        "made": result.made,
        "measured_ago": result.measured_ago,
        "report": result.report.model_dump(mode="json"),
    }
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        print_report(result.report)
        made = ", ".join(result.made) if result.made else "nothing: every stage was kept"
        if result.measured_ago and result.report.figure("speedup"):
            print(f"latency was measured {result.measured_ago} ago; --remeasure measures it again")
        print(f"made {made}\nrun  {result.run}")
    raise typer.Exit(result.report.exit_code(strict=strict))


@app.command()
def plan(
    recipe: RecipeName, device: DeviceName = None, host: Hosts = [], link: Links = [], set_: Sets = [],  # noqa: B006
    power_mode: PowerMode = None, lock_clocks: LockClocks = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show what a build would run or keep, why, and what is missing. Exits 3 if a build would stop."""
    from edgecnn import api

    decisions, missing = api.plan(
        recipe, device=device, hosts=boards_of(host, link), set=[*set_, *timing_sets(power_mode, lock_clocks)]
    )
    document = {
        "stages": [{"stage": d.stage, "kept": d.kept, "why": list(d.reasons)} for d in decisions],
        "missing": [{"what": n.what, "where": n.where, "fix": n.fix, "stops": n.stops} for n in missing],
    }
    lines = [f"{d.stage:<24} {'kept    ' if d.kept else 'will run'}  {', '.join(d.reasons)}" for d in decisions]
    for need in missing:
        word = "missing" if need.stops else "not here"
        lines += [f"{word}: {need.what}", f"  looked in: {need.where}", f"  fix: {need.fix}"]
    _print(as_json, document, "\n".join(lines))
    raise typer.Exit(3 if any(need.stops for need in missing) else 0)


@app.command()
def show(recipe: RecipeName, device: DeviceName = None, set_: Sets = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Print the recipe with every default resolved."""
    from edgecnn.recipe.load import load_recipe
    from edgecnn.recipe.sections import AUTO
    from edgecnn.recipe.yaml_file import dump_yaml

    loaded = load_recipe(recipe, set_, device)
    document = loaded.model_dump(mode="json")
    text = dump_yaml(document).rstrip()
    _print(as_json, document, f"{text}\n# {AUTO}" if loaded.train.lr is None else text)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for completion in editors."""
    from edgecnn.recipe.load import schema as recipe_schema

    print(json.dumps(recipe_schema(), indent=1))


@app.command()
def init(
    path: Annotated[Path | None, typer.Argument(metavar="[RECIPE.yaml]", help="Where to write the recipe.")] = None,
    task: Annotated[str | None, typer.Option(help="The task: classify or detect.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder, table, .npz, data.yaml, COCO JSON, or `digits`.")] = None,
    device: Annotated[str | None, typer.Option(help="A name from `edgecnn devices list`.")] = None,
) -> None:
    """Ask for task, data and device; write a commented recipe that builds."""
    from edgecnn.cli.init import answer_of, ask_and_write

    with show_progress(False):
        written = ask_and_write(path, task=task, data=data, device=device, ask=answer_of)
    print(f"wrote {written}\nnext: edgecnn plan {written}")


@app.command()
def check(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or runs/RECIPE/DEVICE (its latest).")],
    baseline: Annotated[Path, typer.Option(help="The NAME.baseline.zip to compare with, or to write with --update.")],
    update: Annotated[bool, typer.Option("--update", help="Write the baseline from this run.")] = False,
    no_model: Annotated[bool, typer.Option("--no-model", help="With --update: leave the ONNX files out.")] = False,
    max_regression: Annotated[
        float, typer.Option(callback=finite, help="Accuracy drop to tolerate: 0.01 is one point.")
    ] = 0.0025,
    host: Hosts = [], link: Links = [], power_mode: PowerMode = None, lock_clocks: LockClocks = False,  # noqa: B006
    strict: Strict = False, as_json: AsJson = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Compare a run with a stored baseline: a regression exits 1. For CI."""
    from edgecnn import api

    folder = api.resolve_run(run)
    if update:
        from edgecnn.verdict.baseline import update as write_baseline

        write_baseline(folder, baseline, model=not no_model)
        _print(as_json, {"baseline": str(baseline)}, f"wrote {baseline}")
        return
    with show_progress(as_json, quiet):
        report = api.check(
            folder, baseline, max_regression=max_regression, hosts=boards_of(host, link),
            set=timing_sets(power_mode, lock_clocks),
        )  # fmt: skip
    if as_json:
        print(report.model_dump_json(indent=1))
    else:
        from edgecnn.report.table import print_report

        print_report(report)
    raise typer.Exit(report.exit_code(strict=strict))


@app.command()
def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A folder of `build` or `quantize`, or runs/RECIPE/DEVICE.")
    ],
    html: Annotated[bool, typer.Option("--html", help="Print the HTML page.")] = False,
    md: Annotated[bool, typer.Option("--md", help="Print Markdown.")] = False,
    junit: Annotated[bool, typer.Option("--junit", help="Print JUnit XML.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the result of a build or of `quantize` again, or in another form."""
    from edgecnn.api import read_form, read_quantized, resolve_run
    from edgecnn.report import read_report
    from edgecnn.report.table import print_report

    folder = resolve_run(run)
    if html + md + junit + as_json > 1:
        raise EdgeError("--html, --md, --junit and --json exclude each other", "give one of them")
    files = {"report.html": html, "report.md": md, "junit.xml": junit, "report.json": as_json}
    for name, wanted in files.items():
        if wanted:
            print(read_form(folder / name))
            return
    if quantized := read_quantized(folder):
        print(printable(quantized.text))
    else:
        print_report(read_report(folder))


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A float ONNX file.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Images (folder, label table, .npz), a detector's data.yaml or COCO JSON, or an .npz of arrays."
        ),
    ],
    device: DeviceGiven,
    images: Images = None,
    ranges: Ranges = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the result.")] = Path("quantized"),
    input_: InputText = "",
    keep_float: Annotated[list[str], typer.Option(help="A node that stays float, by name. Repeatable.")] = [],  # noqa: B006
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            callback=finite,
            help="Accuracy budget: 0.01 is one point. Labelled images that do not calibrate judge it.",
        ),
    ] = None,
    recover: Annotated[
        str, typer.Option(metavar="auto|off|RUNG", help="The last recovery rung; off stops at calibrated ranges.")
    ] = "auto",
    effort: Annotated[EffortName, typer.Option(help="How long the rungs that need no labels may take.")] = "balanced",
    select_images: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of images that judge the budget.")
    ] = None,
    decode: Annotated[
        str, typer.Option(help="Layout of a detector's output: yolox, yolox-pixels or yolov8. Default: found by shape.")
    ] = "",
    strict: Strict = False, as_json: AsJson = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Quantize any ONNX file to INT8 for a device. Only learned rungs need torch (--effort thorough)."""
    from edgecnn import api

    with show_progress(as_json, quiet):
        summary = api.quantize(
            model, data=data, device=device, images=images, ranges=ranges, out=out, input=input_,
            keep_float=keep_float, max_accuracy_drop=max_accuracy_drop, recover=recover, effort=effort,
            select_images=select_images, decode=decode,
        )  # fmt: skip
    _print(as_json, summary.document, summary.text)
    codes = {None: 0, "pass": 0, "fail": 1, "not-enough-evidence": 1 if strict else 3}
    raise typer.Exit(codes[summary.document["verdict"]])


app.command()(sensitivity)
app.command()(bench)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what is installed, which devices that serves, and the command that installs the rest."""
    from dataclasses import asdict

    from edgecnn.cli.doctor import examine

    findings = examine()
    marks = {"ok": "ok     ", "warn": "warning", "missing": "missing"}
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.state]}  {finding.topic}: {finding.detail}")
        if finding.fix:
            lines.append(f"         fix: {finding.fix}")
    _print(as_json, [asdict(finding) for finding in findings], "\n".join(lines))


@app.command()
def clean(
    max_gb: Annotated[
        float, typer.Option(min=0.0, callback=finite, help="GB to keep, most recently used first.")
    ] = 20.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Remove nothing; show what would go, and how much.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Limit the store's size: remove the stages used longest ago. What a running build uses stays."""
    from edgecnn.process.disk import cache_root
    from edgecnn.store.clean import clean as clean_store
    from edgecnn.store.clean import gigabytes

    result = clean_store(cache_root(), gigabytes(max_gb), dry_run=dry_run)
    _print(as_json, result.document(), result.text())


def main() -> NoReturn:
    """Run the command line and end the process."""
    run(app)


if __name__ == "__main__":
    main()
