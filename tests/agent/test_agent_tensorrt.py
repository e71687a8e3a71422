"""The one code path for TensorRT 10.3 to 11, end to end in the packed agent.

TensorRT is a double. The CUDA runtime is a stand-in for the host's memory and, where a GPU is, also the real one.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agent_home import AgentHome
from golden_graphs import colours
from programs import why_missing

from edgecnn.agent.answers import read_answers
from edgecnn.backends import ort
from edgecnn.data.index import write_shards
from edgecnn.recipe.device import DeviceFacts
from edgecnn.recipe.io_contract import read_contract
from edgecnn.recipe.recipe import BenchSpec
from edgecnn.targets import jobs

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
VERSIONS = ("10.3.0", "10.16.0", "11.2.0")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libcudart.so and the module `tensorrt`."""
    if why := why_missing("cc"):
        pytest.skip(why)
    pytest.importorskip("polygraphy")
    folder = tmp_path_factory.mktemp("nvidia")
    library = ["-shared", "-fPIC", "-o", str(folder / "libcudart.so"), str(HERE / "libcudart.c")]
    subprocess.run(["cc", *library], check=True)
    shutil.copyfile(HERE / "fake_tensorrt.py", folder / "tensorrt.py")
    return folder


@pytest.fixture(params=["stand-in", "real"])
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same with either CUDA runtime."""
    if request.param == "stand-in":
        folder: Path = request.getfixturevalue("libraries")
        return folder
    if why := no_gpu():
        pytest.skip(why)
    shutil.copyfile(HERE / "fake_tensorrt.py", tmp_path / "tensorrt.py")
    return tmp_path


def no_gpu() -> str:
    """Why the real CUDA runtime can't be used here, '' where it can."""
    try:
        cuda = ctypes.CDLL("libcudart.so")
    except OSError:
        return "no CUDA runtime here"
    count = ctypes.c_int()
    return "" if cuda.cudaGetDeviceCount(ctypes.byref(count)) == 0 and count.value else "no GPU for the CUDA runtime"


def board(root: Path, libraries: Path, version: str = "10.3.0", **env: str) -> AgentHome:
    paths = {"PYTHONPATH": str(libraries), "LD_LIBRARY_PATH": f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    return AgentHome(root / "home", env={**paths, "FAKE_TENSORRT": version, **env})


def compiled(home: AgentHome, model: Path) -> dict[str, Any]:
    return home.result("compile", backend="tensorrt", graph=home.put(model), name=model.name)


@pytest.mark.parametrize("version", VERSIONS)
def test_compile_score_and_time(tmp_path: Path, runtime: Path, version: str) -> None:
    home = board(tmp_path, runtime, version)
    plain, quantized = colours(tmp_path / "a.onnx"), colours(tmp_path / "b.onnx", quantized=True)
    base, engine = compiled(home, plain), compiled(home, quantized)
    assert base["version"] == f"TensorRT {version}"
    assert [path.read_bytes() for path in home.cache.timing.iterdir()] == [version.encode() + b" timed timed"]
    contract = read_contract(plain)
    assert contract is not None
    pixels = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), np.uint8)
    write_shards(tmp_path, "scored", 50, list(pixels))
    io = contract.model_dump(mode="json")
    scored = home.start(
        "score", backend="tensorrt", model=engine["engine"], io=io, first=0, batch=16, keep={},
        shards=[home.put(tmp_path / "scored-00000.npy")],
    )  # fmt: skip
    answer = scored.wait()["result"]
    assert answer["how"] == f"TensorRT {version} engine, CUDA graph off"
    name = contract.outputs[0].name
    got = read_answers(scored.folder / "out" / answer["files"][0]["name"])
    simulated = ort.load(quantized, simulate=True)(contract.feed(pixels))
    np.testing.assert_allclose(got.outputs[name], simulated[name], rtol=1e-6)
    spec = BenchSpec(warmup_ms=1, min_pairs=64, min_seconds=0.2, max_seconds=20).model_dump(mode="json")
    pair = {"first": base["engine"], "second": engine["engine"], "spec": spec, "until": "speed", "io": io}
    timed = home.start("time", backend="tensorrt", **pair)
    conditions = timed.wait()["result"]["conditions"]
    assert conditions["how"]["first"] == f"TensorRT {version} engine, CUDA graph off"
    assert conditions["timer"] == "device"
    with np.load(timed.folder / "out/pairs.npz") as times:
        assert len(times["first_ms"]) >= 64
        assert np.all(times["first_ms"] >= 0)
        assert np.all(times["first_e2e_ms"] > 0)


def test_a_fixed_batch_and_float_input(tmp_path: Path, libraries: Path) -> None:
    home = board(tmp_path, libraries)
    model = colours(tmp_path / "m.onnx", batch=4)
    engine = compiled(home, model)["engine"]
    contract = read_contract(model)
    assert contract is not None
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    write_shards(tmp_path, "scored", 6, list(pixels))
    scored = home.start(
        "score", backend="tensorrt", model=engine, io=contract.model_dump(mode="json"), first=0, batch=64,
        shards=[home.put(tmp_path / "scored-00000.npy")], keep={},
    )  # fmt: skip
    assert scored.wait()["result"]["images"] == 6


def test_the_gpu_is_out_of_memory(tmp_path: Path, libraries: Path) -> None:
    home = board(tmp_path, libraries, FAKE_CUDA_BYTES="10")
    engine = compiled(home, colours(tmp_path / "m.onnx"))["engine"]
    spec = BenchSpec().model_dump(mode="json")
    answer = home.run("time", backend="tensorrt", first=engine, second=engine, spec=spec, until="speed")
    assert (answer["kind"], "out of memory" in answer["error"]) == ("memory", True)


def test_another_versions_engine(tmp_path: Path, libraries: Path) -> None:
    home = board(tmp_path, libraries)
    engine = compiled(home, colours(tmp_path / "m.onnx"))["engine"]
    home.env["FAKE_TENSORRT"] = "10.16.0"
    spec = BenchSpec().model_dump(mode="json")
    job = {"first": engine, "second": engine, "spec": spec, "until": "speed", "names": {engine: "a.engine"}}
    answer = home.run("time", backend="tensorrt", **job)
    assert answer["error"].startswith("TensorRT 10.16.0 cannot load `a.engine`: The engine plan file is not compatible")
    assert "only on the GPU and TensorRT version it was built for" in answer["hint"]


def test_a_graph_that_the_parser_refuses(tmp_path: Path, libraries: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no graph")
    home = board(tmp_path, libraries)
    answer = home.run("compile", backend="tensorrt", graph=home.put(tmp_path / "m.onnx"), name="m.onnx")
    assert answer["error"].startswith("TensorRT 10.3.0's parser refuses `m.onnx`: ModelImporter: ")


def test_a_driver_too_old_for_the_cuda_runtime(tmp_path: Path, libraries: Path) -> None:
    home = board(tmp_path, libraries, FAKE_CUDA_STATUS="35")  # cudaErrorInsufficientDriver
    engine = compiled(home, colours(tmp_path / "m.onnx"))["engine"]
    spec = BenchSpec().model_dump(mode="json")
    answer = home.run("time", backend="tensorrt", first=engine, second=engine, spec=spec, until="speed")
    assert answer["kind"] == "missing"
    assert answer["error"].startswith("CUDA does not work on the board: ")
    assert "CUDA Error: 35" in answer["error"]


def test_polygraphy_travels_in_the_zipapp(tmp_path: Path) -> None:
    """All of what its CUDA wrapper imports, with none on the board."""
    pytest.importorskip("polygraphy")
    home = AgentHome(tmp_path / "home")
    code = (
        f"import sys; sys.path.insert(0, {str(home.pyz)!r})\n"
        "from polygraphy import cuda\ncuda.DeviceArray, cuda.Stream\n"
        "found = [m for n, m in sys.modules.items() if n.split('.')[0] == 'polygraphy']\n"
        "assert len(found) > 10 and all('.pyz' in m.__file__ for m in found)\nprint('all of it')"
    )
    done = subprocess.run([home.python, "-c", code], capture_output=True, text=True)
    assert done.stdout == "all of it\n", done.stderr


@pytest.mark.parametrize(
    ("reasons", "why"), [("4", ""), ("24", "the board slowed itself down: software thermal slowdown")]
)
@pytest.mark.parametrize("where", ["board", "here"])
def test_a_desktop_gpu_is_watched_through_its_driver(
    tmp_path: Path, libraries: Path, monkeypatch: pytest.MonkeyPatch, where: str, reasons: str, why: str
) -> None:  # fmt: skip
    """0x4 is the software's power cap, which is how such a GPU works; 0x20 is heat."""
    driver = tmp_path / "driver"
    driver.mkdir()
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", str(driver / "libnvidia-ml.so.1"), str(HERE / "libnvidia_ml.c")], check=True
    )
    env = {"LD_LIBRARY_PATH": f"{driver}:{libraries}", "FAKE_NVML_REASONS": reasons, "EDGECNN_SYS_ROOT": str(tmp_path)}
    home = board(tmp_path, libraries, "10.3.0", **env)
    home.env |= env
    engine = compiled(home, colours(tmp_path / "m.onnx"))["engine"]
    spec = BenchSpec(warmup_ms=1, min_pairs=64, min_seconds=0.3, max_seconds=0.6)
    if where == "board":
        job = {"first": engine, "second": engine, "spec": spec.model_dump(mode="json"), "until": "speed"}
        found = home.result("time", backend="tensorrt", **job)["conditions"]
    else:
        for name, text in {**env, "PYTHONPATH": str(libraries)}.items():
            monkeypatch.setenv(name, text)
        facts = DeviceFacts(reachable=True, backend_version="TensorRT 10.3.0", hardware="a desktop GPU")
        file = home.cache.file(engine)
        found = jobs.time_in_child(tmp_path, "tensorrt", (file, file), spec, facts, "speed").conditions
    assert found["gpu_mhz"] == {"min": 2100.0, "median": 2100.0, "max": 2100.0}
    assert found["emc_mhz"]["max"] == 8001.0
    assert found["temperature_c"] == {"gpu": {"start": 61.0, "max": 61.0}}
    assert (found["rails_mw"], found["idle_mw"]) == ({"GPU": 120_000.0}, 120_000.0)
    assert found["energy_mj"] == {"first": 0.0, "second": 0.0}
    assert found["sampled_hz"] > 0
    assert (found["throttled"], found["valid"], found["invalid_why"]) == (bool(why), not why, why)
