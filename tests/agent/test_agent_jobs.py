"""The packed agent does its jobs in a bare home folder; scoring has the bits of scoring here."""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import time
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from agent_home import AgentHome
from golden_graphs import colours

from edgecnn import __version__
from edgecnn.agent.answers import read_answers
from edgecnn.agent.pack import pack_agent, packed_modules
from edgecnn.backends import ort
from edgecnn.backends.cpu import cores
from edgecnn.data.index import write_shards
from edgecnn.measure.feeding import answered_batches
from edgecnn.recipe.io_contract import read_contract


@pytest.fixture
def home(tmp_path: Path) -> AgentHome:
    return AgentHome(tmp_path / "home")


# --- the zipapp ---


def test_the_same_sources_give_the_same_bytes() -> None:
    one = pack_agent()
    pack_agent.__globals__["_packed"].cache_clear()
    assert pack_agent() == one
    assert one.sha256 == hashlib.sha256(one.data).hexdigest()
    with zipfile.ZipFile(BytesIO(one.data)) as file:
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert file.namelist() == sorted(file.namelist())
        assert len([name for name in file.namelist() if name.startswith("edgecnn/")]) == len(packed_modules())
        ast.parse(file.read("__main__.py"), feature_version=(3, 6))


def test_a_module_can_be_replaced_and_no_unknown_one(tmp_path: Path) -> None:
    double = tmp_path / "double.py"
    double.write_text("ANSWER = 42\n")
    packed = pack_agent(replace={"backends.tensorrt.trt": double})
    with zipfile.ZipFile(BytesIO(packed.data)) as file:
        assert file.read("edgecnn/backends/tensorrt/trt.py") == b"ANSWER = 42\n"
    assert packed.sha256 != pack_agent().sha256
    with pytest.raises(ValueError, match="no modules"):
        pack_agent(replace={"backends.other": double})


# --- describe, accept, clean ---


def test_describe(home: AgentHome) -> None:
    facts = home.result("describe")
    assert (facts["agent"], facts["backends"]["onnxruntime"]) == (__version__, ort.version())
    assert facts["numpy"] == np.__version__
    assert facts["cores"] == cores()
    assert facts["memory_mb"] >= facts["free_memory_mb"] > 0
    assert facts["disk_free_mb"] > 0
    assert facts["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (facts["l4t"], facts["power_mode"], facts["power_modes"]) == ("", "", [])


def part(home: AgentHome, digest: str) -> Path:
    return home.cache.files / f"{digest}.part"


def test_accept_believes_only_what_it_hashed(home: AgentHome) -> None:
    right, wrong, cut = (hashlib.sha256(text).hexdigest() for text in (b"right", b"wrong", b"cut off"))
    part(home, right).write_bytes(b"right")
    part(home, wrong).write_bytes(b"wrung")
    part(home, cut).write_bytes(b"cut")
    asked = [{"sha256": right, "size": 5}, {"sha256": wrong, "size": 5}, {"sha256": cut, "size": 7}]
    answer = home.result("accept", files=asked)
    assert (answer["accepted"], answer["refused"], answer["have"]) == ([right], [wrong], [])
    assert answer["partial"] == {cut: 3}
    assert answer["free_bytes"] > 0
    assert home.cache.file(right).read_bytes() == b"right"
    assert not part(home, wrong).exists()
    assert part(home, cut).read_bytes() == b"cut"
    again = home.result("accept", files=asked[:1])
    assert (again["accepted"], again["have"]) == ([], [right])
    assert home.cache.file(right).stat().st_mode & 0o777 == 0o600


def test_accept_takes_no_path_for_a_digest(home: AgentHome) -> None:
    answer = home.run("accept", files=[{"sha256": "../../job", "size": 1}])
    assert (answer["kind"], "not a SHA-256" in answer["error"]) == ("refused", True)


def test_two_tools_send_the_same_file_at_once(home: AgentHome) -> None:
    """Both see the whole part; the second waits until the first has renamed it, and then finds the file there."""
    data = bytes(1000)
    digest = hashlib.sha256(data).hexdigest()
    part(home, digest).write_bytes(data)
    with (home.cache.root / "accepting").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        jobs = [home.start("accept", files=[{"sha256": digest, "size": 1000}]) for _ in range(2)]
        for job in jobs:
            job.worker()
        time.sleep(0.5)
        assert [job.process.poll() for job in jobs] == [None, None]
        assert part(home, digest).exists()
    results = [job.wait()["result"] for job in jobs]
    assert sorted((one["accepted"], one["have"]) for one in results) == [([], [digest]), ([digest], [])]


def test_the_lock_of_those_who_send_is_private(home: AgentHome) -> None:
    home.result("accept", files=[])
    assert (home.cache.root / "accepting").stat().st_mode & 0o777 == 0o600


def test_what_goes_while_it_is_looked_at(home: AgentHome) -> None:
    """A link to nowhere is listed and is not there, as what another tool removes meanwhile."""
    for folder, name in (("agents", "gone.pyz"), ("agents", "gone.part"), ("files", "a" * 64), ("timing", "gone")):
        (home.cache.root / folder / name).symlink_to("nowhere")
    home.result("accept", files=[])
    home.result("clean", max_bytes=0)


def test_clean_leaves_no_agent_but_the_running_one(home: AgentHome) -> None:
    agents = home.pyz.parent
    others = [agents / f"{number}.pyz" for number in range(5)]
    for age, other in enumerate(others):
        other.write_bytes(b"old")
        os.utime(other, (1000 + age, 1000 + age))
    half = agents / f"{home.pyz.stem}.0a1b2c3d.part"
    half.write_bytes(b"half")
    size = home.pyz.stat().st_size
    home.result("clean", max_bytes=10**9)
    assert len(list(agents.iterdir())) == 7
    home.result("clean", max_bytes=1)
    assert {path.name for path in agents.glob("*.pyz")} == {home.pyz.name, "4.pyz", "3.pyz"}
    cleaned = home.result("clean", max_bytes=0)
    assert list(agents.iterdir()) == [home.pyz]
    assert cleaned["kept_bytes"] >= size


def test_what_was_used_longest_ago_goes_first(home: AgentHome) -> None:
    digests = [home.put(bytes([number]) * 1000) for number in range(5)]
    for age, digest in enumerate(digests):
        os.utime(home.cache.file(digest), (1000 + age, 1000 + age))
    used = {"sha256": digests[0], "size": 1000}
    size = sum(path.stat().st_size for path in (home.cache.root / "jobs").rglob("*") if path.is_file())
    home.result("accept", files=[used], max_bytes=3300 + size)
    left = [digest for digest in digests if home.cache.file(digest).exists()]
    assert left == [digests[0], digests[3], digests[4]]  # asked for, so the youngest
    cleaned = home.result("clean", max_bytes=0)
    assert cleaned["freed_bytes"] >= 3000
    assert [path.name for path in home.cache.files.iterdir()] == []
    assert len(list((home.cache.root / "jobs").iterdir())) == 1  # its own
    assert home.pyz.exists()


# --- compile and score ---


def images(tmp_path: Path, count: int) -> tuple[np.ndarray, list[Path]]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    write_shards(tmp_path, "scored", count, list(pixels), shard_bytes=48 * 20)
    return pixels, sorted(tmp_path.glob("scored-*.npy"))


class Pixels:
    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, start: int, stop: int) -> np.ndarray:
        return self.pixels[start:stop]


def score_job(home: AgentHome, model: Path, shards: list[Path], **more: object) -> dict[str, object]:
    contract = read_contract(model)
    assert contract is not None
    return {
        "backend": "onnxruntime", "model": home.put(model), "graph": home.put(model),
        "io": contract.model_dump(mode="json"), "shards": [home.put(shard) for shard in shards], "first": 0,
        "batch": 16, "keep": {}, **more,
    }  # fmt: skip


@pytest.mark.parametrize("batch", [None, 7])
def test_scoring_has_the_bits_of_scoring_here(home: AgentHome, tmp_path: Path, batch: int | None) -> None:
    model = colours(tmp_path / "m.onnx", quantized=True, **({"batch": batch} if batch else {}))
    pixels, shards = images(tmp_path, 50)
    job = home.start("score", **score_job(home, model, shards))
    answer = job.wait()["result"]
    contract = read_contract(model)
    assert contract is not None
    runner = ort.OnnxRuntime().load(model, threads=cores())
    name = contract.outputs[0].name
    here = [answers[name][: len(rows)] for rows, answers in answered_batches(runner, contract.feed, Pixels(pixels), 16)]
    parts = [read_answers(job.folder / "out" / one["name"]) for one in answer["files"]]
    np.testing.assert_array_equal(np.concatenate([part.rows for part in parts]), np.arange(50))
    np.testing.assert_array_equal(np.concatenate([part.outputs[name] for part in parts]), np.concatenate(here))
    assert (answer["how"], answer["images"]) == (runner.how, 50)
    for one in answer["files"]:
        content = (job.folder / "out" / one["name"]).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (one["sha256"], one["size"])


def test_a_rerun_goes_on_where_it_was_cut(home: AgentHome, tmp_path: Path) -> None:
    model = colours(tmp_path / "m.onnx")
    _, shards = images(tmp_path, 50)
    job = score_job(home, model, shards)
    whole = home.result("score", job_id="whole", **job)
    part_of_it = home.result("score", job_id="cut", **job, rows=[16, 50])
    assert part_of_it["images"] == 34
    assert [one["rows"] for one in part_of_it["files"]] == [[16, 50]]
    rest = home.result("score", job_id="cut", **job)
    assert (rest["images"], [one["rows"] for one in rest["files"]]) == (16, [[0, 16], [16, 50]])
    again = home.result("score", job_id="whole", **job)
    assert (again["images"], again["files"]) == (0, whole["files"])
    torn = home.cache.job("whole") / "out" / whole["files"][0]["name"]
    torn.write_bytes(torn.read_bytes()[:-1])
    assert home.result("score", job_id="whole", **job)["files"] == whole["files"]
    other = home.result("score", job_id="whole", **{**job, "batch": 8})
    assert other["images"] == 50


def test_a_graph_that_the_engine_refuses_is_called_by_its_name(home: AgentHome, tmp_path: Path) -> None:
    model = colours(tmp_path / "m.onnx")
    assert home.result("compile", backend="onnxruntime", graph=home.put(model), name="m.onnx")["engine"] is None
    odd = onnx.load(str(model))
    odd.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    odd.graph.node[0].domain = "elsewhere"
    graph = home.put(odd.SerializeToString())
    answer = home.run("compile", backend="onnxruntime", graph=graph, name="$(touch x)\n.onnx")
    assert "onnxruntime cannot load `$(touch x)\n.onnx`" in answer["error"]
    assert graph not in json.dumps(answer)
    assert not (home.home / "x").exists()


def test_a_damaged_model_is_removed_and_said(home: AgentHome, tmp_path: Path) -> None:
    graph = home.put(colours(tmp_path / "m.onnx"))
    home.cache.file(graph).write_bytes(b"other")
    answer = home.run("compile", backend="onnxruntime", graph=graph, name="m.onnx")
    assert answer["kind"] == "damaged"
    assert not home.cache.file(graph).exists()
    assert home.run("compile", backend="onnxruntime", graph=graph, name="m.onnx")["kind"] == "absent"


def test_a_missing_backend(home: AgentHome, tmp_path: Path) -> None:
    graph = home.put(colours(tmp_path / "m.onnx"))
    answer = home.run("compile", backend="tensorrt", graph=graph, name="m.onnx")
    assert "TensorRT is not usable here" in answer["error"]
    assert "apt install python3-libnvinfer" in answer["hint"]
