"""The report as JUnit XML: each check a test case, so that any CI shows which promise broke."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from edgecnn.report import Report, State
from edgecnn.report.wording import bounds_text, limit_text, measured_text, state_text

# Control characters that no XML 1.0 document can hold, not even escaped.
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_junit(report: Report) -> str:
    """JUnit XML. Undecided checks, a failed `compile_for` among them, are skipped."""
    suite = ElementTree.Element(
        "testsuite", name=_text(f"edgecnn.{report.recipe}.{report.device}"), timestamp=report.when
    )
    cases: list[tuple[str, State, str]] = []
    for check in report.checks:
        found = [measured_text(check), bounds_text(check.lower, check.upper, check.unit), limit_text(check)]
        parts = [part for part in (*found, check.detail) if part and part != "–"]
        cases.append((check.name, check.state, " · ".join(parts)))
    for compiled in report.compiled_for:
        cases.append((f"compile_for.{compiled.device}", "pass" if compiled.passed else "incomplete", compiled.note))
    failures = skipped = 0
    for name, state, text in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=_text(f"edgecnn.{report.recipe}"), name=_text(name))
        case.set("time", "0")
        message = _text(f"{state_text(state, report.kind)}: {text}")
        if state == "pass":
            ElementTree.SubElement(case, "system-out").text = message
        elif state == "fail":
            failures += 1
            ElementTree.SubElement(case, "failure", message=message, type=state).text = message
        else:
            skipped += 1
            ElementTree.SubElement(case, "skipped", message=message)
    for name, count in (("tests", len(cases)), ("failures", failures), ("errors", 0), ("skipped", skipped)):
        suite.set(name, str(count))
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _text(text: str) -> str:
    return FORBIDDEN.sub("?", text)
