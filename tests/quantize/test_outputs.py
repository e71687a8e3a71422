"""What is told of a quantized model's outputs: one meaning of SQNR, on images that did not calibrate, and a warning."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from color_graphs import color_net, colors, hard_net, saved
from quantize_graphs import TENSORRT, Net, Pictures, contract, pictures, residual_net

from edgecnn.foreign.quantize import quantize_foreign
from edgecnn.measure import stats
from edgecnn.quantize import quantize_model
from edgecnn.quantize.noise.outputs import Told
from edgecnn.recipe.load import load_device
from edgecnn.recipe.recipe import QuantizeSpec


def test_a_few_images_decide_the_pooled_value_and_not_the_median() -> None:
    signal, noise = np.full(100, 100.0), np.full(100, 0.1)
    assert stats.sqnr(signal, noise) == stats.Sqnr(30.0, 30.0, 30.0, 100)
    noise[:2] = 1e4
    found = stats.sqnr(signal, noise)
    assert found.median == pytest.approx(30.0)
    assert found.pooled == pytest.approx(-3.0, abs=0.1)
    assert found.lowest == pytest.approx(-20.0)


def test_powers_are_of_what_can_be_compared() -> None:
    want = np.float32([[3, 4], [np.inf, 1], [0, 0]])
    assert [part.tolist() for part in stats.powers(want, np.float32([[3, 2], [5, 1], [0, 0]]))] == [
        [25, 1, 0],
        [4, 0, 0],
    ]
    assert stats.powers(want, np.full((3, 2), np.nan, np.float32))[1].tolist() == [np.inf] * 3
    assert stats.powers(want, want[:, :1])[1].tolist() == [25, 1, 0]  # another shape: lost
    assert stats.powers(np.int64([[7]]), np.int64([[9]]))[1].tolist() == [0]
    assert stats.decibel(1.0, np.inf) == -stats.EXACT_DB
    assert stats.decibel(1.0, 0.0) == stats.decibel(0.0, 0.0) == stats.EXACT_DB


def answers(model: Path, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    rows = [session.run(None, contract().feed(image[None]))[0].reshape(-1) for image in images]
    return np.stack(rows).astype(np.float64)


def mixed_pictures(dark: int, bright: int) -> Pictures:
    """Dark ones first: what calibrates has never seen the few bright ones among the others."""
    made = pictures(dark + bright).images.copy()
    made[: dark + bright - bright // 8] //= 16
    return Pictures(made)


def test_what_is_told_is_what_images_that_did_not_calibrate_give(tmp_path: Path) -> None:
    model, images = residual_net(tmp_path / "m.onnx"), mixed_pictures(8, 40)
    quantize_model(tmp_path, QuantizeSpec(images=8, ranges="minmax"), TENSORRT, model, images, contract())
    record = json.loads((tmp_path / "quantize.json").read_text())
    exact, found = (answers(path, images.images[8:]) for path in (model, tmp_path / "model.onnx"))
    own = 10 * np.log10((exact**2).sum(axis=1) / ((exact - found) ** 2).sum(axis=1))
    pooled = 10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum())
    assert (record["compared_images"], record["compared_held"]) == (40, True)
    assert record["sqnr_median_db"] == pytest.approx(np.median(own), abs=0.05)
    assert record["sqnr_db"] == pytest.approx(pooled, abs=0.05)
    assert record["sqnr_lowest_db"] == pytest.approx(own.min(), abs=0.05)
    assert pooled < np.median(own) - 5  # a few images that calibration never saw
    assert record["agreement"] == pytest.approx(np.mean(exact.argmax(axis=1) == found.argmax(axis=1)))
    assert next(iter(record["outputs"].values()))["pooled"] == record["sqnr_db"]


def test_rows_behind_a_sorting_may_change_places(tmp_path: Path) -> None:
    net = Net(3)
    flat = net.op("Reshape", net.conv("image", 4, 3, name="c"), net.constant("shape", np.array([0, -1])))
    most = net.constant("most", np.array([40]))
    net.nodes.append(onnx.helper.make_node("TopK", [flat, most], ["top", "place"], "topk", axis=1))
    model = net.save(tmp_path / "m.onnx", net.op("Cast", "place", to=onnx.TensorProto.FLOAT))
    images = mixed_pictures(0, 48)
    quantize_model(tmp_path, QuantizeSpec(images=8, ranges="minmax"), TENSORRT, model, images, contract())
    exact, found = (answers(path, images.images[8:]) for path in (model, tmp_path / "model.onnx"))
    by_row, by_column = (
        float((a**2).sum() / ((a - b) ** 2).sum())
        for a, b in ((exact, found), (np.sort(exact, axis=1), np.sort(found, axis=1)))
    )
    told = json.loads((tmp_path / "quantize.json").read_text())["sqnr_db"]
    assert told == pytest.approx(10 * np.log10(by_column), abs=0.05)
    assert told > 10 * np.log10(by_row) + 5


def test_without_others_the_calibration_images_are_told_as_such(tmp_path: Path) -> None:
    spec = QuantizeSpec(images=20, ranges="minmax")
    model = residual_net(tmp_path / "m.onnx")
    quantize_model(tmp_path, spec, TENSORRT, model, pictures(20), contract())
    record = json.loads((tmp_path / "quantize.json").read_text())
    assert (record["compared_images"], record["compared_held"]) == (20, False)
    quantize_model(tmp_path, spec, TENSORRT, model, pictures(20), contract(), held=pictures(50))
    record = json.loads((tmp_path / "quantize.json").read_text())
    assert (record["compared_images"], record["compared_held"]) == (50, True)


def test_integers_have_no_sqnr_and_are_counted(tmp_path: Path) -> None:
    net = Net(3)
    net.op("ArgMax", net.conv("image", 4, 3), name="a", axis=1, keepdims=0)
    model = net.model("a_out", rank=3)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, tmp_path / "m.onnx")
    quantize_model(
        tmp_path, QuantizeSpec(images=4, ranges="minmax"), TENSORRT, tmp_path / "m.onnx", pictures(4), contract()
    )  # fmt: skip
    record = json.loads((tmp_path / "quantize.json").read_text())
    assert record["sqnr_db"] is None
    assert 0.8 < record["agreement"] <= 1.0


FINE = Told(stats.Sqnr(30.0, 31.0, 20.0, 64), {}, 0.99, 64, True)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (FINE, []),
        (replace(FINE, sqnr=None, agreement=None), []),
        (replace(FINE, sqnr=stats.Sqnr(4.8, 4.9, 1.0, 64)), ["4.9 dB"]),
        (replace(FINE, sqnr=stats.Sqnr(0.0, 28.0, -9.0, 64)), ["0.0 dB pooled"]),
        (replace(FINE, agreement=0.5), ["50.0 % of 64 images"]),
        (replace(FINE, sqnr=stats.Sqnr(4.8, 4.9, 1.0, 64), agreement=0.5), ["4.9 dB", "50.0 %"]),
    ],
)
def test_what_is_another_model_is_warned_of(told: Told, words: list[str]) -> None:
    assert len(told.warnings()) == len(words)
    assert all(word in warning for word, warning in zip(words, told.warnings(), strict=True))


@pytest.mark.parametrize(("made", "warned"), [(color_net, False), (hard_net, True)])
def test_the_first_line_of_quantize_warns(tmp_path: Path, made: Callable[[], onnx.ModelProto], warned: bool) -> None:
    saved(made(), tmp_path / "m.onnx")
    np.savez(tmp_path / "colors.npz", images=colors(200)[0])
    document, text = quantize_foreign(
        tmp_path / "m.onnx", data=tmp_path / "colors.npz", profile=load_device("rtx-4060"), images=32, ranges="minmax",
        out=tmp_path / "out", preprocessing="", keep_float=(), recover="off",
    )  # fmt: skip
    assert text.startswith("WARNING: ") == warned
    assert bool(document["quantize"]["warnings"]) == warned
    assert (document["quantize"]["compared_images"], document["quantize"]["compared_held"]) == (128, True)
