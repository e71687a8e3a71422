"""Activation ranges by the error at the model's outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from quantize_graphs import CPU, TENSORRT
from recovering import begun, chain, saved, unseen_db

from edgecnn.quantize.rungs.clip import clip
from edgecnn.quantize.write.rewrite import serialized
from edgecnn.recipe.device import Scheme


@pytest.mark.parametrize("scheme", [TENSORRT, CPU], ids=["tensorrt", "cpu-int32-bias"])
def test_a_range_that_is_far_too_wide_is_found(tmp_path: Path, scheme: Scheme) -> None:
    tools, good = begun(saved(chain(), tmp_path / "net.onnx"), tmp_path, scheme, images=40)
    spoiled = good.ranges | {"relu3_out": (0.0, 16.0 * good.ranges["relu3_out"][1])}
    candidate = replace(good, ranges=spoiled)
    found = clip(candidate, tools)
    assert found.rungs == ("clip",)
    assert found.methods["relu3_out"] == "clip"
    assert found.ranges["relu3_out"][1] < 0.5 * spoiled["relu3_out"][1]
    assert candidate.ranges == spoiled
    before, after = (unseen_db(c.quantized(scheme), tools.graph.model) for c in (candidate, found))
    assert after > before + 3.0
    serialized(found.quantized(scheme))


def test_tensors_of_one_scale_move_together(tmp_path: Path) -> None:
    from quantize_graphs import Net

    net = Net(3, 12)
    parts = [net.op("Relu", net.conv("image", 8, 3, name=name)) for name in ("a", "b")]
    joined = net.op("Concat", *parts, axis=1, name="cat")
    net.save(tmp_path / "net.onnx", net.head(net.op("Relu", net.conv(joined, 16, 16, name="c")), 16))
    tools, good = begun(tmp_path / "net.onnx", tmp_path, images=40)
    groups = good.placement.groups()
    shared = next(group for group, members in groups.items() if len(members) > 1)
    names = [member.tensor for member in groups[shared]]
    spoiled = good.ranges | {name: (0.0, 16.0 * good.ranges[name][1]) for name in names}
    found = clip(replace(good, ranges=spoiled), tools)
    assert len({found.ranges[name] for name in names}) == 1
    assert found.ranges[names[0]][1] < 0.5 * spoiled[names[0]][1]


def test_good_ranges_stay_and_it_says_so(tmp_path: Path) -> None:
    tools, candidate = begun(saved(chain(), tmp_path / "net.onnx"), tmp_path, images=40)
    best = candidate
    for _ in range(4):
        best = clip(best, tools)
        if best.notes:
            break
    assert "clip: no other ranges measure better" in best.notes[-1]
    before, after = (unseen_db(c.quantized(TENSORRT), tools.graph.model) for c in (candidate, best))
    assert after > before - 0.3


def test_one_image_and_the_same_again(tmp_path: Path) -> None:
    tools, candidate = begun(saved(chain(), tmp_path / "net.onnx"), tmp_path, images=1)
    one, other = (clip(candidate, tools) for _ in range(2))
    assert one.ranges == other.ranges
    assert all(np.isfinite(end) for pair in one.ranges.values() for end in pair)
