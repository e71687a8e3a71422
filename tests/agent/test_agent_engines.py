"""Engines on a board: built once, kept under everything they depend on, refused when they aren't what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agent_home import AgentHome
from golden_graphs import colours
from orin import Orin

from edgecnn.agent.answers import candidates, joined, read_answers, write_answers
from edgecnn.agent.scoring import open_shards
from edgecnn.backends import ort
from edgecnn.backends.tensorrt import trt
from edgecnn.data.index import write_shards
from edgecnn.measure.feeding import Feeding, batches
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.io_contract import read_contract
from edgecnn.recipe.recipe import BenchSpec
from edgecnn.tasks.detect.detect import candidates as found_by

RECORDED = Path(__file__).with_name("recorded_trt.py")
needs_rtx = pytest.mark.skipif(trt.installed("tensorrt-rtx") is None, reason="TensorRT for RTX is not installed")


@pytest.fixture
def orin(tmp_path: Path) -> Orin:
    return Orin(tmp_path / "orin")


@pytest.fixture
def home(tmp_path: Path, orin: Orin) -> AgentHome:
    return AgentHome(tmp_path / "home", env=orin.env, replace={"backends.tensorrt.trt": RECORDED})


def compiled(home: AgentHome, graph: str) -> dict[str, Any]:
    return home.result("compile", backend="tensorrt", graph=graph, name="m.onnx")


def test_an_engine_is_built_once(home: AgentHome, tmp_path: Path) -> None:
    graph = home.put(colours(tmp_path / "m.onnx"))
    first = compiled(home, graph)
    assert (first["cached"], first["version"]) == (False, "TensorRT 10.3.0")
    engine = home.cache.file(first["engine"])
    assert engine.stat().st_size == first["size"]
    assert compiled(home, graph) == {**first, "cached": True}
    assert len(list(home.cache.timing.iterdir())) == 1


@pytest.mark.parametrize("change", ["weights", "version", "power mode", "gpu", "damaged", "dropped"])
def test_an_engine_is_built_again_when(home: AgentHome, orin: Orin, tmp_path: Path, change: str) -> None:
    graph = home.put(colours(tmp_path / "m.onnx"))
    first = compiled(home, graph)
    match change:
        case "weights":
            graph = home.put(colours(tmp_path / "m.onnx", quantized=True))
        case "version":
            home.env["RECORDED_TENSORRT"] = "10.7.0"
        case "power mode":
            (orin.state / "mode").write_text("25W 1\n")
        case "gpu":
            orin.write("proc/device-tree/compatible", "nvidia,p3971-0080\0nvidia,tegra264\0")
        case "damaged":
            home.cache.file(first["engine"]).write_bytes(b"something else")
        case "dropped":
            home.cache.file(first["engine"]).unlink()
    again = compiled(home, graph)
    assert again["cached"] is False
    assert compiled(home, graph)["cached"] is True


def test_describe_names_the_engine(home: AgentHome) -> None:
    assert home.result("describe")["backends"]["tensorrt"] == "TensorRT 10.3.0"


def test_an_engine_scores_and_is_timed(home: AgentHome, tmp_path: Path) -> None:
    plain, quantized = colours(tmp_path / "a.onnx"), colours(tmp_path / "b.onnx", quantized=True)
    contract = read_contract(plain)
    assert contract is not None
    base, engine = (compiled(home, home.put(one))["engine"] for one in (plain, quantized))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), np.uint8)
    write_shards(tmp_path, "scored", 20, list(pixels))
    io = contract.model_dump(mode="json")
    job = home.start(
        "score", backend="tensorrt", model=engine, io=io, shards=[home.put(tmp_path / "scored-00000.npy")], first=0,
        batch=8, keep={},
    )  # fmt: skip
    answer = job.wait()["result"]
    assert answer["how"] == "TensorRT 10.3.0 engine, CUDA graph off"
    simulated = ort.load(quantized, simulate=True)(contract.feed(pixels))
    name = contract.outputs[0].name
    got = read_answers(job.folder / "out" / answer["files"][0]["name"])
    np.testing.assert_array_equal(got.outputs[name], simulated[name])
    spec = BenchSpec(warmup_ms=1, min_pairs=64, min_seconds=0.3, max_seconds=0.6).model_dump(mode="json")
    timed = home.start("time", backend="tensorrt", first=base, second=engine, spec=spec, until="speed", io=io)
    conditions = timed.wait()["result"]["conditions"]
    assert conditions["backend"] == "TensorRT 10.3.0"
    with np.load(timed.folder / "out/pairs.npz") as times:
        assert np.median(times["first_ms"]) > np.median(times["second_ms"]) > 1.2


def test_an_engine_of_another_version_is_refused(home: AgentHome, tmp_path: Path) -> None:
    graph = home.put(colours(tmp_path / "m.onnx"))
    engine = compiled(home, graph)["engine"]
    home.env["RECORDED_TENSORRT"] = "10.7.0"
    spec = BenchSpec().model_dump(mode="json")
    answer = home.run(
        "time", backend="tensorrt", first=engine, second=engine, spec=spec, until="speed", names={engine: "a.engine"}
    )
    assert answer["error"] == "TensorRT 10.7.0 cannot load `a.engine`: it is no plan of this version"


@needs_rtx
def test_a_real_engine_is_built_ahead_of_time(tmp_path: Path) -> None:
    """TensorRT for RTX itself, in the zipapp's worker, for a GPU that isn't here."""
    home = AgentHome(tmp_path / "home")
    graph = home.put(colours(tmp_path / "m.onnx", quantized=True))
    job = {"backend": "tensorrt-rtx", "graph": graph, "name": "m.onnx", "compute_capability": "8.9"}
    first = home.result("compile", **job)
    assert home.cache.file(first["engine"]).stat().st_size == first["size"] > 1000
    assert home.result("compile", **job) == {**first, "cached": True}
    other = home.result("compile", **{**job, "compute_capability": "8.6"})
    assert (other["cached"], other["engine"] != first["engine"]) == (False, True)


@needs_rtx
@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
def test_timings_of_elsewhere_are_replaced(tmp_path: Path) -> None:
    """TensorRT for RTX has TensorRT's functions for it, so that the calls can be made here; it keeps an empty cache."""
    cache = tmp_path / "timings"
    cache.write_bytes(b"of another GPU")
    engines = trt.TensorRT("tensorrt-rtx")
    engines.name = "tensorrt"
    model = colours(tmp_path / "m.onnx")
    engines.build(model, tmp_path / "engine", compute_capability="8.9", timing_cache=cache)
    kept = cache.read_bytes()
    assert len(kept) > 100
    engines.build(model, tmp_path / "engine", compute_capability="8.9", timing_cache=cache)
    assert not list(tmp_path.glob("*.partial"))


# --- what travels ---


def test_a_detectors_candidates_are_all_that_its_metric_looks_at(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    boxes = random.random((6, 50, 4), np.float32)
    scores = (random.random((6, 50, 3)) ** 8).astype(np.float32)
    scores[3, 7, 1] = np.nan  # the host must see it
    boxes[4, 9, 2] = np.inf
    parts = []
    for start in (0, 2, 4):
        outputs = {"boxes": boxes[start : start + 2], "scores": scores[start : start + 2]}
        parts.append(candidates(range(start, start + 2), outputs, "scores", 0.25))
    write_answers(tmp_path / "0.npz", joined(parts))
    content = (tmp_path / "0.npz").read_bytes()
    write_answers(tmp_path / "0.npz", joined(parts))
    assert (tmp_path / "0.npz").read_bytes() == content
    got = read_answers(tmp_path / "0.npz")
    assert got.rows.tolist() == list(range(6))
    full = got.batch(1, 5)
    assert full["boxes"].shape == (4, 50, 4)
    for image in (1, 2):
        for here, there in zip(
            found_by(boxes[image], scores[image], 0.25),
            found_by(full["boxes"][image - 1], full["scores"][image - 1], 0.25), strict=True,
        ):  # fmt: skip
            np.testing.assert_array_equal(here, there)
    assert np.isnan(full["scores"][2, 7, 1])
    assert np.isinf(full["boxes"][3, 9, 2])
    assert len(got.outputs["boxes"]) < 0.6 * 6 * 50


def test_answers_that_are_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    with pytest.raises(EdgeError, match="holds no answers"):
        read_answers(tmp_path / "other.npz")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04torn")
    with pytest.raises(EdgeError, match="holds no answers"):
        read_answers(tmp_path / "torn.npz")


@pytest.mark.parametrize("content", [b"no array", None])
def test_shards_that_are_none(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "shard"
    if content is None:
        with file.open("wb") as out:
            np.save(out, np.zeros((2, 4, 4, 3), np.float32))
    else:
        file.write_bytes(content)
    with pytest.raises(EdgeError, match=r"holds no images|not uint8 NHWC"):
        open_shards([file], 0)


def test_batches_of_a_part_are_those_of_the_whole() -> None:
    whole = list(batches(100, 16))
    assert [len(one) for one in whole] == [16] * 6 + [4]
    assert list(batches(36, 16, 64)) == [range(64, 80), range(80, 96), range(96, 100)]
    assert list(batches(20, 16, 60)) == [range(60, 64), range(64, 80)]


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_feeding_by_the_contracts_json(color: str) -> None:
    images = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
    given = {"name": "x", "layout": "NCHW", "dtype": "float32", "range": [0.0, 1.0], "color": color}
    contract = {"input": given, "normalization": {"mean": [0.5] * 3, "std": [0.25] * 3}, "normalization_inside": False}
    fed = Feeding.of(contract)(images)["x"]
    expected = (images[..., ::-1] if color == "bgr" else images).transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(fed, (expected - 0.5) / 0.25, rtol=1e-5, atol=1e-6)
    inside = Feeding.of({**contract, "normalization_inside": True})(images)["x"]
    np.testing.assert_allclose(inside, expected, rtol=1e-6)
