"""Budgets into verdicts, from hand-made artifacts with known numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from evidence_folders import CPU, HERE, NO_BOARD, ORIN, climb, evidence, recipe
from scoring import counted_check

from edgecnn.process.errors import EdgeError
from edgecnn.verdict.gate import judge

OFFLINE = {
    "device": "jetson-orin-nano", "built": False, "runnable": False, "note": "engine: not built (no board)",
    "checks": [{"name": "TensorRT 10.3 rules", "passed": True, "detail": ""}],
}  # fmt: skip
UNMEASURED = {"measured": False, "why": "not run: no board"}
VALID = {"p99_valid": True, "p99_invalid_why": "", "clocks_locked": True}


def _judged(tmp_path, budgets, profile=CPU, facts=HERE, **numbers):
    return judge(recipe(**budgets), profile, facts, evidence(tmp_path, **numbers))


def _check(report, name):
    return next(check for check in report.checks if check.name == name)


def test_a_build_within_its_budgets_passes(tmp_path):
    report = _judged(tmp_path, {"max_accuracy_drop": 0.02, "min_speedup": 1.5, "max_size_mb": 0.3})
    assert [(check.name, check.state) for check in report.checks] == [
        ("engine", "pass"), ("max_accuracy_drop", "pass"), ("min_speedup", "pass"), ("max_size_mb", "pass"),
    ]  # fmt: skip
    assert (report.verdict, report.exit_code(), report.exit_code(strict=True)) == ("pass", 0, 0)


def test_a_build_without_budgets_reports_and_passes(tmp_path):
    report = _judged(tmp_path, {})
    assert [check.name for check in report.checks] == ["engine"]
    assert report.exit_code() == 0
    assert report.figure("accuracy_drop").value == pytest.approx(100 * 2 / 600)


@pytest.mark.parametrize(
    ("b", "c", "budget", "state"),
    [
        (4, 2, 0.02, "pass"),  # 0.33 points, upper bound 1.1
        (40, 2, 0.02, "fail"),  # 6.3 points
        (12, 2, 0.02, "not-enough-evidence"),  # 1.67 points: the bounds reach both sides
        (0, 0, 0.0, "not-enough-evidence"),  # a budget of zero can never be proved
    ],
)
def test_the_accuracy_budget_is_decided_by_the_bounds(tmp_path, b, c, budget, state):
    check = _check(_judged(tmp_path, {"max_accuracy_drop": budget}, b=b, c=c), "max_accuracy_drop")
    assert check.state == state
    assert check.measured == pytest.approx(100 * (b - c) / 600)
    assert check.lower <= check.measured <= check.upper
    assert f"{b} images right only with float, {c} only with INT8, of 600" in check.detail
    assert "mid-p" in check.detail


@pytest.mark.parametrize(
    ("b", "state", "checks", "code"),
    [
        (12, "missed", ["fail"], 1),  # scored images cannot decide, but no rung came below the budget
        (40, "missed", ["fail"], 1),
        (4, "missed", [], 0),  # proved on scored images: select was unlucky
        (12, "within", [], 3),
        (12, "held", [], 3),
    ],
)
def test_a_budget_that_no_rung_holds_fails_the_build(tmp_path, b, state, checks, code):
    climbed = climb(state, 0.06, 0.05, 0.07)
    report = _judged(tmp_path, {"max_accuracy_drop": 0.02}, b=b, climb=climbed)
    found = [check for check in report.checks if check.name == "recovery"]
    assert [check.state for check in found] == checks
    assert report.exit_code() == code
    if found:
        assert found[0].measured == pytest.approx(5.0)
        assert "no rung up to `bias` holds the accuracy budget on 1,000 select images" in found[0].detail
        assert "the best is `equalize`" in found[0].detail
        assert "a note of the climb" in report.notes
    assert report.ladder.best == "equalize"
    assert report.conditions.rungs == "ranges, equalize"


def test_a_record_without_a_ladder_has_none_in_its_report(tmp_path):
    assert _judged(tmp_path, {"max_accuracy_drop": 0.02}).ladder is None


def test_too_few_images_for_the_budget_are_counted():
    check = counted_check("max_accuracy_drop", 9, 7, 1000, 0.005)
    assert check.state == "not-enough-evidence"
    assert "about 11,023 images would decide" in check.detail  # 6.2 * 0.016 / (0.005 - 0.002)^2


@pytest.mark.parametrize(("b", "c"), [(0, 0), (60, 0)])
def test_below_200_images_nothing_is_decided(b, c):
    check = counted_check("max_accuracy_drop", b, c, 199, 0.10)
    assert check.state == "not-enough-evidence"
    assert "199 images decide nothing, at least 200 are needed" in check.detail
    assert counted_check("max_accuracy_drop", b, c, 200, 0.10).state == ("fail" if b else "pass")


def test_mid_p_never_decides():
    significant = counted_check("max_accuracy_drop", 160, 80, 50_000, 0.01)  # p below 1e-6, drop of 0.16 points
    assert significant.state == "pass"


def test_an_undecided_build_exits_3_and_strictly_1(tmp_path):
    report = _judged(tmp_path, {"max_accuracy_drop": 0.02}, b=12)
    assert (report.exit_code(), report.exit_code(strict=True)) == (3, 1)


def test_a_failed_budget_exits_1_whatever_else_is_undecided(tmp_path):
    report = _judged(tmp_path, {"max_size_mb": 0.1, "max_p99_ms": 8.0}, speed=UNMEASURED)
    assert (_check(report, "max_size_mb").state, _check(report, "max_p99_ms").state) == ("fail", "incomplete")
    assert (report.verdict, report.exit_code()) == ("fail", 1)


@pytest.mark.parametrize(("limit", "state"), [(1.5, "pass"), (2.0, "fail"), (1.8, "not-enough-evidence")])
def test_min_speedup_is_decided_by_the_bounds_of_the_pairs(tmp_path, limit, state):
    check = _check(_judged(tmp_path, {"min_speedup": limit}, pairs=400), "min_speedup")
    assert check.state == state
    assert check.measured == pytest.approx(1.8, rel=0.02)
    assert "400 interleaved pairs" in check.detail


def test_few_pairs_decide_no_speedup(tmp_path):
    check = _check(_judged(tmp_path, {"min_speedup": 1.0}, pairs=40), "min_speedup")
    assert check.state == "not-enough-evidence"


@pytest.mark.parametrize(("limit", "state"), [(4.0, "pass"), (2.0, "fail")])
def test_p99_is_decided_in_a_valid_run(tmp_path, limit, state):
    report = _judged(tmp_path, {"max_p99_ms": limit}, pairs=2000, speed=VALID)
    assert _check(report, "max_p99_ms").state == state


def test_p99_within_its_own_bounds_is_undecided(tmp_path):
    p99 = _judged(tmp_path / "a", {}, pairs=2000, speed=VALID).figure("int8_p99_ms").value
    assert _check(_judged(tmp_path / "b", {"max_p99_ms": p99}, pairs=2000, speed=VALID), "max_p99_ms").state == (
        "not-enough-evidence"
    )


@pytest.mark.parametrize("limit", [0.001, 1000.0])
def test_p99_on_a_shared_machine_is_never_decided(tmp_path, limit):
    check = _check(_judged(tmp_path, {"max_p99_ms": limit}, pairs=2000), "max_p99_ms")
    assert check.state == "not-enough-evidence"
    assert "a shared machine" in check.detail


def test_p99_needs_1024_queries(tmp_path):
    check = _check(_judged(tmp_path, {"max_p99_ms": 1000.0}, pairs=1023, speed=VALID), "max_p99_ms")
    assert check.state == "not-enough-evidence"
    assert "1,023 queries, p99 needs 1,024" in check.detail


def test_without_a_board_the_build_is_incomplete_even_without_a_latency_budget(tmp_path):
    report = _judged(
        tmp_path, {"max_accuracy_drop": 0.02}, ORIN, NO_BOARD, engine=OFFLINE, speed=UNMEASURED, simulated=True
    )
    assert _check(report, "max_accuracy_drop").state == "pass"
    assert _check(report, "max_accuracy_drop").detail.startswith("simulated (onnxruntime 1.32.0)")
    assert _check(report, "engine").detail == "not built (no board); TensorRT 10.3 rules: passed"
    assert (report.verdict, report.exit_code(), report.exit_code(strict=True)) == ("incomplete", 3, 1)
    assert "engine: not built (no board)" in report.notes
    assert any("simulated" in note for note in report.notes)
    assert report.conditions.simulated
    assert report.distribution is None
    assert report.figure("speedup").value is None


def test_latency_budgets_without_a_board_are_incomplete_with_the_reason(tmp_path):
    report = _judged(
        tmp_path, {"min_speedup": 1.0, "max_p99_ms": 8.0}, ORIN, NO_BOARD, engine=OFFLINE, speed=UNMEASURED
    )
    for name in ("min_speedup", "max_p99_ms"):
        assert _check(report, name).state == "incomplete"
        assert _check(report, name).detail == "not measured: not run: no board"


def test_an_engine_that_is_built_but_not_run_is_incomplete(tmp_path):
    engine = {"built": True, "runnable": False, "note": "", "engine": "rtx-4060.engine"}
    check = _check(_judged(tmp_path, {}, engine=engine), "engine")
    assert (check.state, check.detail) == ("incomplete", "built, not run (no device)")


def test_a_refused_graph_fails(tmp_path):
    engine = {**OFFLINE, "checks": [{"name": "TensorRT 10.3 rules", "passed": False, "detail": "node conv1: opset 23"}]}
    check = _check(_judged(tmp_path, {}, engine=engine), "engine")
    assert (check.state, check.detail) == ("fail", "TensorRT 10.3 rules: node conv1: opset 23")


def test_a_check_that_was_not_done_is_told_and_not_counted_as_passed(tmp_path):
    engine = {**OFFLINE, "checks": [{"name": "parser", "passed": None, "detail": "not done: pip install it"}]}
    check = _check(_judged(tmp_path, {}, engine=engine), "engine")
    assert (check.state, check.detail) == ("incomplete", "not built (no board); parser: not done: pip install it")


def test_a_noisy_machine_is_named(tmp_path):
    quiet = _judged(tmp_path / "quiet", {})
    assert not any("noisy" in note for note in quiet.notes)
    made = evidence(tmp_path / "noisy")
    random = np.random.default_rng(0)
    plain, int8 = 2 + 0.1 * random.random(400), 1 + 0.1 * random.random(400) + (random.random(400) < 0.8)
    np.savez(made.speed.path / "times.npz", float_ms=plain, int8_ms=int8)
    noisy = judge(recipe(), CPU, HERE, made)
    assert any("the machine was noisy" in note for note in noisy.notes)
    assert noisy.figure("p5_speedup").value == pytest.approx(2.0, rel=0.05)
    assert noisy.figure("speedup").value == pytest.approx(1.0, rel=0.05)


def test_the_figures_are_those_of_the_outcomes(tmp_path):
    report = _judged(tmp_path, {}, b=9, c=3)
    values = {figure.name: figure.value for figure in report.figures}
    assert values["reference_accuracy"] == pytest.approx(97.0)
    assert values["int8_accuracy"] == pytest.approx(96.0)
    assert values["discordant"] == pytest.approx(2.0)
    assert (values["only_float_right"], values["only_int8_right"]) == (9, 3)
    assert values["agreement"] == pytest.approx(98.0)
    assert values["coverage_macs"] == pytest.approx(99.2)
    assert values["int8_size"] == pytest.approx(0.29)
    assert values["float_layers"] == 1
    assert sum(one.images for one in report.classes) == 600
    weighted = sum(one.images * one.int8_accuracy for one in report.classes) / 600
    assert weighted == pytest.approx(96.0)
    assert all(figure.unit is not None and figure.conditions for figure in report.figures)


@pytest.mark.parametrize(
    ("least", "numbers", "state", "words"),
    [
        (0.90, {"b": 4, "c": 2}, "pass", "the lower of FP32 97.00 and INT8 96.67 %"),
        (0.99, {"b": 4, "c": 2}, "fail", ""),
        (0.965, {"b": 4, "c": 2}, "not-enough-evidence", ""),
        (0.90, {"b": 100, "c": 0}, "fail", "INT8 80.33 %"),
        (0.50, {"b": 0, "c": 280, "accuracy": 0.46}, "fail", "FP32 46.00"),  # FP32 too must reach it
        (0.50, {"images": 150, "b": 1, "c": 1}, "not-enough-evidence", "150 images decide nothing"),
    ],
)
def test_the_least_accuracy_binds_float_and_int8(tmp_path, least, numbers, state, words):
    report = judge(recipe(min_accuracy=least), CPU, HERE, evidence(tmp_path, **numbers))
    found = next(one for one in report.checks if one.name == "min_accuracy")
    assert found.state == state
    assert found.lower < found.measured < found.upper
    assert words in found.detail


@pytest.mark.parametrize(
    ("numbers", "state", "words"),
    [
        ({"b": 0, "c": 0, "accuracy": 0.0}, "not-enough-evidence", "FP32: right on 0 of 600 images"),
        ({"b": 0, "c": 0, "accuracy": 0.1}, "not-enough-evidence", "no better than one constant answer"),
        ({"b": 560, "c": 0}, "fail", "INT8: right on 22 of 600 images"),
    ],
)
@pytest.mark.parametrize("budgets", [{}, {"max_accuracy_drop": 0.4}])
def test_nothing_proved_is_no_pass(tmp_path, numbers, state, words, budgets):
    report = judge(recipe(**budgets), CPU, HERE, evidence(tmp_path, **numbers))
    assert report.verdict == state
    assert words in next(one for one in report.checks if one.name == "accuracy").detail
    assert all(one.state != "pass" for one in report.checks if one.name == "max_accuracy_drop")


def test_the_logits_sqnr_is_signal_over_error_power(tmp_path):
    made = evidence(tmp_path, b=0, c=0)
    path = made.reference.path / "outcomes.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["logits"] = np.full((600, 10), 10.0, np.float32)
    np.savez(path, **arrays)
    np.savez(made.after.path / "outcomes.npz", **{**arrays, "logits": np.full((600, 10), 9.0, np.float32)})
    assert judge(recipe(), CPU, HERE, made).figure("logits_sqnr").value == pytest.approx(20.0)
    np.savez(made.after.path / "outcomes.npz", **arrays)
    assert judge(recipe(), CPU, HERE, made).figure("logits_sqnr").value == 200.0  # equal


def test_the_distribution_counts_every_run(tmp_path):
    found = _judged(tmp_path, {}, pairs=500).distribution
    assert sum(found.first_counts) == sum(found.second_counts) == 500
    assert len(found.edges_ms) == len(found.first_counts) + 1
    assert found.second_p50_ms < found.first_p50_ms


def test_the_data_digest_is_of_the_scored_images_and_labels(tmp_path):
    made = evidence(tmp_path)
    digest = judge(recipe(), CPU, HERE, made).data_digest
    np.save(made.data.path / "select-00000.npy", np.zeros(3))
    assert judge(recipe(), CPU, HERE, made).data_digest == digest
    labels = np.load(made.data.path / "scored_labels.npy")
    np.save(made.data.path / "scored_labels.npy", labels[::-1])
    assert judge(recipe(), CPU, HERE, made).data_digest != digest


def test_scores_of_other_images_are_refused(tmp_path):
    made = evidence(tmp_path)
    with np.load(made.after.path / "outcomes.npz") as file:
        arrays = dict(file)
    np.savez(made.after.path / "outcomes.npz", **{**arrays, "label": arrays["label"][::-1]})
    with pytest.raises(EdgeError, match="not of the same images"):
        judge(recipe(), CPU, HERE, made)


def test_a_damaged_artifact_is_named(tmp_path):
    made = evidence(tmp_path)
    document = json.loads((made.after.path / "score.json").read_text())
    (made.after.path / "score.json").write_text(json.dumps({**document, "n": "many"}))
    with pytest.raises(EdgeError, match=r"score-after/score\.json` is damaged: n:"):
        judge(recipe(), CPU, HERE, made)


def test_an_exact_layer_has_no_number_json_could_not_hold(tmp_path):
    made = evidence(tmp_path)
    path = made.int8.path / "quantize.json"
    document = json.loads(path.read_text())
    document["layers"][0]["sqnr_db"] = document["sqnr_db"] = float("inf")
    path.write_text(json.dumps(document))
    report = judge(recipe(), CPU, HERE, made)
    assert report.layers[0].sqnr_db is None
    assert report.figure("calibration_sqnr").value is None
