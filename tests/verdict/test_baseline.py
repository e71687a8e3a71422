"""Baselines: the file, and a run compared with it. Timings are recorded arrays: no wall clock decides anything."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evidence_folders import CPU, HERE, Recorded, evidence, recipe, recorded_pairs

from edgecnn.process.errors import EdgeError
from edgecnn.report import read_report, write_report
from edgecnn.verdict.baseline import check, update
from edgecnn.verdict.baseline_file import read_baseline, read_outcomes
from edgecnn.verdict.evidence import collect_outcomes, outcomes_bytes
from edgecnn.verdict.gate import judge


def _run(folder: Path, **numbers: Any) -> Path:
    """A run folder as a build publishes it."""
    made = evidence(folder.with_name(f"{folder.name}-stages"), **numbers)
    kept = outcomes_bytes(collect_outcomes(made))
    write_report(judge(recipe(), CPU, HERE, made, run=folder.name), folder, outcomes=kept)
    (folder / "model.onnx").write_bytes((made.plain.path / "model.onnx").read_bytes())
    (folder / "model.int8.onnx").write_bytes((made.int8.path / "model.onnx").read_bytes())
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run and its baseline, made once; tests take copies."""
    folder = tmp_path_factory.mktemp("made")
    update(_run(folder / "one", images=2000, b=20, c=10), folder / "main.baseline.zip")
    return folder


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made / "one", tmp_path / "one")


@pytest.fixture
def remade(run):
    """The run with the same answers by another INT8 model."""
    (run / "model.int8.onnx").write_bytes(b"9" * 290_000)
    return run


@pytest.fixture
def stored(made, tmp_path):
    return Path(shutil.copy(made / "main.baseline.zip", tmp_path))


@pytest.fixture(scope="module")
def worse(tmp_path_factory):
    """The same images, three points less accurate."""
    return _run(tmp_path_factory.mktemp("worse") / "two", images=2000, b=80, c=10)


def _states(report):
    return {one.name: one.state for one in report.checks}


# --- check ---


def test_the_same_answers_in_the_same_time_pass(remade, stored):
    report = check(remade, stored, time_files=lambda first, second: recorded_pairs(1.0))
    assert _states(report) == {"max_regression": "pass", "latency": "pass"}
    assert (report.kind, report.exit_code()) == ("check", 0)
    assert report.figure("agreement").value == 100.0
    assert "400 interleaved pairs in 3 s · batch 1 · AMD EPYC" in report.conditions.latency


def test_a_less_accurate_run_is_a_regression(worse, stored):
    report = check(worse, stored, time_files=lambda first, second: recorded_pairs(1.0))
    found = report.checks[0]
    assert (found.state, report.exit_code()) == ("fail", 1)
    assert found.measured == pytest.approx(3.0)
    assert "60 images right only with the baseline, 0 only with the candidate" in found.detail


def test_the_tolerance_is_the_limit(worse, stored):
    assert check(worse, stored, max_regression=0.05).checks[0].state == "pass"
    assert check(worse, stored, max_regression=0.03).checks[0].state == "not-enough-evidence"


@pytest.mark.parametrize("tolerance", [-0.001, 0.5, 1.0])
def test_a_tolerance_that_is_no_fraction_is_refused(run, stored, tolerance):
    with pytest.raises(EdgeError, match="max_regression is a fraction of 1"):
        check(run, stored, max_regression=tolerance)


def test_a_slower_run_is_a_regression(remade, stored):
    report = check(remade, stored, time_files=lambda first, second: recorded_pairs(1.2))
    assert (_states(report)["latency"], report.exit_code()) == ("fail", 1)
    assert report.checks[1].detail.startswith("REGRESSION: ")


def test_undecided_latency_exits_3(remade, stored):
    random = np.random.default_rng(0)
    times = Recorded(np.exp(random.normal(0, 0.5, 100)), 1.03 * np.exp(random.normal(0, 0.5, 100)))
    report = check(remade, stored, time_files=lambda first, second: times)
    assert (_states(report)["latency"], report.exit_code()) == ("not-enough-evidence", 3)
    assert report.checks[1].detail.startswith("inconclusive: ")


def test_the_stored_int8_model_is_timed_first_and_the_candidate_second(remade, stored):
    given = []

    def time_files(first, second):
        given.append((first.read_bytes(), second))
        return recorded_pairs(1.0)

    check(remade, stored, time_files=time_files)
    assert given == [(b"8" * 290_000, remade / "model.int8.onnx")]


def test_the_baselines_own_model_and_images_pass_however_few_they_are(tmp_path):
    few = _run(tmp_path / "few", images=60, b=2, c=1)
    update(few, tmp_path / "few.zip")
    report = check(few, tmp_path / "few.zip", max_regression=0.0)  # nothing to time it with, nothing to decide by
    assert (_states(report), report.exit_code()) == ({"max_regression": "pass", "latency": "pass"}, 0)
    # Another runtime can answer differently with the same file: that is judged like any other run.
    with np.load(few / "outcomes.npz") as file:
        arrays = dict(file)
    np.savez(few / "outcomes.npz", **{**arrays, "int8_outcome": 1 - arrays["int8_outcome"]})
    assert check(few, tmp_path / "few.zip").checks[0].state == "not-enough-evidence"


@pytest.mark.parametrize("right", [0.0, 0.1])
def test_a_baseline_that_knows_nothing_proves_nothing(tmp_path, right):
    poor = _run(tmp_path / "poor", images=2000, b=0, c=0, accuracy=right)
    update(poor, tmp_path / "poor.zip")
    for same in (True, False):
        (poor / "model.int8.onnx").write_bytes(b"8" * 290_000 if same else b"9")
        report = check(poor, tmp_path / "poor.zip", time_files=lambda first, second: recorded_pairs(1.0))
        assert (report.checks[0].state, report.exit_code()) == ("not-enough-evidence", 3)
        assert "no better than one constant answer" in report.checks[0].detail


@pytest.mark.parametrize("time_files", [None, lambda first, second: None])
def test_latency_that_cannot_be_timed_here_is_incomplete(remade, stored, time_files):
    report = check(remade, stored, time_files=time_files)
    assert _states(report) == {"max_regression": "pass", "latency": "incomplete"}
    assert report.exit_code() == 3


def test_without_the_model_latency_is_not_comparable(run, tmp_path):
    update(run, tmp_path / "small.zip", model=False)
    report = check(run, tmp_path / "small.zip", time_files=lambda first, second: recorded_pairs(1.0))
    assert _states(report) == {"max_regression": "pass", "latency": "not-comparable"}
    assert (report.exit_code(), report.exit_code(strict=True)) == (3, 1)
    assert (tmp_path / "small.zip").stat().st_size < 100_000


def test_other_scored_images_are_not_comparable(tmp_path, stored):
    other = _run(tmp_path / "two", images=2000, b=20, c=10, seed=1)
    report = check(other, stored, time_files=lambda first, second: recorded_pairs(1.0))
    assert _states(report) == {"max_regression": "not-comparable", "latency": "not-comparable"}
    assert report.exit_code() == 3
    assert "other scored images" in report.checks[0].detail


@pytest.mark.parametrize(("key", "value"), [("device", "jetson-orin-nano"), ("metric", "top5")])
def test_another_device_or_metric_is_not_comparable(run, stored, key, value):
    document = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**document, key: value}))
    report = check(run, stored)
    assert report.verdict == "not-comparable"
    assert value in report.checks[0].detail


def test_the_report_of_a_check_is_written_in_every_form(remade, stored, tmp_path):
    report = check(remade, stored, time_files=lambda first, second: recorded_pairs(1.2))
    write_report(report, tmp_path / "checked")
    assert read_report(tmp_path / "checked") == report
    assert "REGRESSION" in (tmp_path / "checked" / "report.md").read_text()
    assert "candidate" in (tmp_path / "checked" / "report.html").read_text()


# --- the file ---


def test_the_same_run_gives_the_same_bytes(run, stored, tmp_path):
    update(run, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == stored.read_bytes()


def test_the_file_keeps_outcomes_report_and_both_models(run, stored):
    baseline = read_baseline(stored)
    assert baseline.report == read_report(run)
    assert baseline.int8_model == (run / "model.int8.onnx").read_bytes()
    assert set(baseline.head.models) == {"model.onnx", "model.int8.onnx"}
    with np.load(run / "outcomes.npz") as file:
        assert all(np.array_equal(file[name], values) for name, values in baseline.outcomes.arrays.items())
    assert set(baseline.outcomes.arrays) == {
        "label", "reference_outcome", "reference_predicted", "float_outcome", "float_predicted", "int8_outcome",
        "int8_predicted",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["report.json", "outcomes.npz", "model.int8.onnx"])
def test_a_run_that_lacks_a_file_is_refused_and_nothing_is_written(run, tmp_path, name):
    (run / name).unlink()
    with pytest.raises(EdgeError, match=name):
        update(run, tmp_path / "new.zip")
    assert not (tmp_path / "new.zip").exists()


def test_a_baseline_that_is_not_there_is_named(run, tmp_path):
    with pytest.raises(EdgeError, match=r"cannot read the baseline .*none\.zip") as caught:
        check(run, tmp_path / "none.zip")
    assert "--update" in caught.value.hint


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(run, stored, share):
    content = stored.read_bytes()
    stored.write_bytes(content[: int(share * len(content))])
    with pytest.raises(EdgeError, match="damaged or not a baseline"):
        check(run, stored)


def test_every_changed_byte_is_refused_or_harmless(run, stored):
    whole, content = read_baseline(stored), stored.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 200).tolist() + list(range(60)):
        stored.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        try:
            found = read_baseline(stored)
        except EdgeError:
            continue
        assert found.head == whole.head  # a byte of the zip's own that means nothing, such as a date
        assert found.int8_model == whole.int8_model


def _rewritten(stored: Path, change: Any) -> None:
    with zipfile.ZipFile(stored) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(stored, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("name", ["../escape.txt", "/etc/passwd", "models/../../x.onnx", "extra.txt", "models/x.onnx"])
def test_a_foreign_member_is_refused_and_never_extracted(run, stored, tmp_path, name):
    _rewritten(stored, lambda members: members.update({name: b"x"}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(EdgeError, match="which no baseline does"):
        check(run, stored)
    assert sorted(tmp_path.rglob("*")) == before


def test_changed_outcomes_are_refused(run, stored):
    _rewritten(stored, lambda members: members.update({"report.json": members["report.json"] + b" "}))
    with pytest.raises(EdgeError, match=r"`report\.json` was changed"):
        check(run, stored)


def test_another_zip_is_refused(run, stored):
    with zipfile.ZipFile(stored, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    with pytest.raises(EdgeError, match="damaged or not a baseline"):
        check(run, stored)


class _Payload:
    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def test_pickled_arrays_are_refused_and_not_run(run, stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    np.savez(buffer, label=np.array([_Payload()], object), int8_outcome=np.ones(1), int8_predicted=np.ones(1))
    (run / "outcomes.npz").write_bytes(buffer.getvalue())
    with pytest.raises(EdgeError, match="holds no per-image outcomes"):
        check(run, stored)
    assert not (tmp_path / "unpickled").exists()


def _npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"PK\x03\x04", _npz(label=np.ones(3)),
        _npz(label=np.ones(3), int8_outcome=np.ones(2), int8_predicted=np.ones(3)),
        _npz(label=np.ones(0), int8_outcome=np.ones(0), int8_predicted=np.ones(0)),
        _npz(label=np.array(["a"]), int8_outcome=np.ones(1), int8_predicted=np.ones(1)),
        _npz(label=np.ones(3, int), int8_outcome=np.full(3, np.nan), int8_predicted=np.ones(3, int)),
        _npz(label=np.ones(3, int), int8_outcome=np.full(3, np.inf), int8_predicted=np.ones(3, int)),
        _npz(label=np.ones(3, int), int8_outcome=np.full(3, 0.7), int8_predicted=np.ones(3, int)),
        _npz(label=np.full(3, np.nan), int8_outcome=np.ones(3), int8_predicted=np.ones(3, int)),
        _npz(label=np.ones(3, int), int8_outcome=np.ones(3), int8_predicted=np.full(3, -1)),
    ],
)  # fmt: skip
def test_outcomes_that_are_none_are_refused(run, stored, content):
    (run / "outcomes.npz").write_bytes(content)
    with pytest.raises(EdgeError, match=r"outcomes\.npz` holds no per-image outcomes"):
        check(run, stored)


@pytest.mark.parametrize("packed", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_members_of_any_packing_are_refused(packed):
    arrays = {"label": np.arange(50) % 3, "int8_outcome": np.ones(50), "int8_predicted": np.arange(50) % 3}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array)
            archive.writestr(f"{name}.npy", member.getvalue())
    whole = buffer.getvalue()
    assert set(read_outcomes("top1", whole, "a").arrays) == set(arrays)
    for place in range(40, 160, 3):
        with contextlib.suppress(EdgeError):
            read_outcomes("top1", whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :], "a")


@pytest.mark.parametrize("header", ["{'descr': '<f8', 'shape': (3,)", "{[]: 1}", "(" * 99])
def test_headers_that_are_none_are_refused(header):
    text = header.encode().ljust(117) + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("label.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(EdgeError, match="holds no per-image outcomes"):
        read_outcomes("top1", buffer.getvalue(), "a")


BOXES = {
    "truth_offsets": np.arange(3), "truth_boxes": np.ones((2, 4)), "truth_classes": np.arange(2),
    "truth_crowd": np.zeros(2, bool), "truth_sizes": np.full((2, 2), 9), "int8_offsets": np.arange(3),
    "int8_boxes": np.ones((2, 4)), "int8_scores": np.ones(2), "int8_classes": np.arange(2),
}  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"truth_classes": np.array(3)}, {"truth_sizes": np.array(3)}, {"truth_offsets": np.arange(3.0)},
        {"int8_scores": np.ones((2, 2))}, {"truth_crowd": np.full(2, 1e308)}, {"truth_sizes": np.ones(2)},
        {"int8_classes": np.array([0, 2**62])},
    ],
)  # fmt: skip
def test_arrays_that_are_no_boxes_are_refused(wrong):
    content = _npz(**{**BOXES, **wrong})
    if not wrong:
        assert set(read_outcomes("map50", content, "a").arrays) == set(BOXES)
        return
    with pytest.raises(EdgeError, match="holds no per-image outcomes"):
        read_outcomes("map50", content, "a")


def test_a_baseline_of_a_newer_schema_is_refused(run, stored):
    def newer(members):
        members["baseline.json"] = members["baseline.json"].replace(b'"schema_version": 1', b'"schema_version": 2')

    _rewritten(stored, newer)
    with pytest.raises(EdgeError, match="not an edgecnn baseline"):
        check(run, stored)
