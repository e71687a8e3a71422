"""What a board says is checked before anything is done with it: wrong types, sizes, names, numbers, and no end."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecnn.agent.answers import dense, write_answers
from edgecnn.board.answer import Answer
from edgecnn.board.limits import LinkLimits
from edgecnn.board.link import Link
from edgecnn.board.replies import BadAnswer, JobFailed, read_reply
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError, printable
from edgecnn.recipe.load import load_device
from edgecnn.recipe.recipe import BenchSpec
from edgecnn.targets import probe
from edgecnn.targets.fleet import Done, Fleet
from edgecnn.targets.hosts import Boards
from edgecnn.targets.recorded import Recorded
from edgecnn.targets.ssh import SshTarget, facts_of

Json = dict[str, Any]
DIGEST = "ab" * 32
FILES = [{"name": "00000000.npz", "sha256": DIGEST, "size": 100, "rows": [0, 4]}]
CLOCK = {"min": 306.0, "median": 612.0, "max": 612.0}
GOOD: dict[str, Json] = {
    "describe": {
        "agent": "1", "protocol": 1, "python": "3.10.12", "numpy": "1.26.4", "machine": "aarch64", "hostname": "orin",
        "board": "NVIDIA Jetson Orin Nano Developer Kit", "l4t": "36.4.3", "jetpack": "6.2", "cpu": "Cortex-A78AE",
        "vnni": None, "cores": 6, "memory_mb": 7990, "free_memory_mb": 5000, "disk_free_mb": 90_000, "boot_id": "b",
        "clock": 1.7e9, "backends": {"tensorrt": "TensorRT 10.3.0", "onnxruntime": "1.20.1"},
        "gpu": {"name": "Orin", "compute_capability": "8.7", "driver": "", "memory_mb": None}, "power_mode": "15W",
        "power_modes": ["15W", "25W"], "clocks_locked": False, "governor": "schedutil",
        "temperature_c": {"tj": 47.1}, "power_rails": ["VDD_IN"], "gpu_users": [{"pid": 7, "name": "Xorg"}],
        "load_average": 0.1,
    },
    "accept": {"accepted": [DIGEST], "refused": [], "have": [], "partial": {DIGEST: 3}, "free_bytes": 10**9},
    "clean": {"dropped": 1, "freed_bytes": 5, "kept_bytes": 0},
    "compile": {"engine": DIGEST, "size": 5000, "seconds": 3.2, "cached": False, "version": "TensorRT 10.3.0"},
    "score": {"files": FILES, "how": "TensorRT", "seconds": 1.5, "images": 4},
    "time": {
        "files": [{"name": "pairs.npz", "sha256": DIGEST, "size": 100}], "restored": True,
        "conditions": {
            "when": "2026-01-01T00:00:00+00:00", "warmup_ms": 100, "batch": 1, "threads": None, "load_average": 0.2,
            "governor": "schedutil", "frequency_mhz": 1510.4, "clocks_locked": True, "p99_valid": False,
            "p99_invalid_why": "64 queries", "pairs": 64, "seconds": 1.0, "timer": "device", "sampled_hz": 10.0,
            "gpu_mhz": CLOCK, "emc_mhz": None, "cpu_mhz": CLOCK, "temperature_c": {"tj": {"start": 47.0, "max": 48.0}},
            "rails_mw": {"VDD_IN": 5000.0}, "idle_mw": 4000.0, "energy_mj": {"first": 1.0, "second": None},
            "throttled": False, "throttled_why": "", "how": {"first": "TensorRT", "second": "TensorRT"},
            "gpu_users": [], "watched": True, "backend": "TensorRT 10.3.0", "profile": "recipe", "valid": True,
            "invalid_why": "", "power_mode": "15W", "power": {"was": "15W", "set": "15W", "clocks_locked": True},
        },
    },
}  # fmt: skip
HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202egnp.\x9b31m"


def answered(do: str, line: bytes) -> Json:
    """What a host makes of a job's last line."""
    with Answer() as answer:
        answer.take(line)
        return read_reply(do, answer.result(0, "board"))


def last_word(result: object) -> bytes:
    return json.dumps({"result": result}).encode()


@pytest.mark.parametrize("do", GOOD)
def test_what_the_agent_says_is_taken_as_it_is(do: str) -> None:
    assert answered(do, last_word(GOOD[do])) == GOOD[do]


def changed(do: str, *path: str | int, to: object) -> bytes:
    content = json.loads(json.dumps(GOOD[do]))
    place = content
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = to
    return last_word(content)


@pytest.mark.parametrize(
    ("do", "line", "what"),
    [
        ("describe", changed("describe", "backends", to=["tensorrt"]), "`backends`"),
        ("describe", changed("describe", "gpu", to="Orin"), "`gpu`"),
        ("describe", changed("describe", "memory_mb", to="7990"), "`memory_mb`"),
        ("describe", changed("describe", "cores", to=True), "`cores`"),
        ("describe", changed("describe", "temperature_c", to={"tj": None}), "`temperature_c.tj`"),
        ("describe", last_word({}), "`agent`"),
        ("describe", last_word([]), "`result`"),
        ("describe", b'{"result": "ready"}', "`result`"),
        ("describe", changed("describe", "surprise", to=1), "`surprise`"),
        ("describe", changed("describe", "backends", to={HOSTILE: 1}), "`backends.\\x1b]0;owned"),
        ("compile", changed("compile", "engine", to="../../.ssh/authorized_keys"), "`engine`"),
        ("compile", changed("compile", "size", to=-1), "`size`"),
        ("compile", changed("compile", "size", to=10**40), "`size`"),
        ("compile", changed("compile", "seconds", to=float("nan")), "NaN"),
        (
            "compile",
            last_word({**GOOD["compile"], "seconds": 0}).replace(b'"seconds": 0', b'"seconds": 1e999'),
            "`seconds`",
        ),
        ("time", changed("time", "conditions", "seconds", to=float("-inf")), "Infinity"),
        ("time", changed("time", "conditions", "valid", to="yes"), "`conditions.valid`"),
        ("time", changed("time", "files", to=[]), "`files`"),
        ("score", changed("score", "files", to=FILES * 2), "a name appears twice"),
        ("score", changed("score", "files", 0, "name", to="/etc/passwd"), "`files.0.name`"),
        ("score", changed("score", "files", 0, "name", to="a" * 300), "`files.0.name`"),
        ("accept", changed("accept", "partial", to={"../x": 3}), "`partial."),
        ("clean", b'{"result": {"dropped": 1, "dropped": 2, "freed_bytes": 5, "kept_bytes": 0}}', "twice"),
        ("clean", b'{"task": 5, "done": "much"}', "`task`"),
        ("clean", b'{"task": "x", "done": "much"}', "`done`"),
        ("clean", b'{"note": ["x"]}', "`note`"),
        ("clean", b'{"error": {"a": 1}}', "`error`"),
        ("clean", b'{"error": "no", "kind": "\\u001b[2J"}', "`kind`"),
    ],
)
def test_an_answer_that_is_not_ours_is_refused_and_named(do: str, line: bytes, what: str) -> None:
    with pytest.raises(BadAnswer) as caught:
        answered(do, line)
    assert what in caught.value.message
    assert "run it again" in caught.value.hint
    assert printable(caught.value.message) == caught.value.message


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\xff\xfe{\x00", b'{"result": {"dropped": ', b'{"result": ' + b"9" * 6000 + b"}", b"{" * 100_000,
        b'{"a":' * 200_000, b'{"result": ' + b"[" * 100_000, b'{"result": "\xff"}', b'{"re', b'{"other": {}}',
    ],
    ids=range(10),
)  # fmt: skip
def test_what_is_no_message_is_passed_over(line: bytes) -> None:
    with pytest.raises(JobFailed, match="ended with code 0 and no answer"):
        answered("clean", line)


def test_a_board_that_goes_on_and_on_is_stopped() -> None:
    for line, most in ((b"y" * 1000, 5_000), (b'{"note": "still here"}', 20_000)):
        with pytest.raises(BadAnswer, match="it goes on and on"):
            repeat(partial(Answer().take, line), most)


def repeat(do: Callable[[], object], times: int) -> None:
    for _ in range(times):
        do()


def answering(said: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Link:
    """A link to a program that says what a board's shell loop never does."""
    script = f"echo edgecnn-link; cat {tmp_path}/said; cat > /dev/null"
    monkeypatch.setattr("edgecnn.board.link.OPTIONS", ("sh", "-c", script, "-"))
    (tmp_path / "said").write_bytes(said)
    return Link("board", LinkLimits())


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"edgecnn-data 11\n" + bytes(11), "more bytes than were requested"),
        (b"edgecnn-data -1\n", "not a number of bytes"),
        (b"edgecnn-data many\n", "not a number of bytes"),
        (b"x" * 2_000_000, "a line of more than 1 MiB"),
        (b"x\n" * 200_000, "it goes on and on"),
        (b"\n" * 200_000, "it goes on and on"),
        (b"", "it has said nothing for"),
    ],
)
def test_a_link_that_says_what_it_should_not(
    said: bytes, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("edgecnn.board.link.SILENT", 0.5)
    link = answering(said, monkeypatch, tmp_path)
    with (tmp_path / "x").open("wb") as sink, pytest.raises(BadAnswer, match=why):
        link.get("x", sink, 10, lambda _: None)
    link.close()


def test_nothing_of_a_board_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.showing(progress.Plain(0.0)), Answer() as answer:
        answer.take(json.dumps({"note": HOSTILE}).encode())
        answer.take(json.dumps({"task": HOSTILE, "done": 1, "total": 2, "text": HOSTILE}).encode())
    facts = {**GOOD["describe"], "board": HOSTILE, "power_mode": HOSTILE, "gpu_users": [{"pid": 1, "name": HOSTILE}]}
    described = answered("describe", last_word(facts))
    shown = [capsys.readouterr().err, described["board"], described["power_mode"], described["gpu_users"][0]["name"]]
    with pytest.raises(JobFailed) as caught:
        answered("clean", json.dumps({"error": HOSTILE, "hint": f"{HOSTILE}\nnext line"}).encode())
    shown += [caught.value.message, caught.value.hint]
    for text in shown:
        assert "owned" in text
        assert all(one.isprintable() or one == "\n" for one in text), repr(text)


def test_a_boards_name_stays_in_its_comment(tmp_path: Path) -> None:
    facts = {**GOOD["describe"], "board": "Orin\nbackend: onnxruntime", "power_modes": ["15W\nscheme: {}"]}
    described = answered("describe", last_word(facts))
    text = probe.device_file(described, "mine", probe.fitting_devices(described))
    assert (
        text.splitlines()[0]
        == "# Orin\\nbackend: onnxruntime; power modes: 15W\\nscheme: {} (bench.power_mode, or --power-mode)"
    )
    (tmp_path / "mine.yaml").write_text(text)
    assert load_device(str(tmp_path / "mine.yaml")).backend == "tensorrt"


def test_a_long_log_is_cut_not_refused() -> None:
    with pytest.raises(JobFailed) as caught:
        answered("clean", json.dumps({"error": "no", "hint": f"first {'x' * 500_000} last"}).encode())
    assert (caught.value.message, caught.value.hint[:6], caught.value.hint[-5:]) == ("no", "first ", " last")
    assert len(caught.value.hint) < 9_000


def test_markup_in_a_boards_words_is_text() -> None:
    """rich would end in an error of its own at a closing tag that was never opened."""
    bars = progress.Bars()
    bars.console.file = file = io.StringIO()
    with bars.task("[/orin] sends", 2) as task:
        task.update(1, "[/x]")
        bars.rich.refresh()
        bars.note(f"[/bold]{HOSTILE}")
    assert "[/bold]\\x1b]0;owned" in file.getvalue()


# --- seeded faults of every kind, through everything that a host does with answers ---

VALUES = (
    None, True, -1, 0, 10**30, 1e308, float("nan"), float("inf"), "", "x" * 9000, HOSTILE, "\udc80", "../../x", [], {},
    [[]], {"a": {"b": 1}}, ["x"] * 200, DIGEST,
)  # fmt: skip


def faulty(content: Json, draw: random.Random) -> bytes:
    """A message with one or two faults: another value, a part more, less or twice; or bytes cut, changed or added."""
    content = json.loads(json.dumps(content))
    for _ in range(draw.choice((1, 1, 2))):
        places = list(_places(content))
        place, key = draw.choice(places)
        fault = draw.randrange(4)
        if fault == 0 and isinstance(place, dict):
            del place[key]
        elif fault == 1 and isinstance(place, dict):
            place[draw.choice(("new", "", HOSTILE))] = copy.deepcopy(draw.choice(VALUES))
        else:
            place[key] = copy.deepcopy(draw.choice(VALUES))
        if not content:
            break
    line = bytearray(json.dumps(content).encode())
    match draw.randrange(8):
        case 0:
            del line[draw.randrange(len(line)) :]
        case 1:
            line[draw.randrange(len(line))] = draw.randrange(256)
        case 2:
            line[draw.randrange(len(line)) :] = b"[" * 50_000
        case 3:
            line[0:0] = b'Welcome {"friend"} \x1b[2J'
    return bytes(line)


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(content.items() if isinstance(content, dict) else enumerate(content)):
        yield content, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


class FaultyBoard:
    """Answers every job with one line, and its files with bytes that may not be what they should."""

    host = "board"

    def __init__(self, lines: dict[str, bytes], draw: random.Random) -> None:
        self.lines, self.draw = lines, draw

    @property
    def facts(self) -> Json:
        return self.run({"do": "describe"})

    def run(self, job: Json, inputs: object = None, *, out: Path | None = None, step: str = "") -> Json:
        result = answered(job["do"], self.lines[job["do"]])
        for file in result.get("files", ()) if out else ():
            assert out is not None
            arrays = {f"{one}_{kind}ms": np.full(64, 1.5) for one in ("first", "second") for kind in ("", "io_")}
            with (out / file["name"]).open("wb") as sink:
                np.savez(sink, **arrays)
            spoil(out / file["name"], self.draw)
        return result

    def fetch(self, digest: str, size: int, to: Path) -> None:
        raise AssertionError("nothing is built here")

    def close(self) -> None:
        pass


def spoil(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    match draw.randrange(4):
        case 0:
            del content[draw.randrange(len(content)) :]
        case 1:
            for _ in range(3):
                content[draw.randrange(len(content))] = draw.randrange(256)
        case 2:
            start = content.find(b"'shape': (") + draw.randrange(10, 14)
            content[start : start + 2] = draw.choice((b"99", b"-1", b"(("))
    path.write_bytes(content)


def probed(board: FaultyBoard, folder: Path) -> None:
    facts = board.facts
    facts_of(load_device("jetson-orin-nano"), Boards(("board",)), Done("board", facts))
    probe.device_file(facts, "board", probe.fitting_devices(facts))
    assert not any("\x1b" in text for _, text in probe._rows(facts))


def timed(board: FaultyBoard, folder: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        (folder / name).write_bytes(name.encode())
    profile = load_device("cpu-x86")
    target = SshTarget(profile, facts_none(), Fleet(("board",), lambda _: contextlib.nullcontext(board)))
    times = target.time_files(folder / "a.onnx", folder / "b.onnx", BenchSpec())
    assert times is not None
    assert np.isfinite(times.second_ms).all()


def facts_none() -> Any:
    return type("Facts", (), {"hardware": "a board"})()


def scored(board: FaultyBoard, folder: Path) -> None:
    result = board.run({"do": "score"})
    files = [folder / one["name"] for one in result["files"]]
    for file in files:
        write_answers(file, dense(range(4), {"logits": np.zeros((4, 3), np.float32)}))
        spoil(file, board.draw)
    recorded = Recorded(files, 4, result["how"], ["logits"])
    recorded.batch(0, 4)
    assert recorded({})["logits"].shape == (4, 3)


def bounded(board: FaultyBoard, folder: Path) -> None:
    for do in ("accept", "clean", "compile"):
        board.run({"do": do})


@pytest.mark.parametrize("used", [probed, timed, scored, bounded])
def test_faulty_answers_end_as_errors(used: Callable[[FaultyBoard, Path], None], tmp_path: Path) -> None:
    refused = 0
    for seed in range(100):
        draw = random.Random(seed)
        lines = {do: faulty({"result": GOOD[do]}, draw) for do in GOOD}
        (folder := tmp_path / str(seed)).mkdir()
        try:
            used(FaultyBoard(lines, draw), folder)
        except EdgeError:
            refused += 1
    assert refused >= 50
