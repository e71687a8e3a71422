"""The report on a terminal, as Markdown and as JUnit XML."""

from __future__ import annotations

import io
from xml.etree import ElementTree

import pytest
from rich.console import Console

from edgecnn.report import Check
from edgecnn.report.html import as_html
from edgecnn.report.junit import as_junit
from edgecnn.report.markdown import as_markdown
from edgecnn.report.table import print_report
from edgecnn.report.wording import (
    bounds_text,
    ladder_lines,
    ladder_text,
    limit_text,
    measured_text,
    number_text,
    verdict_sentence,
)


def _terminal(report, width=100):
    console = Console(file=io.StringIO(), width=width)
    print_report(report, console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_table_says_everything_without_colour(built, width):
    text = _terminal(built, width)
    assert "\x1b" not in text
    assert "FAIL  Over budget: min_speedup." in text
    for words in ("max_accuracy_drop", "1.00 points", "≤ 2.00 points", "≥ 3.00x", "NOT ENOUGH", "rtx-4060"):
        assert words in text
    for figure in built.figures:
        assert figure.title in text
    assert "conditions: 2,000 images · AMD EPYC, 2 cores" in " ".join(text.split())
    assert "a shared machine" in text
    assert max(len(line) for line in text.splitlines()) <= width


def test_names_are_not_taken_for_markup(built):
    odd = Check(name="engine", state="incomplete", detail="node [bold]x[/bold] [/nothing]")
    text = _terminal(built.model_copy(update={"checks": (odd,)}))
    assert "[bold]x[/bold] [/nothing]" in text


def test_nothing_in_a_report_steers_the_terminal(built):
    odd = built.conditions.model_copy(update={"hardware": "\x1b]0;owned\x07Orin\u202e"})
    text = _terminal(built.model_copy(update={"conditions": odd, "notes": ("class `\x1b[2J`",)}))
    assert all(one.isprintable() or one == "\n" for one in text)
    assert "\\x1b[2J" in text


def test_markdown_has_a_row_for_each_check_and_figure(built):
    text = as_markdown(built)
    assert text.startswith("# edgecnn quickstart on cpu-x86: FAIL\n")
    assert f"| `min_speedup` | **FAIL** | {measured_text(built.checks[2])} |" in text
    for figure in built.figures:
        assert f"| {figure.title} | {number_text(figure.value, figure.unit)} |" in text
    assert "node &lt;conv1> & its bias: refused" in text
    for note in built.notes:
        assert f"- {note}" in text


def test_every_markdown_table_is_even(built):
    piped = built.model_copy(update={"checks": (Check(name="engine", state="fail", detail="a | b\nc"),)})
    widths = set()
    for line in as_markdown(piped).splitlines():
        if line.startswith("|"):
            widths.add(line.replace("\\|", "").count("|"))
        elif widths:
            assert len(widths) == 1
            widths = set()
    assert "a \\| b c" in as_markdown(piped)


def _cases(report):
    suite = ElementTree.fromstring(as_junit(report).encode()).find("testsuite")
    return suite, {case.get("name"): [part.tag for part in case] for case in suite}


def test_junit_tells_failures_from_the_undecided(built):
    suite, cases = _cases(built)
    assert cases == {
        "engine": ["system-out"], "max_accuracy_drop": ["system-out"], "min_speedup": ["failure"],
        "max_p99_ms": ["skipped"], "max_size_mb": ["system-out"], "compile_for.rtx-4060": ["system-out"],
        "compile_for.jetson-orin-nano": ["skipped"],
    }  # fmt: skip
    assert [suite.get(name) for name in ("tests", "failures", "skipped", "errors")] == ["7", "1", "2", "0"]


def test_junit_survives_what_xml_cannot_hold(built):
    odd = Check(name="engine", state="fail", detail='a\x00\x1b[31m <b> & "c" \ud800')
    suite, _ = _cases(built.model_copy(update={"checks": (odd,), "compiled_for": ()}))
    assert suite.find("testcase/failure").get("message") == 'FAIL: a??[31m <b> & "c" ?'


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (97.333, "%", "97.33 %"), (0.4, "points", "0.40 points"), (0.4123, "ms", "0.412 ms"), (41.23, "ms", "41.2 ms"),
        (1.844, "x", "1.84x"), (1.0214, "x", "1.021x"), (0.29, "MB", "0.290 MB"), (31.04, "dB", "31.0 dB"),
        (1, "layers", "1 layer"), (1234.4, "images/s", "1,234 images/s"), (None, "x", "not measured"),
        (0.03469, "p", "0.0347"),
    ],
)  # fmt: skip
def test_numbers_have_the_digits_of_their_unit(value, unit, text):
    assert number_text(value, unit) == text


def test_bounds_and_limits():
    assert bounds_text(-0.031, 1.2, "points") == "-0.03 … 1.20"
    assert bounds_text(1.0, 1.5, "x") == "1.000 … 1.50"
    assert bounds_text(None, 1.0, "x") == ""
    check = Check(name="min_speedup", state="pass", limit=2.0, unit="x", detail="")
    assert limit_text(check) == "≥ 2.00x"
    assert limit_text(check.model_copy(update={"name": "max_p99_ms", "unit": "ms"})) == "≤ 2.000 ms"


def test_the_sentence_names_what_decided(built, passing):
    assert verdict_sentence(passing) == "All 3 checks passed."
    assert verdict_sentence(built) == "Over budget: min_speedup."
    undecided = built.model_copy(update={"checks": passing.checks})
    assert verdict_sentence(undecided) == "Compile_for failed: jetson-orin-nano."


def test_the_ladder_stands_in_every_form(built):
    markdown, page, terminal = as_markdown(built), as_html(built), _terminal(built, 120)
    assert "## Recovery ladder" in markdown
    assert "| ranges | yes | 93.00 % | 4.00 | 3.60 … 4.40 | 20.0 dB | 0 | 100.0 % | 1.00 | 1.5 |" in markdown
    assert "| equalize | no | 92.00 % | 5.00 |" in markdown
    assert "<h2>Recovery ladder</h2>" in page
    sentence = "`bias` holds it. 1,000 select images, float 97.00 %, float simulation."
    assert sentence in markdown
    assert sentence.replace("`", "") in page
    for text in (markdown, page, " ".join(terminal.split())):
        assert "estimated from the share of MACs in INT8, not measured" in text
        assert "drop 5.00 points, so to say" in text
    assert "Recovery rungs: ranges, bias" in markdown


def test_a_report_without_a_climb_says_nothing_of_a_ladder(passing):
    assert passing.ladder is None
    for text in (as_markdown(passing), as_html(passing), _terminal(passing)):
        assert "ecovery ladder" not in text


def test_ladder_lines_are_aligned(built):
    head, first, second, *others = ladder_lines(built.ladder)
    assert len(head) == len(first) == len(second)
    assert head.split()[:4] == ["rung", "kept", "acc.", "%"]
    assert max(map(len, ladder_lines(built.ladder))) <= 80
    assert others[0].strip() == "drop 5.00 points, so to say"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("unasked", "was not climbed"), ("held", "`bias` holds it"), ("within", "within it, but above its half"),
        ("missed", "no rung up to `bias` holds it; the best is `bias`"),
    ],
)  # fmt: skip
def test_the_ladders_sentence(built, state, words):
    assert words in ladder_text(built.ladder.model_copy(update={"state": state}))
