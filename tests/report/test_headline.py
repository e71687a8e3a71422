"""The first line of a report, in every form: what happened, and red where INT8 is slower or another model."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from evidence_folders import CPU, HERE, evidence, recipe
from rich.console import Console

from edgecnn.report import LayerError, as_json, parse_report
from edgecnn.report.html import as_html
from edgecnn.report.markdown import as_markdown
from edgecnn.report.table import print_report
from edgecnn.report.wording import headline
from edgecnn.verdict.figures import distribution
from edgecnn.verdict.gate import judge


def _report(folder, warnings=(), **numbers):
    made = evidence(folder, **numbers)
    path = made.int8.path / "quantize.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "warnings": warnings}))
    return judge(recipe(), CPU, HERE, made)


def _terminal(report):
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system="standard")
    print_report(report, console)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("numbers", "said", "bad"),
    [
        ({"speedup": 1.9, "b": 14, "c": 2}, r"INT8 is 1\.9\dx faster than float, 2\.00 points lower, 3\.7x", False),
        ({"speedup": 1.9, "b": 2, "c": 2}, r"INT8 is 1\.9\dx faster than float, as accurate, 3\.7x smaller\.", False),
        ({"speedup": 0.86, "b": 0, "c": 6}, r"INT8 is 1\.16\dx SLOWER than float, 1\.00 points higher, 3\.7x", True),
        ({"speedup": 1.0, "noise": 0.2, "seed": 3}, r"INT8 is about as fast as float \(", False),
        ({"speedup": 1.9, "warnings": ("SQNR 4.8 dB",)}, r"WARNING: SQNR 4\.8 dB\. INT8 is 1\.9", True),
        ({"speed": {"measured": False, "why": "no board"}}, r"INT8 is 0\.33 points lower, 3\.7x smaller\.", False),
    ],
)  # fmt: skip
def test_the_first_line_says_what_happened(tmp_path, numbers, said, bad):
    report = _report(tmp_path, **numbers)
    assert re.match(said, headline(report)[0])
    assert headline(report)[1] is bad
    plain = _terminal(report)
    assert ("\x1b[1;31m" in plain.split("PASS")[0]) is bad  # bold red before the verdict, which is green
    assert re.search(said.split(",")[0], " ".join(re.sub(r"\x1b\[[\d;]*m", "", plain).split()))
    assert ('class="headline bad"' in as_html(report)) is bad
    assert re.search(f"^\\*\\*(:red_circle: )?{said}", as_markdown(report), re.MULTILINE)
    assert (":red_circle:" in as_markdown(report)) is bad


def test_every_form_names_network_input_dataset_classes_and_training(passing):
    for text in (as_html(passing), as_markdown(passing), " ".join(_terminal(passing).split())):
        for part in ("gap (small)", "32 x 32 px, gray", "digits", "10 classes", "none, weights as given"):
            assert part in text
    assert parse_report(as_json(passing), "here") == passing


def test_a_report_of_before_is_still_read(passing):
    document = json.loads(as_json(passing))
    for name in ("model", "input", "data", "classes", "training"):
        del document["conditions"][name]
    del document["warnings"]
    old = parse_report(json.dumps(document), "here")
    assert "<h2>Checks</h2>" in as_html(old)


@pytest.mark.parametrize("seed", range(5))
def test_the_headline_ratio_lies_within_its_bounds(tmp_path, seed):
    figure = _report(tmp_path, noise=0.4, pairs=60, seed=seed).figure("speedup")
    assert figure.lower <= figure.value <= figure.upper


def test_markdown_is_five_rows_and_the_rest_is_folded(built):
    above, _, folded = as_markdown(built).partition("<details>")
    rows = [line for line in above.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 5
    assert "## Conditions" in folded
    assert folded.rstrip().endswith("</details>")


def test_a_long_tail_does_not_press_the_rest_into_a_bar():
    random = np.random.default_rng(0)
    ms = [2 + 0.1 * random.normal(0, 1, 500) + (random.random(500) < 0.08) * random.exponential(50, 500) for _ in "ab"]
    found = distribution(ms[0], ms[1], "FP32", "INT8")
    assert sum(found.first_counts) == 500
    assert found.edges_ms[-1] < 4
    assert sum(count > 0 for count in found.first_counts[:-1]) > 15


def test_plots_name_layers_and_leave_room_for_markers(built):
    plots = pytest.importorskip("edgecnn.report.plots")
    layers = tuple(
        LayerError(name=f"conv{n}", op="Conv", macs=1, int8=True, why_float=None, sqnr_db=float(n % 50))
        for n in range(120)
    )  # fmt: skip
    for width in (plots.WIDTH, plots.NARROW):
        svg = plots.layers_svg(layers, width)
        assert "conv50" in svg  # of the worst
        assert "conv49" not in svg  # the best
    zero = tuple(one.model_copy(update={"int8_accuracy": 0.0}) for one in built.classes)
    svg = plots.classes_svg(zero, "AP by mAP50")
    assert "AP by mAP50, %" in svg
    assert "\N{MINUS SIGN}" not in svg.split("AP by mAP50, %")[0]  # no tick below 0


def test_precision_over_recall_keeps_its_width_on_a_telephone(built):
    plots = pytest.importorskip("edgecnn.report.plots")
    from edgecnn.report.detection import PrecisionRecall

    curve = PrecisionRecall(iou=0.5, float_precision=(1.0, 0.5), int8_precision=(1.0, 0.4))
    assert "mean of the classes" in plots.precision_svg(curve)
