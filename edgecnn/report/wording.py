"""The words and number formats that every form of the report shares."""

from __future__ import annotations

from edgecnn.report import Check, Conditions, Report, State

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
        case "p" | "":
            return f"{value:.3g}"
        case _:  # counts and rates
            return f"{value:,.0f} {unit.removesuffix('s') if value == 1 else unit}"


def metric_text(metric: str) -> str:
    """`top-1` for `top1`."""
    return metric.replace("top", "top-")


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


def title_text(report: Report) -> str:
    """`edgecnn quickstart on cpu-x86`."""
    return f"edgecnn {'check ' if report.kind == 'check' else ''}{report.recipe} on {report.device}"


def condition_rows(conditions: Conditions) -> list[tuple[str, str]]:
    """(name, text) of every condition that is known."""
    calibration = f"{conditions.calibration_images:,} images, ranges {conditions.ranges}"
    rows = [
        ("Hardware", conditions.hardware),
        ("Backend", conditions.backend),
        ("Driver", conditions.driver),
        ("Power mode", conditions.power_mode),
        ("Scored images", f"{conditions.images:,}"),
        ("INT8 scored by", conditions.scoring + (" (simulated)" if conditions.simulated else "")),
        ("Reference", conditions.reference),
        ("Calibration", calibration if conditions.calibration_images else ""),
        ("Calibration digest", conditions.calibration_digest[:16]),
        ("Scheme", conditions.scheme),
        ("Latency", conditions.latency),
    ]
    return [(name, text) for name, text in rows if text]
