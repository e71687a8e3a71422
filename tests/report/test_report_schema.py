"""The report's schema: what it says, what it exits with, and that it comes back from its file unchanged."""

from __future__ import annotations

import json

import numpy as np
import pytest
from evidence_folders import climb, quantize_document
from pydantic import ValidationError

from edgecnn.process.errors import EdgeError
from edgecnn.report import Check, CompiledFor, Report, as_json, parse_report, read_report, write_report
from edgecnn.verdict.evidence import collect_outcomes, outcomes_bytes


def test_json_round_trips(built):
    assert parse_report(as_json(built), "here") == built
    assert Report.model_validate_json(built.model_dump_json()) == built


def test_the_json_says_the_verdict_and_the_version(built):
    document = json.loads(as_json(built))
    assert document["schema_version"] == 1
    assert document["verdict"] == built.verdict
    assert {figure["unit"] for figure in document["figures"]} >= {"%", "points", "ms", "x", "MB", "dB"}
    assert all(figure["conditions"] for figure in document["figures"])


@pytest.mark.parametrize(
    ("states", "code", "strict"),
    [
        ((), 0, 0), (("pass", "pass"), 0, 0), (("pass", "fail", "incomplete"), 1, 1),
        (("pass", "not-enough-evidence"), 3, 1), (("incomplete",), 3, 1), (("not-comparable", "pass"), 3, 1),
    ],
)  # fmt: skip
def test_exit_codes(built, states, code, strict):
    checks = tuple(Check(name=f"check{number}", state=state, detail="x") for number, state in enumerate(states))
    report = built.model_copy(update={"checks": checks, "compiled_for": ()})
    assert (report.exit_code(), report.exit_code(strict=True)) == (code, strict)


def test_a_failed_compile_for_device_leaves_a_passing_build_incomplete(passing):
    assert passing.exit_code() == 0
    failed = passing.with_compiled([CompiledFor.failed("rtx-4060", "the parser refused node conv1")])
    assert (failed.verdict, failed.exit_code(), failed.exit_code(strict=True)) == ("incomplete", 3, 1)
    assert passing.compiled_for == ()


@pytest.mark.parametrize(
    ("built_engine", "results", "passed"),
    [
        (True, [True, True], True), (False, [True, None], True), (False, [True, False], False),
        (False, [None], False), (False, [], False), (True, [], True),
    ],
)  # fmt: skip
def test_compiled_for_is_read_from_the_engine_file(tmp_path, built_engine, results, passed):
    checks = [{"name": f"check {number}", "passed": result, "detail": ""} for number, result in enumerate(results)]
    document = {"device": "rtx-4060", "built": built_engine, "runnable": False, "note": "a note", "checks": checks}
    (tmp_path / "engine.json").write_text(json.dumps(document))
    found = CompiledFor.from_engine(tmp_path)
    assert (found.device, found.built, found.note, found.passed) == ("rtx-4060", built_engine, "a note", passed)


def test_compiled_for_tells_what_its_ladder_has_to_say(tmp_path):
    document = {"device": "rtx-4060", "built": True, "runnable": False, "note": "compiled", "checks": []}
    (tmp_path / "engine.json").write_text(json.dumps(document))
    quantized = {**quantize_document(3, np.random.default_rng(0)), **climb("missed", 0.05)}
    (tmp_path / "quantize.json").write_text(json.dumps(quantized))
    assert CompiledFor.from_engine(tmp_path, tmp_path).note == "compiled; a note of the climb"


def test_a_report_cannot_be_changed(built):
    with pytest.raises(ValidationError, match="frozen"):
        built.device = "other"


def test_a_run_folder_holds_every_form_and_the_outcomes(built, built_evidence, tmp_path):
    write_report(built, tmp_path / "run", outcomes=outcomes_bytes(collect_outcomes(built_evidence)))
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["junit.xml", "outcomes.npz", "report.html", "report.json", "report.md"]
    assert read_report(tmp_path / "run") == built
    with np.load(tmp_path / "run" / "outcomes.npz", allow_pickle=False) as outcomes:
        assert 100 * outcomes["int8_outcome"].mean() == pytest.approx(built.figure("int8_accuracy").value)


def test_a_rewrite_replaces_the_files(built, passing, tmp_path):
    write_report(built, tmp_path)
    write_report(passing, tmp_path)
    assert read_report(tmp_path) == passing


def test_a_folder_that_cannot_be_written_is_an_error(built, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EdgeError, match="cannot write"):
        write_report(built, tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"), ("[1]", "not a report of schema 1"),
        ('{"schema_version": 2}', "not a report of schema 1"),
        ('{"schema_version": 1}', "not a valid report: recipe"), ("[" * 100_000, "is not JSON"),
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused(tmp_path, text, message):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(EdgeError, match=message):
        read_report(tmp_path)


def test_a_folder_without_a_report_is_named(tmp_path):
    with pytest.raises(EdgeError, match=r"cannot read .*report\.json"):
        read_report(tmp_path)
