"""A stand-in Jetson Orin Nano behind a real sshd, through the whole of a build: engines, scores, times, verdict.

Its nvpmodel, jetson_clocks and kernel files are tests/agent/orin.py's, its TensorRT is the recorded one. What was set
for the timing is set back after success, failure and kill.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from desk import Built, Desk
from programs import SYSTEM_PATH
from sshd import Sshd, running

from edgecnn.recipe.load import load_device

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))
from orin import UNLOCKED, Orin

pytestmark = [pytest.mark.train, pytest.mark.slow]

RECIPE = """\
name: on-orin
data: {format: digits, color: gray}
model: {family: small, name: gap-s, image_size: 8, normalize: half}
train: {epochs: 4, batch: 64, lr: 0.005, augment: shift}
quantize: {images: 64}
bench: {min_pairs: 64, min_seconds: 0.5, max_seconds: 2.0, power_mode: MAXN_SUPER, lock_clocks: true}
device: jetson-orin-nano
budgets: {max_accuracy_drop: 0.08, min_speedup: 1.3}
"""
LONG = ("bench.min_seconds=20", "bench.max_seconds=30")


@dataclass
class Bench:
    """The board, the desk and the stand-in's state."""

    server: Sshd
    orin: Orin
    desk: Desk
    device: Path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [
            sys.executable, str(Path(__file__).with_name("orin_build.py")), "recipe.yaml", str(self.device),
            str(self.desk.store), "runs", *arguments,
        ]  # fmt: skip
        return subprocess.Popen(
            command, cwd=self.desk.folder, env=self.desk.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip

    def build(self, *arguments: str) -> Built:
        process = self.start(*arguments)
        printed, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return Built(self.desk, json.loads(printed))

    def timing(self, *arguments: str) -> subprocess.Popen[str]:
        """A build that is timing its pairs, in another power mode and with locked clocks."""
        process = self.start(*arguments, *LONG, "--remeasure")
        until(lambda: self.orin.mode == "MAXN_SUPER" and self.orin.clocks != UNLOCKED, process)
        time.sleep(1.0)
        assert process.poll() is None
        return process

    def is_restored(self) -> bool:
        return self.orin.mode == "15W" and self.orin.clocks == UNLOCKED


def until(done: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 120) -> None:
    def holds() -> bool:
        try:
            return done()
        except ValueError:  # a script of the stand-in is just writing the file
            return False

    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, "it takes too long"
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


@pytest.fixture(scope="module")
def bench(openssh: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("orin")
    orin = Orin(folder / "orin")
    programs = orin.env["PATH"].split(os.pathsep)[0]
    environment = {**orin.env, "PATH": f"{folder}/board/bin:{programs}:{SYSTEM_PATH}"}
    with running(folder / "board", environment=environment) as server:
        desk = Desk(folder / "desk", server.config)
        (desk.folder / "recipe.yaml").write_text(RECIPE)
        # The same device, but that the machine under the stand-in is this one.
        here = load_device("jetson-orin-nano").model_dump(mode="json") | {"architecture": os.uname().machine}
        device = desk.folder / "stand-in.yaml"
        device.write_text(yaml.safe_dump(here))
        desk("build", "recipe.yaml", "--until", "export")  # here, where torch is: the builds find it kept
        yield Bench(server, orin, desk, device)


@pytest.fixture(scope="module")
def built(bench: Bench) -> Built:
    return bench.build()


def test_a_verdict_from_the_board(built: Built, bench: Bench) -> None:
    assert built.states() == {"engine": "pass", "max_accuracy_drop": "pass", "min_speedup": "pass"}
    assert built.report["verdict"] == "pass"
    conditions = built.report["conditions"]
    assert conditions["hardware"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (conditions["backend"], conditions["driver"]) == ("TensorRT 10.3.0", "L4T 36.4.3")
    assert conditions["simulated"] is False
    assert conditions["scoring"] == "TensorRT 10.3.0 engine, CUDA graph off, on board"
    figures = {one["name"]: one["value"] for one in built.report["figures"]}
    assert 1.4 < figures["speedup"] < 2.0  # 2.0 ms and 1.2 ms, as recorded
    assert figures["int8_engine_size"] > 0


def test_the_engine_is_here_too(built: Built) -> None:
    engine = (built.run / "jetson-orin-nano.engine").read_bytes()
    assert engine.startswith(b"recorded plan of TensorRT 10.3.0\n")
    typed = (built.run / "model.int8.typed.onnx").read_bytes()
    assert engine.endswith(typed)


def test_it_was_timed_in_the_mode_that_was_asked_and_says_so(built: Built, bench: Bench) -> None:
    speed = built.json("speed", "speed.json")
    assert (speed["power_mode"], speed["clocks_locked"], speed["valid"]) == ("MAXN_SUPER", True, True)
    assert (speed["power"]["was"], speed["power"]["set"]) == ("15W", "MAXN_SUPER")
    assert speed["sampled_hz"] >= 10
    text = built.report["conditions"]["latency"]
    assert "board board · power mode MAXN_SUPER · clocks locked · GPU 1020 MHz" in text
    assert "tj 48 to 48 °C" in text
    assert built.report["conditions"]["power_mode"] == "MAXN_SUPER"
    figures = {one["name"]: one for one in built.report["figures"]}
    assert figures["int8_energy_mj"]["unit"] == "mJ"
    page = (built.run / "report.html").read_text()
    assert "MAXN_SUPER" in page


def test_after_success_the_board_is_as_it_was(built: Built, bench: Bench) -> None:
    assert bench.is_restored()
    assert any(call.startswith("nvpmodel -m 2") for call in bench.orin.calls)
    until(lambda: bench.server.agents() == {}, seconds=10)


def test_after_a_crash_while_timing_the_board_is_as_it_was(built: Built, bench: Bench) -> None:
    process = bench.timing()
    [worker] = [pid for pid, command in bench.server.agents().items() if "--worker" in command]
    os.kill(worker, signal.SIGSEGV)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "error: time on `board`: the job on the board crashed with SIGSEGV" in said
    assert bench.is_restored()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_after_a_killed_tool_the_board_is_as_it_was_and_a_rerun_completes(
    built: Built, bench: Bench, number: signal.Signals
) -> None:
    process = bench.timing()
    os.killpg(process.pid, number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    until(bench.is_restored, seconds=30)
    until(lambda: bench.server.agents() == {}, seconds=30)
    again = bench.build()
    decided = ("engine", "max_accuracy_drop")  # a busy machine may leave the speed open
    assert {name: again.states()[name] for name in decided} == {name: built.states()[name] for name in decided}
    assert again.outcomes("score-int8") == built.outcomes("score-int8")


def test_a_throttled_run_decides_nothing(built: Built, bench: Bench) -> None:
    hot = "sys/class/thermal/cooling_device0/cur_state"
    bench.orin.write(hot, "1\n")
    try:
        again = bench.build("--remeasure")
    finally:
        bench.orin.write(hot, "0\n")
    assert again.states()["min_speedup"] == "not-enough-evidence"
    assert again.report["verdict"] == "not-enough-evidence"
    assert any(note.startswith("the timing is invalid: the board slowed itself down") for note in again.report["notes"])
    assert bench.is_restored()


def test_a_power_mode_that_the_board_does_not_have(built: Built, bench: Bench) -> None:
    process = bench.start("bench.power_mode=99W")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the board has no power mode `99W`" in said
    assert "it has 15W, 25W, MAXN_SUPER, 7W" in said
    assert bench.is_restored()


def test_another_board_is_refused(bench: Bench) -> None:
    other = load_device("jetson-agx-orin").model_dump(mode="json") | {"architecture": os.uname().machine}
    device = bench.desk.folder / "other.yaml"
    device.write_text(yaml.safe_dump(other))
    process = Bench(bench.server, bench.orin, bench.desk, device).start()
    _, said = process.communicate(timeout=60)
    assert "`board` is not `jetson-agx-orin` but NVIDIA Jetson Orin Nano Developer Kit (compute capability 8.7)" in said
    assert "edgecnn devices probe board" in said
