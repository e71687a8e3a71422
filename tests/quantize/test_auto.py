"""`ranges: auto`: what it compares whole models by, and that no single method is better on those images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from color_graphs import CONTRACT, as_ir, color_net
from quantize_graphs import CPU, TENSORRT, Pictures

from edgecnn.quantize.calibration.auto import Chosen, _best, _shared_out, automatic, by_method, output_decibels
from edgecnn.quantize.calibration.calibrate import Calibration, Feeder, calibrate
from edgecnn.quantize.calibration.ranges import METHODS
from edgecnn.quantize.graph.sessions import observe
from edgecnn.quantize.place.placement import Graph, Placement, place
from edgecnn.recipe.device import Scheme


def pictures(bright: int, count: int = 32) -> np.ndarray:
    """Dark noise, and some images that are 25 times as bright."""
    rng = np.random.default_rng(5)
    size = CONTRACT.input.size
    images = rng.integers(1, 11, (count, *size, 3))
    images[:bright] *= 25
    return images.astype(np.uint8)


def calibrated(images: np.ndarray, scheme: Scheme) -> tuple[Feeder, Placement, Calibration]:
    model = as_ir(color_net())
    feeder = Feeder(model, CONTRACT, Pictures(images), len(images))
    placement = place(Graph(model, observe(model, list(feeder.feeds([0])))[0]), scheme)
    return feeder, placement, calibrate(feeder, [activation.tensor for activation in placement.counted])


def test_a_few_loud_images_do_not_decide() -> None:
    """Pooled, three bright images outweigh all others 60 times: the range that serves only them would win."""
    feeder, placement, calibration = calibrated(pictures(3), TENSORRT)
    wide = by_method("minmax", placement, calibration, TENSORRT)
    narrow = replace(wide, ranges={group: (low / 20, high / 20) for group, (low, high) in wide.ranges.items()})
    assert _best(feeder, list(range(32)), placement, [wide, narrow], TENSORRT) is narrow
    assert _best(feeder, list(range(3)), placement, [narrow, wide], TENSORRT) is wide


@pytest.mark.parametrize("scheme", [TENSORRT, CPU], ids=["tensorrt", "cpu"])
def test_no_single_method_is_better_on_the_held_images(scheme: Scheme) -> None:
    feeder, placement, calibration = calibrated(pictures(3, 40), scheme)
    probed, held = _shared_out(feeder)
    assert not set(probed) & set(held)
    whole: list[Chosen] = [automatic(feeder, placement, calibration, scheme)]
    whole += [by_method(method, placement, calibration, scheme) for method in METHODS]
    quality = output_decibels(feeder, held, placement, [one.grids(placement, scheme) for one in whole], scheme)
    best = quality.mean(axis=1)
    assert best[0] >= best[1:].max() - 1e-9


def test_images_are_shared_out_whatever_their_number(tmp_path: Path) -> None:
    for count in (1, 2, 3, 30):
        feeder = Feeder(as_ir(color_net()), CONTRACT, Pictures(pictures(0, count)), count)
        probed, held = _shared_out(feeder)
        assert probed
        assert held
        assert count == 1 or not set(probed) & set(held)
