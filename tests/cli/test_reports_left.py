"""`report` and `check` on whatever a folder may hold: a build's run, what `quantize` left, or something damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from golden_graphs import colours
from typer.testing import CliRunner

from edgecnn.cli.app import app
from edgecnn.process.errors import EdgeError
from edgecnn.report import CompiledCheck, CompiledFor, parse_report
from edgecnn.report.wording import compiled_text
from edgecnn.verdict.runs import require_latest


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `edgecnn quantize` left."""
    folder = tmp_path_factory.mktemp("quantize")
    model = colours(folder / "m.onnx")
    (shape,) = [value.type.tensor_type.shape for value in onnx.load(model).graph.input]
    sides = [dim.dim_value or 24 for dim in shape.dim]
    np.savez(folder / "i.npz", images=np.random.default_rng(0).integers(0, 256, (24, *sides[1:]), dtype=np.uint8))
    options = ["--data", str(folder / "i.npz"), "--device", "cpu-x86", "--images", "16", "--out", str(folder / "out")]
    done = CliRunner().invoke(app, ["quantize", str(model), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder / "out"


def test_report_shows_what_quantize_left(left: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(left)], catch_exceptions=False)
    assert done.exit_code == 0
    assert done.output.count("INT8 coverage") == done.output.count("SQNR") == 1
    as_json = CliRunner().invoke(app, ["report", str(left), "--json"], catch_exceptions=False)
    assert json.loads(as_json.output)["model"] == "m.onnx"


@pytest.mark.parametrize("form", ["--html", "--md", "--junit"])
def test_forms_that_quantize_does_not_write_are_refused(left: Path, form: str) -> None:
    with pytest.raises(EdgeError, match="was left by `edgecnn quantize`, which writes no"):
        CliRunner().invoke(app, ["report", str(left), form], catch_exceptions=False)


def test_check_says_that_it_is_no_run(left: Path) -> None:
    with pytest.raises(EdgeError, match="was left by `edgecnn quantize`"):
        CliRunner().invoke(app, ["check", str(left), "--baseline", "b.zip"], catch_exceptions=False)


@pytest.mark.parametrize("edit", ["number", "list", "missing", "text", "huge"])
def test_an_edited_result_of_quantize(left: Path, tmp_path: Path, edit: str) -> None:
    folder = tmp_path / "out"
    shutil.copytree(left, folder)
    document = json.loads((folder / "report.json").read_text())
    match edit:
        case "number":
            document["quantize"] = 3
        case "list":
            document["size_mb"] = [1, 2]
        case "missing":
            del document["quantize"]["coverage"]["macs"]
        case "text":
            document["size_mb"]["int8"] = "small"
        case "huge":
            document["quantize"]["sqnr_db"] = 10**400
    (folder / "report.json").write_text(json.dumps(document))
    with pytest.raises(EdgeError, match=r"report\.json` is damaged"):
        CliRunner().invoke(app, ["report", str(folder)], catch_exceptions=False)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema_version": 99}', "[" * 100_000, "\x1b[2J"])
@pytest.mark.parametrize("form", ["", "--json"])
def test_something_else_is_refused(tmp_path: Path, text: str, form: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(EdgeError):
        CliRunner().invoke(app, ["report", str(tmp_path), *([form] if form else [])], catch_exceptions=False)


def test_a_form_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(EdgeError, match=r"cannot read `.*report\.html`"):
        CliRunner().invoke(app, ["report", str(tmp_path), "--html"], catch_exceptions=False)


def test_one_word_for_one_thing() -> None:
    checked = CompiledCheck(name="parser", passed=True)
    assert compiled_text(CompiledFor(device="a", built=True, note="", passed=True)) == "built"
    assert compiled_text(CompiledFor(device="a", built=False, note="", checks=(checked,), passed=True)) == "checked"
    assert compiled_text(CompiledFor(device="a", built=False, note="", passed=False)) == "failed"


def test_a_report_of_quantize_is_named_as_such() -> None:
    with pytest.raises(EdgeError, match="compares nothing and times nothing"):
        parse_report('{"schema_version": 1, "quantize": {}}', "r")


def test_latest_that_is_no_link_is_refused(tmp_path: Path) -> None:
    require_latest(tmp_path)
    (tmp_path / "latest").symlink_to("nowhere")
    require_latest(tmp_path)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    with pytest.raises(EdgeError, match="is a folder, not a link to a run"):
        require_latest(tmp_path)
