"""Timing on the board: honest about what it ran under, and everything set for it is set back, however it ends."""

from __future__ import annotations

import io
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agent_home import AgentHome, Running, children, gone, left_over
from golden_graphs import colours, contract
from orin import MODES, UNLOCKED, Orin

from edgecnn.agent import sampler, timing
from edgecnn.agent.monitor import Monitor
from edgecnn.agent.power import find, jetson_commands, read_modes
from edgecnn.backends import TensorInfo
from edgecnn.recipe.io_contract import read_contract
from edgecnn.recipe.recipe import BenchSpec

pytestmark = pytest.mark.slow

SPEC = BenchSpec(warmup_ms=1, min_pairs=64, min_seconds=0.5, max_seconds=0.6)
MAXED = (MODES["MAXN_SUPER"][1], 1_510_400)


@pytest.fixture
def orin(tmp_path: Path) -> Orin:
    return Orin(tmp_path / "orin")


@pytest.fixture
def home(tmp_path: Path, orin: Orin) -> AgentHome:
    return AgentHome(tmp_path / "home", env=orin.env)


def time_job(home: AgentHome, tmp_path: Path, **more: Any) -> dict[str, Any]:
    first, second = colours(tmp_path / "a.onnx"), colours(tmp_path / "b.onnx", quantized=True)
    contract = read_contract(first)
    assert contract is not None
    return {
        "backend": "onnxruntime", "first": home.put(first), "second": home.put(second), "until": "speed",
        "spec": SPEC.model_dump(mode="json"), "io": contract.model_dump(mode="json"), **more,
    }  # fmt: skip


def test_describe_a_jetson(home: AgentHome) -> None:
    facts = home.result("describe")
    assert facts["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (facts["l4t"], facts["jetpack"]) == ("36.4.3", "6.2")
    assert facts["gpu"]["compute_capability"] == "8.7"
    assert (facts["power_mode"], facts["power_modes"]) == ("15W", list(MODES))
    assert facts["clocks_locked"] is False
    assert facts["temperature_c"] == {"cpu": 47.0, "tj": 48.5}
    assert facts["power_rails"] == ["VDD_IN", "VDD_CPU_GPU_CV"]


def test_a_mode_that_is_told_to_root_only(home: AgentHome, orin: Orin) -> None:
    (orin.state / "root-only").touch()
    assert home.result("describe")["power_mode"] == "15W"


def test_time_under_its_conditions(home: AgentHome, orin: Orin, tmp_path: Path) -> None:
    job = home.start("time", **time_job(home, tmp_path))
    answer = job.wait()["result"]
    found = answer["conditions"]
    assert (found["power_mode"], found["clocks_locked"], found["p99_valid"]) == ("15W", False, False)
    assert sampler.INTERVAL_S <= 0.1  # ten a second, where the machine isn't busy with other tests
    assert 0 < found["sampled_hz"] < 1.5 / sampler.INTERVAL_S
    assert found["gpu_mhz"] == {"min": 306.0, "median": 306.0, "max": 306.0}
    assert found["cpu_mhz"]["max"] == 1510.4
    assert found["emc_mhz"] is None  # missing is not 0
    assert found["temperature_c"]["tj"] == {"start": 48.5, "max": 48.5}
    assert found["rails_mw"] == {"VDD_CPU_GPU_CV": 1000.0, "VDD_IN": 5000.0}
    assert (found["idle_mw"], found["energy_mj"]) == (5000.0, {"first": 0.0, "second": 0.0})
    assert (found["throttled"], found["valid"], found["invalid_why"]) == (False, True, "")
    assert orin.calls == []  # nothing was asked, so nothing was set
    assert [one["name"] for one in answer["files"]] == ["pairs.npz"]
    content = (job.folder / "out/pairs.npz").read_bytes()
    with np.load(io.BytesIO(content)) as times:
        assert set(times) == {f"{which}{kind}_ms" for which in ("first", "second") for kind in ("", "_io", "_e2e")}
        assert len(times["first_ms"]) == len(times["second_ms"]) == found["pairs"] >= 64
        assert all((times[name] > 0).all() for name in times)


class Recorder:
    """A Runner that remembers what it was asked to do."""

    how = "nothing computes"
    inputs = (TensorInfo("image", "float32", (None, 3, 4, 4)),)

    def __init__(self) -> None:
        self.fed: list[dict[str, Any]] = []
        self.alone = 0

    def __call__(self, feeds: Any) -> dict[str, Any]:
        self.fed.append(dict(feeds))
        return {}

    def prepared(self, feeds: Any) -> Any:
        def run() -> None:
            self.alone += 1

        return run


def test_what_each_of_the_three_times_is_of(tmp_path: Path) -> None:
    """The engine alone; with its inputs moved; and from uint8 images, which are turned into its input each time."""
    of_floats = {"layout": "NCHW", "dtype": "float32", "range": (0.0, 1.0)}
    io = contract().model_copy(update={"input": contract().input.model_copy(update=of_floats)})
    turned = io.feed(np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), np.uint8))["image"]
    assert (turned.dtype, turned.shape) == (np.float32, (1, 3, 4, 4))
    runners = (Recorder(), Recorder())
    plan = timing.Plan.of({**SPEC.model_dump(mode="json"), "min_seconds": 0.01, "max_seconds": 0.02})
    monitor = Monitor(tmp_path / "samples", ["true"])
    paths = (tmp_path / "m.onnx", tmp_path / "m.onnx")
    found = timing.measure(runners, paths, plan, "speed", monitor, io.model_dump(mode="json")).arrays
    for runner, which in zip(runners, ("first", "second"), strict=True):
        assert runner.alone >= len(found[f"{which}_ms"]) >= 64
        from_images = [np.array_equal(one["image"], turned) for one in runner.fed]
        assert sum(from_images) >= len(found[f"{which}_e2e_ms"]) >= 64
        assert from_images.count(False) >= len(found[f"{which}_io_ms"]) >= 64


@pytest.mark.parametrize("how", ["heat", "current"])
def test_a_throttled_run_is_not_valid(home: AgentHome, orin: Orin, tmp_path: Path, how: str) -> None:
    job = home.start("time", **time_job(home, tmp_path))
    job.until("task")
    if how == "heat":
        orin.write("sys/class/thermal/cooling_device0/cur_state", "1\n")
    else:
        orin.write("sys/class/hwmon/hwmon1/oc1_event_cnt", "3\n")
    found = job.wait()["result"]["conditions"]
    assert (found["throttled"], found["valid"]) == (True, False)
    reason = "gpu-throttle-alert" if how == "heat" else "the supply's current limit"
    assert found["invalid_why"] == f"the board slowed itself down: {reason}"


# --- power mode and clocks: set, and set back ---


POWER = {"power_mode": "MAXN_SUPER", "lock_clocks": True}


def test_power_mode_and_clocks_after_success(
    home: AgentHome, orin: Orin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = orin.root / f"run/edgecnn-{os.geteuid()}.clocks"
    stored.write_text("of an earlier job\n")
    spec = SPEC.model_copy(update={"min_seconds": 1.0, "max_seconds": 1.2}).model_dump(mode="json")
    result = home.result("time", **{**time_job(home, tmp_path, **POWER), "spec": spec})
    found = result["conditions"]
    assert (found["power_mode"], found["clocks_locked"]) == ("MAXN_SUPER", True)
    assert found["power"] == {"was": "15W", "set": "MAXN_SUPER", "clocks_locked": True}
    assert found["gpu_mhz"] == {"min": 1020.0, "median": 1020.0, "max": 1020.0}
    assert result["restored"] is True
    assert orin.calls == [
        f"jetson_clocks --store {stored}", "nvpmodel -m 2", "jetson_clocks ", "nvpmodel -m 0",
        f"jetson_clocks --restore {stored}",
    ]  # fmt: skip
    monkeypatch.setenv("EDGECNN_SYS_ROOT", str(orin.root))
    granted = {" ".join(one) for one in jetson_commands(read_modes())}
    assert {call.strip() for call in orin.calls} <= granted
    assert_restored(home, orin)


def assert_restored(home: AgentHome, orin: Orin) -> None:
    assert (orin.mode, orin.clocks) == ("15W", UNLOCKED)
    assert list(home.cache.restore.iterdir()) == []


def test_power_mode_after_a_failure(home: AgentHome, orin: Orin, tmp_path: Path) -> None:
    job = {**time_job(home, tmp_path, **POWER), "second": home.put(b"no model")}
    answer = home.run("time", **job)
    assert "onnxruntime cannot load" in answer["error"]
    assert "nvpmodel -m 2" in orin.calls
    assert_restored(home, orin)


def running(home: AgentHome, orin: Orin, tmp_path: Path) -> Running:
    """A timing run in the middle of its pairs, in a mode of its own."""
    spec = {**SPEC.model_dump(mode="json"), "min_seconds": 60.0, "max_seconds": 60.0}
    job = home.start("time", **{**time_job(home, tmp_path, **POWER), "spec": spec, "heartbeat_s": 1.0})
    job.until("task")
    assert (orin.mode, orin.clocks) == ("MAXN_SUPER", MAXED)
    return job


@pytest.mark.parametrize("how", ["cut", "close", "kill", "kill-worker"])
def test_power_mode_after_whatever_end(home: AgentHome, orin: Orin, tmp_path: Path, how: str) -> None:
    job = running(home, orin, tmp_path)
    worker = job.worker()
    match how:
        case "cut":
            job.cut()
        case "close":
            job.close()
        case "kill":
            job.kill()
        case "kill-worker":
            os.kill(worker, signal.SIGKILL)
    answer = job.wait(15)
    kinds = {"cut": "heartbeat", "close": "ended", "kill": None, "kill-worker": "killed"}
    assert answer.get("kind") == kinds[how]
    assert gone(worker)
    limit = time.monotonic() + 10
    while list(home.cache.restore.iterdir()) and time.monotonic() < limit:
        time.sleep(0.05)
    assert_restored(home, orin)
    time.sleep(0.3)
    assert left_over(home.home) == []


def keeper_of(home: AgentHome, job: Running) -> int:
    """The keeper's process id."""
    for pid in children(job.process.pid):
        if b"--keeper" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError("no keeper")


def test_another_keeper_restores_for_one_that_was_killed(home: AgentHome, orin: Orin, tmp_path: Path) -> None:
    job = running(home, orin, tmp_path)
    os.kill(keeper_of(home, job), signal.SIGKILL)
    job.close()
    assert job.wait(20)["kind"] == "ended"
    assert_restored(home, orin)


def test_the_next_job_restores_when_the_keeper_was_killed_too(home: AgentHome, orin: Orin, tmp_path: Path) -> None:
    job = running(home, orin, tmp_path)
    worker = job.worker()
    keeper = keeper_of(home, job)
    os.kill(keeper, signal.SIGSTOP)  # so that it cannot restore between the two signals
    job.kill()
    os.kill(keeper, signal.SIGKILL)
    job.wait(10)
    assert gone(worker)
    assert orin.mode == "MAXN_SUPER"
    assert len(list(home.cache.restore.glob("*.json"))) == 1
    following = home.start("time", **time_job(home, tmp_path))
    answer = following.wait()
    assert answer["result"]["conditions"]["power_mode"] == "15W"
    notes = [line["note"] for line in following.lines if "note" in line]
    assert notes == ["an earlier job was killed; what it had set on the board is restored now: power mode 15W"]
    assert_restored(home, orin)


def test_describe_tells_the_mode_that_stays(home: AgentHome, orin: Orin, tmp_path: Path) -> None:
    job = running(home, orin, tmp_path)
    assert home.result("describe")["power_mode"] == "15W"
    job.close()
    job.wait()
    assert_restored(home, orin)


def test_nobody_measures_before_it_is_restored(home: AgentHome, orin: Orin, tmp_path: Path) -> None:
    home.env["NVPMODEL_SECONDS"] = "1.0"
    job = running(home, orin, tmp_path)
    job.kill()
    following = home.start("time", **time_job(home, tmp_path))
    found = following.wait()["result"]["conditions"]
    assert found["power_mode"] == "15W"
    assert any("the board is held by ana@desk" in line.get("note", "") for line in following.lines)
    job.wait()


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("60W", "the board has no power mode `60W`"),
        ("7W", "power mode 7W did not take: the board is in 15W"),
    ],
)
def test_a_mode_that_cannot_be_set(home: AgentHome, orin: Orin, tmp_path: Path, mode: str, words: str) -> None:
    answer = home.run("time", **time_job(home, tmp_path, power_mode=mode))
    assert (answer["error"], answer["kind"]) == (words, "refused")
    if mode == "60W":
        assert "15W, 25W, MAXN_SUPER" in answer["hint"]
    else:
        assert "sudo nvpmodel -m 3" in answer["hint"]
    assert_restored(home, orin)


def test_what_cannot_be_restored_is_said_and_tried_again(home: AgentHome, orin: Orin, tmp_path: Path) -> None:
    job = home.start("time", **time_job(home, tmp_path, power_mode="25W"))
    job.until("task")
    (orin.state / "broken").touch()
    answer = job.wait()
    assert answer["result"]["restored"] is False
    assert any("were not restored: `nvpmodel -m 0` failed" in line.get("note", "") for line in job.lines)
    assert orin.mode == "25W"
    (orin.state / "broken").unlink()
    home.result("clean", max_bytes=10**9)
    assert_restored(home, orin)


def test_a_board_without_power_modes(tmp_path: Path) -> None:
    home = AgentHome(tmp_path / "home", env={"EDGECNN_SYS_ROOT": str(tmp_path)})
    answer = home.run("time", **time_job(home, tmp_path, power_mode="15W"))
    assert "it has no nvpmodel: drop --power-mode" in answer["hint"]


@pytest.mark.skipif(find("nvidia-smi") is not None, reason="a real GPU's clocks would be locked here")
def test_a_board_whose_clocks_nothing_can_lock(tmp_path: Path) -> None:
    home = AgentHome(tmp_path / "home", env={"EDGECNN_SYS_ROOT": str(tmp_path)})
    answer = home.run("time", **time_job(home, tmp_path, lock_clocks=True))
    assert "the board has no `jetson_clocks`" in answer["error"]


NVIDIA_SMI = """\
#!/bin/sh
case "$2" in
--query-gpu=clocks.max.graphics) echo 2520 ;;
--lock-gpu-clocks=*|--reset-gpu-clocks) echo "$*" >> {calls} ;;
*) echo "NVIDIA GeForce RTX 4090, 8.9, 24564, 580.65.06" ;;
esac
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_desktop_gpus_clocks_are_locked_and_let_go(tmp_path: Path, killed: bool) -> None:
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    (programs / "nvidia-smi").write_text(NVIDIA_SMI.format(calls=calls))
    (programs / "nvidia-smi").chmod(0o755)
    env = {"EDGECNN_SYS_ROOT": str(tmp_path), "PATH": f"{programs}:{os.environ['PATH']}"}
    home = AgentHome(tmp_path / "home", env=env)
    job = home.start("time", **time_job(home, tmp_path, lock_clocks=True))
    if killed:
        job.until("task")
        job.kill()
        job.wait()
        limit = time.monotonic() + 10
        while list(home.cache.restore.iterdir()) and time.monotonic() < limit:
            time.sleep(0.05)
    else:
        assert job.wait()["result"]["restored"] is True
    assert calls.read_text().splitlines() == ["--id=0 --lock-gpu-clocks=2520,2520", "--id=0 --reset-gpu-clocks"]
    assert list(home.cache.restore.iterdir()) == []


def test_tegrastats_stands_in_for_the_kernels_files(home: AgentHome, orin: Orin, tmp_path: Path) -> None:
    shutil.rmtree(orin.root / "sys/class/hwmon")
    found = home.result("time", **time_job(home, tmp_path))["conditions"]
    assert found["rails_mw"]["VDD_IN"] == 5297.0
    assert found["emc_mhz"]["max"] == 2133.0
    assert found["gpu_mhz"]["max"] == 306.0  # the kernel's own figure goes before
