"""The report on a terminal; every word stands without colour."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from edgecnn.process.errors import printable
from edgecnn.report import Report, State
from edgecnn.report.ladder import Ladder
from edgecnn.report.wording import (
    GROUPS,
    bounds_text,
    compiled_text,
    condition_rows,
    headline,
    ladder_lines,
    ladder_text,
    limit_text,
    measured_text,
    number_text,
    state_text,
    title_text,
    verdict_sentence,
)

ABOUT = ("Network", "Input", "Dataset", "Training")
STYLES: dict[State, str] = {
    "pass": "green", "fail": "bold red", "not-enough-evidence": "yellow", "incomplete": "yellow",
    "not-comparable": "yellow",
}  # fmt: skip


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the report; `console` defaults to stdout. Names of classes and devices in it are foreign text."""
    (console or Console()).print(as_table(Report.model_validate(_printable(report.model_dump()))))


def _printable(value: Any) -> Any:
    match value:
        case str():
            return printable(value)
        case dict():
            return {_printable(key): _printable(part) for key, part in value.items()}
        case list() | tuple():
            return [_printable(part) for part in value]
        case _:
            return value


def as_table(report: Report) -> RenderableType:
    """The report as rich renderables: verdict, checks, figures, compile_for, conditions, notes."""
    head = Text.assemble(
        (state_text(report.verdict, report.kind), STYLES[report.verdict]), f"  {verdict_sentence(report)}"
    )
    said, bad = headline(report)
    if said:
        head = Text.assemble((said, "bold red" if bad else "bold"), "\n", head)
    parts: list[RenderableType] = [
        Panel(head, title=Text(title_text(report)), title_align="left", expand=False), _checks(report),
    ]  # fmt: skip
    if report.ladder and report.ladder.state != "unasked":
        parts.append(_ladder(report.ladder))
    if report.figures:
        parts.append(_figures(report))
    if report.compiled_for:
        table = _table("compile_for", "result", "note")
        for compiled in report.compiled_for:
            state: State = "pass" if compiled.passed else "fail"
            table.add_row(compiled.device, Text(compiled_text(compiled), STYLES[state]), Text(compiled.note))
        parts.append(table)
    conditions = report.conditions
    simulated = " (simulated)" if conditions.simulated else ""
    facts = (
        f"{conditions.images:,} images · {conditions.hardware} · {conditions.backend} · {conditions.scoring}{simulated}"
    )
    about = [f"{name.lower()} {text}" for name, text in condition_rows(conditions)[:4] if name in ABOUT]
    parts += [Text(" · ".join(about))] if about else []
    parts += [Text(f"conditions: {facts}"), Text(f"latency: {conditions.latency}")]
    parts += [Text(f"note: {note}") for note in report.notes]
    return Group(*parts)


def _checks(report: Report) -> Table:
    table = _table("check", "verdict", "measured", "95 % bounds", "limit")
    table.columns[0].no_wrap = True
    for column in table.columns[2:]:
        column.justify = "right"
        column.no_wrap = True
    details = []
    for check in report.checks:
        table.add_row(
            check.name, Text(state_text(check.state, report.kind), STYLES[check.state]), measured_text(check),
            bounds_text(check.lower, check.upper, check.unit), limit_text(check),
        )  # fmt: skip
        if check.state != "pass":
            details.append(f"{check.name}: {check.detail}")
    if details:
        table.caption = Text("\n".join(details))
        table.caption_justify = "left"
    return table


def _ladder(ladder: Ladder) -> Text:
    """The rungs of the recovery ladder, and why each was kept or not."""
    return Text("\n".join(["", ladder_text(ladder), *ladder_lines(ladder), ""]))


def _figures(report: Report) -> Table:
    table = _table("figure", "value", "bounds")
    for column in table.columns[1:]:
        column.justify = "right"
    for number, group in enumerate(GROUPS):
        figures = [figure for figure in report.figures if figure.group == group]
        if figures and number and table.row_count:
            table.add_section()
        for figure in figures:
            bounds = bounds_text(figure.lower, figure.upper, figure.unit)
            table.add_row(Text(figure.title), number_text(figure.value, figure.unit), bounds)
    return table


def _table(*columns: str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
