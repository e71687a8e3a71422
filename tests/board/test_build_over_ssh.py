"""Whole builds with --host over a real OpenSSH server: what a board gives is what this machine gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from desk import Built, Desk
from proxy import Proxy, between
from sshd import Sshd, running

pytestmark = [pytest.mark.train, pytest.mark.slow]

RECIPE = """\
name: digits
data: {format: digits, color: gray}
model: {family: small, name: gap-s, image_size: 16, normalize: half}
train: {epochs: 4, batch: 64, lr: 0.02, augment: shift}
quantize: {images: 64}
bench: {min_seconds: 0.3, max_seconds: 1.0}
device: cpu-x86
budgets: {max_accuracy_drop: 0.05}
"""


@pytest.fixture(scope="module")
def board(openssh: None, tmp_path_factory: pytest.TempPathFactory) -> Sshd:
    with running(tmp_path_factory.mktemp("over-ssh") / "board") as server:
        yield server


@pytest.fixture(scope="module")
def link(board: Sshd) -> Proxy:
    """What counts the bytes that are sent."""
    with between(board.port) as proxy:
        board.write_config(port=proxy.port)
        yield proxy


@pytest.fixture(scope="module")
def desk(board: Sshd, link: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    desk = Desk(tmp_path_factory.mktemp("desk"), board.config)
    (desk.folder / "digits.yaml").write_text(RECIPE)
    return desk


@pytest.fixture(scope="module")
def local(desk: Desk) -> Built:
    return desk.build("digits.yaml", code=(0, 1, 3))


@pytest.fixture(scope="module")
def sent(link: Proxy) -> dict[str, int]:
    """Bytes sent to the board by step."""
    return {}


@pytest.fixture(scope="module")
def remote(desk: Desk, local: Built, link: Proxy, sent: dict[str, int]) -> Built:
    before = link.up
    built = desk.build("digits.yaml", "--host", "board", code=(0, 1, 3))
    sent["first"] = link.up - before
    return built


def test_the_same_verdict_as_here(local: Built, remote: Built) -> None:
    assert remote.states() == local.states()
    assert remote.report["verdict"] == local.report["verdict"]
    assert remote.figures() == local.figures()
    # Nothing that doesn't depend on the device is made again; everything that does is.
    assert set(remote.made) == {
        "compile-float", "compile-int8", "score-float", "score-int8", "speed", "verdict"
    }  # fmt: skip


@pytest.mark.parametrize("stage", ["score-float", "score-int8"])
def test_outputs_are_equal_to_the_last_bit(local: Built, remote: Built, stage: str) -> None:
    here, there = local.outcomes(stage), remote.outcomes(stage)
    assert len(here["logits"]) == 599 * 10 * 4
    assert here == there


def test_it_says_which_board(remote: Built) -> None:
    score = remote.json("score-int8", "score.json")
    assert score["how"].startswith("onnxruntime ")
    assert "on board, 8-bit weights" in score["how"] or "on board, 7-bit weights" in score["how"]
    assert (score["boards"], score["simulated"]) == ({"board": 599}, False)
    speed = remote.json("speed", "speed.json")
    assert (speed["measured"], speed["board"], list(speed["boards"])) == (True, "board", ["board"])
    conditions = remote.report["conditions"]
    assert "board board" in conditions["latency"]
    assert conditions["boards"].startswith("board: 599 images, INT8 p50 ")
    figures = {one["name"]: one["value"] for one in remote.report["figures"]}
    assert figures["int8_io_p50_ms"] > 0
    assert figures["float_e2e_p50_ms"] > 0
    engine = next(one for one in remote.report["checks"] if one["name"] == "engine")
    assert engine["detail"] == "onnxruntime runs the graph itself, on board"


def test_the_second_run_makes_nothing_and_sends_next_to_nothing(
    desk: Desk, remote: Built, link: Proxy, sent: dict[str, int]
) -> None:  # fmt: skip
    before = link.up
    again = desk.build("digits.yaml", "--host", "board", code=(0, 1, 3))
    assert again.made == []
    assert again.run == remote.run
    assert link.up - before < 100_000


def test_what_the_board_has_is_not_sent_again(
    desk: Desk, remote: Built, link: Proxy, sent: dict[str, int]
) -> None:  # fmt: skip
    """Another desk's build: every stage of the board is made anew, from files that the board knows by content."""
    for stage in ("compile-float", "compile-int8", "score-float", "score-int8"):
        shutil.rmtree(remote.stage(stage))
    before = link.up
    again = desk.build("digits.yaml", "--host", "board", "--remeasure", code=(0, 1, 3))
    assert {"compile-int8", "score-int8", "speed"} <= set(again.made)
    assert again.outcomes("score-int8") == remote.outcomes("score-int8")
    second = link.up - before
    print(f"bytes sent: {sent['first']:,} by the first build, {second:,} when every stage of the board was made again")
    assert second < 1_000_000
    assert second < sent["first"] / 2


def test_the_environment_names_the_board_too(desk: Desk, remote: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(desk.environment, "EDGECNN_HOST_CPU_X86", "board")
    again = desk.build("digits.yaml", code=(0, 1, 3))
    assert again.made == []
    assert list(again.json("score-int8", "score.json")["boards"]) == ["board"]


def test_bench_and_check_run_there(desk: Desk, remote: Built, tmp_path: Path) -> None:
    files = (str(remote.run / "model.int8.onnx"), "--baseline", str(remote.run / "model.onnx"))
    quick = ("--set", "min_pairs=64", "--set", "min_seconds=0.2", "--set", "max_seconds=1")
    said = desk("bench", *files, "--host", "board", *quick).stdout
    assert "speed-up" in said
    assert "board board · clocks not locked" in said
    assert "with transfers: model p50 " in said
    desk("check", str(remote.run), "--baseline", str(tmp_path / "b.zip"), "--update")
    other = tmp_path / "other"  # a baseline's own model, byte for byte, needs no timing
    shutil.copytree(remote.run, other)
    model = onnx.load(str(other / "model.int8.onnx"))
    model.doc_string = "another file"
    onnx.save(model, str(other / "model.int8.onnx"))
    done = desk("check", str(other), "--baseline", str(tmp_path / "b.zip"), "--host", "board", code=(0, 3))
    assert "max_regression" in done.stdout
    assert "board board" in done.stdout.replace("\n", " ")


def test_boards_are_probed_and_cleaned(desk: Desk, remote: Built, board: Sshd, tmp_path: Path) -> None:
    said = desk("devices", "probe", "board", "--write", str(tmp_path / "mine.yaml")).stdout
    assert "cpu-x86" in said
    assert "name: mine" in (tmp_path / "mine.yaml").read_text()
    desk("devices", "show", str(tmp_path / "mine.yaml"))
    assert list((board.cache / "files").iterdir())
    assert "freed" in desk("devices", "clean", "--host", "board").stdout
    assert not list((board.cache / "files").iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "nobody-knows"], "`nobody-knows`"),
        (["--host", "board", "--device", "cpu-arm64"], "`board` is x86_64, `cpu-arm64` is aarch64"),
        (["--host", "board", "--device", "jetson-orin-nano"], "`board` is x86_64, `jetson-orin-nano` is aarch64"),
        (["--host", "board", "--device", "rtx-4060"], "`board` is not `rtx-4060` but a machine without NVIDIA GPU"),
        (["--host", "board", "--host", "board"], "the board `board` is named twice"),
        (["--host", "board", "--link", "patience=5"], "no link limit `patience`"),
        (["--host", "board", "--link", "connect_s"], "--link takes NAME=SECONDS"),
    ],
)
def test_a_board_that_cannot_be_the_device_is_refused_before_any_stage(
    desk: Desk, arguments: list[str], words: str
) -> None:
    done = desk("build", "digits.yaml", *arguments, code=2)
    assert words in done.stderr
    assert "hint:" in done.stderr
    assert "running" not in done.stderr
    assert "Traceback" not in done.stderr
