"""Calibration: the same result for any order and any reading, and errors that name what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from quantize_graphs import Net, Pictures, contract, pictures, residual_net

from edgecnn.process.errors import EdgeError
from edgecnn.quantize.calibration.calibrate import Calibration, Feeder, calibrate
from edgecnn.quantize.graph.canonical import canonical

TENSORS = ["image", "stem_relu_out", "flatten_out"]


def calibrated(path: Path, images: Pictures) -> Calibration:
    return calibrate(Feeder(canonical(path), contract(), images, len(images)), TENSORS)


def fingerprint(calibration: Calibration) -> object:
    found = calibration.histograms.items()
    return calibration.digest, [(name, h.low, h.high, h.exponent, h.counts.tobytes()) for name, h in found]


def test_order_of_the_images_changes_no_bit(tmp_path: Path) -> None:
    path, images = residual_net(tmp_path / "m.onnx"), pictures(24)
    straight = fingerprint(calibrated(path, images))
    shuffled = Pictures(images.images[np.random.default_rng(7).permutation(24)])
    assert fingerprint(calibrated(path, shuffled)) == straight
    changed = images.images.copy()
    changed[3, 0, 0, 0] ^= 1
    assert fingerprint(calibrated(path, Pictures(changed))) != straight


def test_counts_are_those_of_the_tensors_themselves(tmp_path: Path) -> None:
    images = pictures(5)
    histogram = calibrated(residual_net(tmp_path / "m.onnx"), images).histograms["image"]
    values = images.images.astype(np.float32) * np.float32(1 / 255)
    assert histogram.counts.sum() == values.size
    assert (histogram.low, histogram.high) == (values.min(), values.max())


def test_a_static_batch_counts_every_image_once(tmp_path: Path) -> None:
    net = Net(3)
    net.shape[0] = 4
    path = net.save(tmp_path / "m.onnx", net.op("Relu", net.conv("image", 8, 3, name="c"), name="r"), rank=4)
    images = pictures(10)
    found = calibrate(Feeder(canonical(path), contract(), images, 10), ["image", "r_out"])
    assert found.batch == 4
    assert found.histograms["image"].counts.sum() == images.images.size
    assert found.histograms["r_out"].counts.sum() == 10 * 8 * 64


def test_nan_names_the_tensor_and_the_image(tmp_path: Path) -> None:
    net = Net(3)
    shifted = net.op("Sub", net.conv("image", 8, 3, name="c"), net.constant("far", np.float32(1e3)), name="shifted")
    path = net.save(tmp_path / "m.onnx", net.op("Log", shifted, name="log"), rank=4)
    with pytest.raises(EdgeError, match="tensor `log_out` takes a value that is NaN on calibration image 0"):
        calibrate(Feeder(canonical(path), contract(), pictures(2), 2), ["log_out"])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 9, 3), np.uint8), "are 8x9 with 3 channels; the model takes 8x8 with 3"),
        (np.zeros((2, 8, 8, 1), np.uint8), "are 8x8 with 1 channels"),
        (np.zeros((2, 8, 8, 3), np.float32), "are float32 with 4 dimensions; uint8"),
    ],
)
def test_unfitting_images(tmp_path: Path, images: np.ndarray, message: str) -> None:
    with pytest.raises(EdgeError, match=message):
        calibrated(residual_net(tmp_path / "m.onnx"), Pictures(images))


def test_a_graph_with_another_input_is_refused(tmp_path: Path) -> None:
    model = canonical(residual_net(tmp_path / "m.onnx"))
    with pytest.raises(EdgeError, match="inputs are `image`, but calibration feeds only `pixels`"):
        Feeder(model, contract(name="pixels"), pictures(), 1)


def test_all_black_images_and_a_single_image_have_a_result(tmp_path: Path) -> None:
    black = Pictures(np.zeros((1, 8, 8, 3), np.uint8))
    found = calibrated(residual_net(tmp_path / "m.onnx"), black).histograms["image"]
    assert (found.low, found.high, found.bound) == (0.0, 0.0, 0.0)
