"""The report: what was promised, what was measured, under which conditions. One schema, five ways to show it.

report.json   this schema, versioned      report.md    for pull requests
junit.xml     each check a test case      report.html  one self-contained page with plots
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import ValidationError, computed_field, model_validator

from edgecnn.process.disk import write_file
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.spec import Spec, describe_fault
from edgecnn.records import CompiledCheck, EngineFile, QuantizeFile, parsed
from edgecnn.report.detection import ChangedImage, PrecisionRecall
from edgecnn.report.ladder import Ladder

SCHEMA_VERSION: Literal[1] = 1
State = Literal["pass", "fail", "not-enough-evidence", "incomplete", "not-comparable"]
Unit = Literal["%", "points", "ms", "x", "MB", "dB", "images/s", "mJ", "images", "pairs", "layers", "p", ""]
Group = Literal["accuracy", "latency", "quantization", "size"]
# The verdict is the first of these that any check has.
GRAVITY: tuple[State, ...] = ("fail", "incomplete", "not-comparable", "not-enough-evidence", "pass")


class Check(Spec):
    """One promise and whether it was kept. Bounds are one-sided 95 %; None where the check has none."""

    name: str  # the budget's name in the recipe, or `engine`, `max_regression`, `latency`
    state: State
    measured: float | None = None
    lower: float | None = None
    upper: float | None = None
    limit: float | None = None
    unit: Unit = ""
    detail: str


class Figure(Spec):
    """One number with its unit, its bounds where it has them, and the conditions it holds under."""

    name: str  # stable, for programs
    title: str  # for people
    group: Group
    value: float | None  # None: not measured, `conditions` says why
    lower: float | None = None
    upper: float | None = None
    unit: Unit
    conditions: str


class ClassAccuracy(Spec):
    """Accuracy of one class in percent; `float_accuracy` is the reference's."""

    name: str
    images: int
    float_accuracy: float
    int8_accuracy: float


class LayerError(Spec):
    """One layer's quantization error on the calibration images; None: it stays float or has no output of its own."""

    name: str
    op: str
    macs: int
    int8: bool
    why_float: str | None
    sqnr_db: float | None


class Distribution(Spec):
    """Histogram of two interleaved timings over common edges in milliseconds; the last bin holds all slower runs."""

    edges_ms: tuple[float, ...]
    first_name: str
    first_counts: tuple[int, ...]
    first_p50_ms: float
    second_name: str
    second_counts: tuple[int, ...]
    second_p50_ms: float


class CompiledFor(Spec):
    """A further device (`compile_for`): its engine was built or its graph checked; no verdict, no speed."""

    device: str
    built: bool
    note: str
    checks: tuple[CompiledCheck, ...] = ()
    passed: bool

    @classmethod
    def failed(cls, device: str, why: str) -> CompiledFor:
        """The device whose engine could not be made."""
        return cls(device=device, built=False, note=why, passed=False)

    @classmethod
    def from_engine(cls, folder: Path, quantized: Path | None = None) -> CompiledFor:
        """From the `engine.json` of a compile stage, and what the ladder of its `quantized` stage has to say."""
        engine = parsed(EngineFile, folder / "engine.json")
        said = parsed(QuantizeFile, quantized / "quantize.json").recovery.notes if quantized else ()
        results = [check.passed for check in engine.checks]
        # Nothing checked and nothing built is no success: the program that could is not installed.
        passed = False not in results and (engine.built or True in results)
        note = "; ".join(part for part in (engine.note, *said) if part)
        return cls(device=engine.device, built=engine.built, note=note, checks=engine.checks, passed=passed)


class Conditions(Spec):
    """What every figure of the report shares."""

    model: str = ""  # the network, its family and weights
    input: str = ""
    data: str = ""  # format and folder's name
    classes: int = 0
    training: str = ""
    images: int  # scored
    hardware: str
    backend: str  # with its version
    driver: str = ""
    power_mode: str = ""
    boards: str = ""  # over SSH: each board that took part, and what it did
    simulated: bool  # INT8 accuracy by float simulation of the graph, not by the engine
    scoring: str  # how INT8 was scored
    reference: str  # what the drop is measured against
    calibration_images: int = 0
    calibration_digest: str = ""
    layer_images: int = 0  # calibration images that the layers' errors are of
    ranges: str = ""
    rungs: str = ""  # of the recovery ladder, those that made the delivered model
    scheme: str = ""
    latency: str = ""  # how it was timed, or why not


class Report(Spec):
    """A verdict with everything it rests on."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["build", "check"] = "build"  # check: against a stored baseline
    recipe: str
    run: str = ""
    device: str
    when: str  # ISO 8601, UTC
    edgecnn: str
    metric: str
    data_digest: str  # of the scored images and labels
    conditions: Conditions
    checks: tuple[Check, ...]
    figures: tuple[Figure, ...] = ()
    classes: tuple[ClassAccuracy, ...] = ()
    layers: tuple[LayerError, ...] = ()
    ladder: Ladder | None = None
    distribution: Distribution | None = None
    curve: PrecisionRecall | None = None  # of a detector, as are the images that changed most
    changed: tuple[ChangedImage, ...] = ()
    compiled_for: tuple[CompiledFor, ...] = ()
    warnings: tuple[str, ...] = ()  # of the quantizer: outputs that are another model's
    notes: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _derived(cls, content: object) -> object:
        if isinstance(content, dict):  # `verdict` is written for readers of the JSON, never read back
            return {name: value for name, value in content.items() if name != "verdict"}
        return content

    @computed_field  # type: ignore[prop-decorator]  # pydantic's way to put a property into the JSON
    @property
    def verdict(self) -> State:
        """The gravest state of any check; a failed `compile_for` device leaves a passing build incomplete."""
        states = {check.state for check in self.checks}
        if any(not compiled.passed for compiled in self.compiled_for):
            states.add("incomplete")
        return next((state for state in GRAVITY if state in states), "pass")

    def exit_code(self, strict: bool = False) -> int:
        """0 pass, 1 a budget failed or a regression, 3 anything undecided (1 when `strict`)."""
        match self.verdict:
            case "pass":
                return 0
            case "fail":
                return 1
            case "not-enough-evidence" | "incomplete" | "not-comparable":
                return 1 if strict else 3

    def figure(self, name: str) -> Figure | None:
        """A figure by its name, or None where this report has none of it."""
        return next((figure for figure in self.figures if figure.name == name), None)

    def with_compiled(self, compiled: Iterable[CompiledFor]) -> Report:
        """The same report with the results of `compile_for`."""
        return self.model_copy(update={"compiled_for": tuple(compiled)})


def now() -> str:
    """The present as reports write it: ISO 8601, UTC, whole seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def as_json(report: Report) -> str:
    """The report as it is stored: the schema, and the verdict beside it."""
    return report.model_dump_json(indent=1) + "\n"


def parse_report(text: str | bytes, where: str) -> Report:
    """The inverse of `as_json`; `where` names the file in the error.

    Raises:
        EdgeError: not a report, or one of a newer schema.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EdgeError(f"`{where}` is not JSON: {error}", "build the run again") from error
    if isinstance(content, dict) and "quantize" in content:
        raise EdgeError(
            f"`{where}` was left by `edgecnn quantize`, which compares nothing and times nothing",
            "`edgecnn report` shows it; other commands need a run of `edgecnn build`",
        )
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise EdgeError(
            f"`{where}` is not a report of schema {SCHEMA_VERSION} (its schema_version is {version!r})",
            "use the edgecnn that wrote it, or build the run again",
        )
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        raise EdgeError(f"`{where}` is not a valid report: {describe_fault(error)}", "build the run again") from error


def write_report(report: Report, folder: Path, *, outcomes: bytes | None = None, data: Path | None = None) -> None:
    """Write report.json, report.md, junit.xml and report.html into `folder`, each replaced atomically.

    Args:
        outcomes: written as outcomes.npz, which a baseline needs.
        data: the data stage's folder, whose scored images are what the page shows of those that changed.

    Raises:
        EdgeError: the folder can't be written.
    """
    from edgecnn.report.html import as_html
    from edgecnn.report.junit import as_junit
    from edgecnn.report.markdown import as_markdown
    from edgecnn.report.pictures import pictures

    shown = pictures(data, report.changed) if data and report.changed else {}
    files = {
        "report.md": as_markdown(report).encode(),
        "junit.xml": as_junit(report).encode(),
        "report.html": as_html(report, shown).encode(),
    }
    if outcomes is not None:
        files["outcomes.npz"] = outcomes
    files["report.json"] = as_json(report).encode()  # last: whoever finds it finds the others
    for name, content in files.items():
        write_file(folder / name, content)


def read_report(folder: str | Path) -> Report:
    """The report of a run folder.

    Raises:
        EdgeError: there is none, or it isn't valid.
    """
    path = Path(folder, "report.json")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise EdgeError(f"cannot read `{path}`: {why}", "RUN is a folder left by `edgecnn build`") from error
    return parse_report(text, str(path))
