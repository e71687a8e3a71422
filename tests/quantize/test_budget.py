"""An accuracy budget through the whole quantizer and its command line: labels, splits, exit codes, what is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from color_graphs import CONTRACT, color_net, colors, hard_net, saved
from quantize_graphs import CPU, TENSORRT, Pictures
from typer.testing import CliRunner

from edgecnn import api
from edgecnn.backends.cpu import read_cpu
from edgecnn.cli.app import app
from edgecnn.foreign.budget import calibrating_spec, promise_of, recover_of, share_out, verdict_of
from edgecnn.process.errors import EdgeError
from edgecnn.quantize import quantize_model
from edgecnn.quantize.ladder.judge import Selected
from edgecnn.recipe.device import DeviceFacts, Scheme, kernels
from edgecnn.recipe.recipe import Promise, QuantizeSpec, RecoverSpec


def spec(recover: Any = "off", **given: Any) -> QuantizeSpec:
    return QuantizeSpec.model_validate({"images": 32, "ranges": "minmax", "recover": recover, **given})


def quantized(out: Path, model: onnx.ModelProto, budget: float | None, **given: Any) -> dict[str, Any]:
    images, labels = colors(400)
    out.mkdir()
    quantize_model(
        out, spec(**given), TENSORRT, saved(model, out / "given.onnx"), Pictures(images[:100]), CONTRACT,
        promise=Promise(max_accuracy_drop=budget), selected=Selected(Pictures(images[100:]), labels[100:]),
    )  # fmt: skip
    document: dict[str, Any] = json.loads((out / "quantize.json").read_text())
    return document


def metadata(path: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(
        next(prop.value for prop in onnx.load(str(path)).metadata_props if prop.key == "edgecnn.quantize")
    )
    return told


def test_the_climb_is_told_in_the_record_and_in_the_model(tmp_path: Path) -> None:
    record = quantized(tmp_path / "out", color_net(), 0.02)
    (row,) = record["ladder"]
    assert (row["rung"], row["kept"], row["drop"], row["images"], row["float_nodes"]) == ("ranges", True, 0.0, 300, 0)
    assert row["lower"] < 0 < row["upper"]
    assert row["sqnr_db"] > 30
    assert (row["int8_macs"], row["expected_speed"]) == (1.0, 1.0)
    assert record["recovery"]["state"] == "held"
    assert record["recovery"]["judged"] == "float simulation"
    for name in ("model.onnx", "typed.onnx"):
        assert metadata(tmp_path / "out" / name)["rungs"] == ["ranges"]
    assert not (tmp_path / "out" / "resume").exists()


def test_without_a_budget_nothing_is_judged(tmp_path: Path) -> None:
    record = quantized(tmp_path / "out", hard_net(), None, recover="auto")
    assert [row["rung"] for row in record["ladder"]] == ["ranges", "equalize", "bias"]
    assert record["ladder"][1]["kept"]
    assert all(row["drop"] is None and row["sqnr_db"] is not None for row in record["ladder"])
    assert record["recovery"]["state"] == "unasked"
    assert verdict_of(record, "classify") == (None, "")


def test_a_budget_that_is_missed_still_writes_the_model(tmp_path: Path) -> None:
    record = quantized(tmp_path / "out", hard_net(), 0.02)
    assert record["recovery"]["state"] == "missed"
    assert record["ladder"][0]["drop"] > 0.5
    assert verdict_of(record, "classify")[0] == "fail"
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_equalization_brings_a_hard_model_back(tmp_path: Path) -> None:
    record = quantized(tmp_path / "out", hard_net(), 0.02, recover={"stop_at": "equalize"})
    assert [(row["rung"], row["kept"]) for row in record["ladder"]] == [("ranges", True), ("equalize", True)]
    assert record["recovery"]["state"] == "held"
    assert metadata(tmp_path / "out" / "model.onnx")["rungs"] == ["ranges", "equalize"]
    assert record["sqnr_db"] > 25


def test_the_same_climb_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        quantized(tmp_path / name, hard_net(), 0.02, recover={"stop_at": "equalize"})
    models = [[(tmp_path / name / file).read_bytes() for file in ("model.onnx", "typed.onnx")] for name in ("a", "b")]
    assert models[0] == models[1]


def test_a_budget_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="needs labelled images beside"):
        quantize_model(
            tmp_path, spec(), TENSORRT, saved(color_net(), tmp_path / "m.onnx"), Pictures(colors(40)[0]), CONTRACT,
            promise=Promise(max_accuracy_drop=0.01),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("scheme", "reachable", "cpu", "name"),
    [
        (CPU, True, read_cpu().name, read_cpu().name),
        (CPU, True, "the CPU of a board", ""),
        (CPU, False, read_cpu().name, ""),
        (TENSORRT, True, read_cpu().name, ""),
    ],
)
def test_only_onnxruntime_here_judges_by_its_own_kernels(scheme: Scheme, reachable: bool, cpu: str, name: str) -> None:
    facts = DeviceFacts(reachable=reachable, backend_version="onnxruntime 1.32.0", hardware=cpu)
    assert kernels(scheme, facts) == name


# --- what the command line gives ---


@pytest.mark.parametrize(
    ("text", "stop_at"), [("auto", "qat"), ("off", "ranges"), ("ranges", "ranges"), ("mixed", "mixed")]
)
def test_recover_is_a_word_or_a_rung(text: str, stop_at: str) -> None:
    assert QuantizeSpec.model_validate({"recover": recover_of(text, 0.01)}).stop_at == stop_at


@pytest.mark.parametrize("rung", ["mixed", "qat"])
def test_what_only_a_budget_drives_is_refused_without_one(rung: str) -> None:
    with pytest.raises(EdgeError, match=f"--recover {rung} needs an accuracy budget"):
        recover_of(rung, None)


def test_an_unknown_rung_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="no rung `adaruond`") as refused:
        recover_of("adaruond", None)
    assert "did you mean `adaround`?" in refused.value.hint
    assert recover_of("bias", None) == RecoverSpec(stop_at="bias")


@pytest.mark.parametrize("value", [-0.01, 0.5, 1.0, float("nan")])
def test_a_budget_is_a_fraction(value: float) -> None:
    with pytest.raises(EdgeError, match="not a fraction"):
        promise_of(value)


def test_calibrate_and_select_are_disjoint(tmp_path: Path) -> None:
    images = np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1) * np.ones((1, 8, 8, 3), np.uint8)  # the value names it
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(60) % 3)
    limited = spec(images=20, select_images=30)
    calibrate, selected, held = share_out(tmp_path / "data.npz", CONTRACT, limited, Promise(max_accuracy_drop=0.01))
    assert selected is not None
    assert held is selected.images
    first = {int(image[0, 0, 0]) for image in calibrate.batch(0, 99)}
    others = {int(image[0, 0, 0]) for image in selected.images.batch(0, 99)}
    assert (len(first), len(others), first & others) == (20, 30, set())
    numbers = selected.images.batch(0, 99)[:, 0, 0, 0]
    assert np.array_equal(selected.targets, numbers % 3)
    alone, none, held = share_out(tmp_path / "data.npz", CONTRACT, limited, Promise())
    assert none is None
    assert held is not None
    assert not {int(image[0, 0, 0]) for image in held.batch(0, 99)} & first
    assert len(held) == 40
    assert np.array_equal(alone.batch(0, 99), calibrate.batch(0, 99))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    saved(color_net(), folder / "easy.onnx")
    saved(hard_net(), folder / "hard.onnx")
    images, labels = colors(500)
    np.savez(folder / "colors.npz", images=images, labels=labels)
    np.savez(folder / "plain.npz", images=images)
    np.savez(folder / "wrong.npz", images=images, labels=(labels + 1) % 3)
    return folder


@pytest.mark.parametrize(
    ("model", "budget", "code", "words"),
    [
        ("easy.onnx", "0.02", 0, "PASS: drop 0.00 points"),
        ("easy.onnx", "0.001", 3, "NOT ENOUGH EVIDENCE: drop 0.00 points"),
        ("hard.onnx", "0.02", 1, "no rung up to `ranges` holds the budget: the best, `ranges`, has a drop of"),
    ],
)
def test_exit_codes(desk: Path, model: str, budget: str, code: int, words: str) -> None:
    arguments = ["quantize", str(desk / model), "--data", str(desk / "colors.npz"), "--device", "jetson-orin-nano"]
    arguments += ["--images", "50", "--out", str(desk / "out"), "--recover", "off", "--max-accuracy-drop", budget]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    assert words in done.output
    assert "50 images calibrated, 450 others judged (float simulation)" in done.output
    assert sorted(path.name for path in (desk / "out").iterdir()) == [
        "model.int8.onnx", "model.int8.typed.onnx", "report.json",
    ]  # fmt: skip
    if code == 3:
        assert CliRunner().invoke(app, [*arguments, "--strict"]).exit_code == 1


def test_json_of_a_process(desk: Path) -> None:
    command = [sys.executable, "-m", "edgecnn", "quantize", "hard.onnx", "--data", "colors.npz", "--device", "cpu-x86"]
    options = ["--images", "50", "--recover", "off", "--json", "--max-accuracy-drop", "0.001", "--out", "json"]
    done = subprocess.run([*command, *options], cwd=desk, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["verdict"] == "fail"
    assert document["quantize"]["ladder"][0]["images"] == 450
    assert "INT8 kernels of" in document["quantize"]["recovery"]["judged"]
    assert (desk / "json" / "model.int8.onnx").is_file()


@pytest.mark.parametrize(
    ("given", "have", "judged", "calibrate"),
    [
        ({}, 70, False, 256),  # all 70 of them: there is no more to load
        ({}, 70, True, 35),
        ({}, 256, True, 128),
        ({}, 1000, True, 256),
        ({"images": 50}, 70, True, 50),
        ({"images": 70}, 70, True, 70),  # refused then: none is left
    ],
)
def test_few_images_are_shared_where_their_number_is_not_typed(
    given: dict[str, int], have: int, judged: bool, calibrate: int
) -> None:
    assert calibrating_spec(QuantizeSpec(**given), have, judged=judged).images == calibrate


@pytest.mark.parametrize(
    ("data", "given", "words"),
    [
        ("plain.npz", {}, "--max-accuracy-drop needs labels"),
        ("wrong.npz", {}, "which is not better than a constant answer"),
        ("colors.npz", {"recover": "clipp"}, "no rung `clipp`"),
        ("colors.npz", {"max_accuracy_drop": 1.0}, "not a fraction"),
        ("colors.npz", {"images": 500}, "none is left to judge the accuracy budget with"),
    ],
)
def test_bad_budgets_are_one_error(desk: Path, data: str, given: dict[str, Any], words: str) -> None:
    usual = {"images": 50, "ranges": "auto", "input": "", "keep_float": (), "max_accuracy_drop": 0.01}
    with pytest.raises(EdgeError, match=words):
        api.quantize(desk / "easy.onnx", data=desk / data, device="cpu-x86", out=desk / "refused", **{**usual, **given})
    assert not (desk / "refused").exists()
