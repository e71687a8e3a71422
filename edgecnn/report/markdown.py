"""The report as Markdown, for a pull request or a job summary."""

from __future__ import annotations

from edgecnn.report import Report
from edgecnn.report.wording import (
    GROUPS,
    LADDER_HEAD,
    SPEED_NOTE,
    bounds_text,
    compiled_text,
    condition_rows,
    headline,
    ladder_cells,
    ladder_text,
    limit_text,
    measured_text,
    number_text,
    state_text,
    title_text,
    verdict_sentence,
)


def as_markdown(report: Report) -> str:
    """GitHub-flavoured Markdown: what happened in a sentence and a few rows, everything else folded away."""
    said, bad = headline(report)
    lines = [f"# {_plain(title_text(report))}: {state_text(report.verdict, report.kind)}", ""]
    lines += [f"**{':red_circle: ' if bad else ''}{_plain(said)}**", ""] if said else []
    lines += [_plain(verdict_sentence(report)), "", *_summary(report), ""]
    lines += ["<details><summary>Checks, figures and conditions</summary>", "", "## Checks", ""]
    lines += _table(
        ("check", "verdict", "measured", "95 % bounds", "limit", "detail"),
        [
            (f"`{check.name}`", f"**{state_text(check.state, report.kind)}**", measured_text(check),
             bounds_text(check.lower, check.upper, check.unit), limit_text(check), check.detail)
            for check in report.checks
        ],
    )  # fmt: skip
    if report.ladder:
        rows = [(*ladder_cells(rung), rung.why) for rung in report.ladder.rungs]
        lines += ["", "## Recovery ladder", "", _plain(ladder_text(report.ladder)), ""]
        lines += [*_table((*LADDER_HEAD, "why"), rows), "", _plain(SPEED_NOTE).replace("*", "\\*")]
    if report.compiled_for:
        lines += ["", "## Compiled for", ""]
        lines += _table(
            ("device", "result", "note"),
            [
                (
                    compiled.device,
                    compiled_text(compiled) if compiled.passed else f"**{compiled_text(compiled)}**",
                    compiled.note,
                )
                for compiled in report.compiled_for
            ],
        )
    for group, title in GROUPS.items():
        figures = [figure for figure in report.figures if figure.group == group]
        if figures:
            lines += ["", f"## {title}", ""]
            lines += _table(
                ("figure", "value", "bounds", "conditions"),
                [
                    (figure.title, number_text(figure.value, figure.unit),
                     bounds_text(figure.lower, figure.upper, figure.unit), figure.conditions)
                    for figure in figures
                ],
            )  # fmt: skip
    lines += ["", "## Conditions", ""]
    lines += [f"- {name}: {_plain(text)}" for name, text in condition_rows(report.conditions)]
    lines += [f"- Run: {_plain(report.run)}"] if report.run else []
    lines += [f"- {report.when}, edgecnn {report.edgecnn}"]
    if report.notes:
        lines += ["", "## Notes", "", *(f"- {_plain(note)}" for note in report.notes)]
    return "\n".join([*lines, "", "</details>"]) + "\n"


def _summary(report: Report) -> list[str]:
    """At most five rows: the figures that a reader of a pull request looks for."""
    names = ("int8_accuracy", "accuracy_drop", "speedup", "latency_ratio", "int8_p99_ms", "int8_size")
    figures = [figure for name in names if (figure := report.figure(name))][:5]
    rows: list[tuple[str, ...]] = [
        (figure.title, number_text(figure.value, figure.unit), bounds_text(figure.lower, figure.upper, figure.unit))
        for figure in figures
    ]
    return _table(("", "value", "95 % bounds"), rows) if rows else []


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return lines + [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """One line, with nothing that Markdown would take for HTML."""
    return " ".join(text.split()).replace("<", "&lt;")
