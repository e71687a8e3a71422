"""No result moves unnoticed: see `digests`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reports
from digests import Case, Guard, cases, document_told, quantized


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_quantized_graphs(case: Case, guard: Guard) -> None:
    for kind, told in quantized(case).items():
        guard.check(f"{case.name}-{kind}", told)


@pytest.mark.parametrize("report", [reports.classifier, reports.detector], ids=lambda report: report.__name__)
def test_reports_of_artifacts(report: Callable[[Path], dict[str, Any]], guard: Guard, tmp_path: Path) -> None:
    guard.check(f"report-{report.__name__}", document_told(report(tmp_path)))


@pytest.mark.train
def test_report_of_a_build(guard: Guard, tmp_path: Path) -> None:
    guard.check("report-digits", document_told(reports.digits(tmp_path)))


def test_what_is_guarded_is_committed_and_nothing_else(guard: Guard) -> None:
    names = list(guard.told if guard.renew else guard.committed)
    assert {name.rpartition("-")[0] for name in names if not name.startswith("report-")} == {c.name for c in cases()}
    assert sum(name.startswith("report-") for name in names) == 3
