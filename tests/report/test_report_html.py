"""The HTML page: self-contained, well-formed, complete, with and without matplotlib."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from edgecnn.report import ClassAccuracy, Conditions, LayerError, as_json
from edgecnn.report.html import as_html

VOID = {"meta", "br", "hr", "img", "link", "input"}


class _Page(HTMLParser):
    """Checks that every element is closed in order, and collects ids, references and text."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.ids, self.references, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "action", "data", "srcset", "poster", "xlink:href"):
                self.references.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def _page(text):
    page = _Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def html(built):
    return as_html(built)


def test_the_page_is_well_formed(html):
    page = _page(html)
    assert html.lstrip().startswith("<!DOCTYPE html>")
    assert page.tags.count("html") == page.tags.count("body") == page.tags.count("title") == 1
    ElementTree.fromstring(html.lstrip().removeprefix("<!DOCTYPE html>"))  # as strict as XML, SVG included


def test_the_page_needs_nothing_from_outside(html):
    page = _page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html)


def test_what_the_page_refers_to_is_there_once(html):
    page = _page(html)
    assert len(page.ids) == len(set(page.ids))
    wanted = {*re.findall(r"url\(#([^)]+)\)", html), *(reference[1:] for reference in page.references)}
    assert wanted == set(page.ids)


def test_the_page_holds_verdict_checks_plots_tables_and_conditions(html, built):
    pytest.importorskip("matplotlib")
    text = " ".join("".join(_page(html).text).split())
    assert "FAIL" in text
    assert "Over budget: min_speedup." in text
    for check in built.checks:
        assert check.name in text
        assert " ".join(check.detail.split()) in text
    for title in ("Checks", "Accuracy", "Latency", "Quantization", "Size", "Compiled for", "Conditions", "Notes"):
        assert f"<h2>{title}</h2>" in html
    labels = re.findall(r'aria-label="([^"]+)"', html)
    drawn = ["Accuracy of each class, FP32 and INT8", "Latency of both models", "Quantization error of each layer"]
    assert labels == [label for label in drawn for _ in ("wide", "narrow")]
    for name in ("airplane", "truck", "layer1.0.conv1", "rtx-4060", "node <conv1> & its bias: refused"):
        assert name in text
    assert "99.20 %" in text
    assert "96.80 %" in text
    for note in built.notes:
        assert note in text


def test_the_same_report_gives_the_same_page(built, html):
    assert as_html(built) == html


def test_the_page_follows_light_and_dark(html):
    assert "prefers-color-scheme:dark" in html
    assert not re.search(r"#0[1-6]0[1-6]0[1-6]", html)  # every plot colour has become a variable of the page


def test_names_are_text_and_never_markup(built):
    evil = '<script>alert("x")</script> $\\frac'
    report = built.model_copy(
        update={
            "recipe": "a<b>", "notes": (evil,), "device": evil,
            "classes": tuple(one.model_copy(update={"name": evil}) for one in built.classes),
            "layers": tuple(one.model_copy(update={"name": evil}) for one in built.layers),
        }
    )  # fmt: skip
    page = _page(as_html(report))
    assert "script" not in page.tags
    assert any("a<b>" in text for text in page.text)
    assert sum(evil in text for text in page.text) >= len(built.classes) + len(built.layers)


def test_of_many_classes_those_that_moved_are_plotted(built):
    pytest.importorskip("matplotlib")
    classes = tuple(
        ClassAccuracy(
            name=f"class {number:04d}", images=50, float_accuracy=90.0, int8_accuracy=90.0 - (number % 7 == 0)
        )
        for number in range(1000)
    )
    html = as_html(built.model_copy(update={"classes": classes}))
    plot = html[html.index('aria-label="Accuracy of each class') :].split("</svg>")[0]
    shown = re.findall(r"class (\d{4})", plot)
    assert len(set(shown)) == 24
    assert all(int(number) % 7 == 0 for number in shown)
    assert "The 24 of 1000 classes that changed most" in html


@pytest.mark.parametrize("count", [1, 400])
def test_few_and_many_layers_are_plotted(built, count):
    pytest.importorskip("matplotlib")
    layers = tuple(
        LayerError(
            name=f"conv{number}", op="Conv", macs=1, int8=number % 5 > 0, why_float=None, sqnr_db=30.0 - number / 20
        )
        for number in range(1, count + 1)
    )
    assert "Quantization error of each layer" in as_html(built.model_copy(update={"layers": layers}))


def test_a_page_of_almost_nothing_is_still_a_page(built):
    conditions = Conditions(images=1, hardware="x", backend="y", simulated=True, scoring="z", reference="r")
    bare = built.model_copy(
        update={
            "figures": (), "classes": (), "layers": (), "distribution": None, "compiled_for": (), "notes": (),
            "checks": (), "conditions": conditions,
        }
    )  # fmt: skip
    page = _page(as_html(bare))
    assert "svg" not in page.tags


def test_without_matplotlib_the_page_says_how_to_get_plots(built, tmp_path):
    (tmp_path / "report.json").write_text(as_json(built))
    code = """
        import sys
        sys.modules["matplotlib"] = None  # as if it were not installed
        from pathlib import Path
        from edgecnn.report import read_report
        from edgecnn.report.html import as_html
        folder = Path(sys.argv[1])
        (folder / "report.html").write_text(as_html(read_report(folder)), encoding="utf-8")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=True)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert _page(html).tags.count("svg") == 0
    assert html.count("pip install &#39;edgecnn[report]&#39;") + html.count("pip install 'edgecnn[report]'") == 3


def test_reading_a_report_loads_no_plotting_library(built, tmp_path):
    (tmp_path / "report.json").write_text(as_json(built))
    code = (
        "import sys; from pathlib import Path; from edgecnn.report import read_report; read_report(Path(sys.argv[1]));"
        "sys.exit(any(name in sys.modules for name in ('matplotlib', 'jinja2', 'scipy', 'onnx', 'rich')))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
