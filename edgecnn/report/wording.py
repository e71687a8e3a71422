"""The words and number formats that every form of the report shares."""

from __future__ import annotations

from edgecnn.report import Check, CompiledFor, Conditions, Report, State
from edgecnn.report.ladder import Ladder, Rung

GROUPS = {"accuracy": "Accuracy", "latency": "Latency", "quantization": "Quantization", "size": "Size"}


def state_text(state: State, kind: str = "build") -> str:
    """The state in capitals; a failed comparison with a baseline is a regression."""
    match state:
        case "pass":
            return "PASS"
        case "fail":
            return "REGRESSION" if kind == "check" else "FAIL"
        case "not-enough-evidence":
            return "NOT ENOUGH EVIDENCE"
        case "incomplete":
            return "INCOMPLETE"
        case "not-comparable":
            return "NOT COMPARABLE"


def compiled_text(compiled: CompiledFor) -> str:
    """What became of a further device: an engine was built, its graph was checked without one, or neither could be."""
    if not compiled.passed:
        return "failed"
    return "built" if compiled.built else "checked"


def checked_text(passed: bool | None) -> str:
    """The outcome of one check of an engine."""
    match passed:
        case True:
            return "passed"
        case False:
            return "refused"
        case None:
            return "not done"


def verdict_sentence(report: Report) -> str:
    """One sentence that says why the verdict is what it is."""
    verdict = report.verdict
    named = ", ".join(check.name for check in report.checks if check.state == verdict)
    failed = ", ".join(compiled.device for compiled in report.compiled_for if not compiled.passed)
    match verdict:
        case "pass":
            count = len(report.checks)
            return f"All {count} checks passed." if count != 1 else "The one check passed."
        case "fail":
            return f"Worse than the baseline: {named}." if report.kind == "check" else f"Over budget: {named}."
        case "not-enough-evidence":
            return f"The measurements cannot decide: {named}."
        case "incomplete":
            parts = ([f"not decided here: {named}"] if named else []) + (
                [f"compile_for failed: {failed}"] if failed else []
            )
            text = "; ".join(parts)
            return f"{text[0].upper()}{text[1:]}."
        case "not-comparable":
            return f"The baseline cannot be compared: {named}."


def headline(report: Report) -> tuple[str, bool]:
    """(what happened in one line, whether it is bad news): how fast, how accurate, how small, and any warning."""
    parts, bad = [], bool(report.warnings)
    first, second = ("INT8", "float") if report.kind == "build" else ("The candidate", "the baseline")
    speedup = report.figure("speedup")
    if speedup and speedup.value:
        lower, upper = speedup.lower or speedup.value, speedup.upper or speedup.value
        slower = upper < 1.0
        bad = bad or slower
        if lower <= 1.0 <= upper:
            parts.append(f"about as fast as {second} ({number_text(speedup.value, 'x')})")
        else:
            times = 1 / speedup.value if slower else speedup.value
            parts.append(f"{number_text(times, 'x')} {'SLOWER' if slower else 'faster'} than {second}")
    drop = report.figure("accuracy_drop")
    if drop and drop.value is not None:
        points = f"{number_text(abs(drop.value), 'points')} {'lower' if drop.value > 0 else 'higher'}"
        simulated = " (simulated)" if report.conditions.simulated else ""
        parts.append((points if round(drop.value, 2) else "as accurate") + simulated)
    size, plain = report.figure("int8_size"), report.figure("float_size")
    if size and plain and size.value and plain.value:
        parts.append(f"{plain.value / size.value:.1f}x smaller")
    said = f"{first} is {', '.join(parts)}." if parts else ""
    return " ".join([*(f"WARNING: {warning}." for warning in report.warnings), said]).strip(), bad


def number_text(value: float | None, unit: str) -> str:
    """A value with its unit, in the digits that its unit deserves: `97.33 %`, `0.412 ms`, `1.84x`."""
    if value is None:
        return "not measured"
    match unit:
        case "%":
            return f"{value:.2f} %"
        case "points":
            return f"{value:.2f} points"
        case "x":
            # Near 1 the second digit would round away what 1.02 decides.
            return f"{value:.3f}x" if 0.8 < value < 1.2 else f"{value:.2f}x"
        case "ms":
            return f"{value:.3f} ms" if abs(value) < 10 else f"{value:.1f} ms"
        case "MB":
            return f"{value:.3f} MB" if abs(value) < 10 else f"{value:.1f} MB"
        case "dB":
            return f"{value:.1f} dB"
        case "mJ":
            return f"{value:.3g} mJ"
        case "p" | "":
            return f"{value:.3g}"
        case _:  # counts and rates
            return f"{value:,.0f} {unit.removesuffix('s') if value == 1 else unit}"


def metric_text(metric: str) -> str:
    """`top-1` for `top1`, `mAP50-95` for `map50_95`."""
    return metric.replace("top", "top-").replace("map", "mAP").replace("_", "-")


def time_text(when: str) -> str:
    """`2026-01-02 03:04 UTC` for the ISO time of a report."""
    return f"{when[:10]} {when[11:16]} UTC" if when.endswith("+00:00") else when


def bounds_text(lower: float | None, upper: float | None, unit: str) -> str:
    """`0.12 … 0.80`, in the unit of the value they stand beside; empty without bounds."""
    if lower is None or upper is None:
        return ""
    return " … ".join(number_text(bound, unit).removesuffix("x").split(" ")[0] for bound in (lower, upper))


def limit_text(check: Check) -> str:
    """The limit with its direction: `≤ 1.00 points`, `≥ 1.00x`; empty without one."""
    if check.limit is None:
        return ""
    return f"{'≥' if check.name.startswith('min_') else '≤'} {number_text(check.limit, check.unit)}"


def measured_text(check: Check) -> str:
    """What was measured; a dash for a check of no number."""
    return number_text(check.measured, check.unit) if check.measured is not None else "–"


# One row of the ladder, in every form of the report.
LADDER_HEAD = (
    "rung",
    "kept",
    "accuracy",
    "drop",
    "95 % bounds",
    "SQNR",
    "float layers",
    "INT8 MACs",
    "speed*",
    "seconds",
)


def ladder_cells(rung: Rung) -> tuple[str, ...]:
    """The row of a rung under LADDER_HEAD."""
    return (
        rung.rung,
        "yes" if rung.kept else "no",
        number_text(rung.accuracy, "%") if rung.accuracy is not None else "–",
        number_text(rung.drop, "points").removesuffix(" points") if rung.drop is not None else "–",
        bounds_text(rung.lower, rung.upper, "points"),
        number_text(rung.sqnr_db, "dB") if rung.sqnr_db is not None else "–",
        str(rung.float_nodes),
        f"{rung.int8_macs:.1f} %",
        f"{rung.expected_speed:.2f}",
        f"{rung.seconds:.1f}",
    )


def ladder_text(ladder: Ladder) -> str:
    """One sentence: what was asked, what was reached, and how it was judged."""
    if ladder.state == "unasked":
        return "The ladder was not climbed: there is no accuracy budget that labelled select images could judge."
    reached = {
        "held": f"`{ladder.best}` holds it",
        "within": f"`{ladder.best}` is within it, but above its half, where the climb would have stopped",
        "missed": f"no rung up to `{ladder.rungs[-1].rung}` holds it; the best is `{ladder.best}`",
    }[ladder.state]
    first = ladder.rungs[0]
    return (
        f"Budget {number_text(ladder.budget, 'points')}: {reached}. {first.images or 0:,} select images, float"
        f" {number_text(first.float_accuracy, '%')}, {ladder.judged}."
    )


def ladder_lines(ladder: Ladder) -> list[str]:
    """The rungs as plain text in 80 columns, each with why it was kept or not."""
    head = ("rung", "kept", "acc. %", "drop", "95 % bounds", "dB", "float", "speed*", "s")
    rows = [head, *(_short_cells(rung) for rung in ladder.rungs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for number, row in enumerate(rows):
        first, *others = zip(row, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]))
        if number > 1:  # why the first rung was made needs no word
            lines.append(f"    {ladder.rungs[number - 1].why}")
    return [*lines, "acc., drop: select images; dB: SQNR, median held image; float: layers kept float", SPEED_NOTE]


def _short_cells(rung: Rung) -> tuple[str, ...]:
    cells = dict(zip(LADDER_HEAD, ladder_cells(rung), strict=True))
    shown = ("rung", "kept", "accuracy", "drop", "95 % bounds", "SQNR", "float layers", "speed*", "seconds")
    return tuple(cells[name].removesuffix(" %").removesuffix(" dB") for name in shown)


SPEED_NOTE = "* expected, ranges = 1: estimated from the share of MACs in INT8, not measured"


def title_text(report: Report) -> str:
    """`edgecnn quickstart on cpu-x86`."""
    return f"edgecnn {'check ' if report.kind == 'check' else ''}{report.recipe} on {report.device}"


def condition_rows(conditions: Conditions) -> list[tuple[str, str]]:
    """(name, text) of every condition that is known."""
    calibration = f"{conditions.calibration_images:,} images, ranges {conditions.ranges}"
    rows = [
        ("Network", conditions.model),
        ("Input", conditions.input),
        ("Dataset", f"{conditions.data}, {conditions.classes:,} classes" if conditions.data else ""),
        ("Training", conditions.training),
        ("Hardware", conditions.hardware),
        ("Backend", conditions.backend),
        ("Driver", conditions.driver),
        ("Power mode", conditions.power_mode),
        ("Boards", conditions.boards),
        ("Scored images", f"{conditions.images:,}"),
        ("INT8 scored by", conditions.scoring + (" (simulated)" if conditions.simulated else "")),
        ("Reference", conditions.reference),
        ("Calibration", calibration if conditions.calibration_images else ""),
        ("Calibration digest", conditions.calibration_digest[:16]),
        ("Recovery rungs", conditions.rungs),
        ("Scheme", conditions.scheme),
        ("Latency", conditions.latency),
    ]
    return [(name, text) for name, text in rows if text]
