"""Ctrl-C in every stage: exit 130, nothing half-made, nobody left behind, and the same command continues."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.train, pytest.mark.slow]

RECIPE = """\
name: broken-off
data: {format: digits, color: gray}
model: {family: small, name: gap-s, image_size: 8, normalize: half}
teacher:
  {family: small, name: gap-s, width: 2.0, image_size: 8, train: {epochs: 1, threads: 1, device: cpu}}
train: {epochs: 3, threads: 1, device: cpu, augment: none, distill: {method: logits}}
quantize: {images: 64}
bench: {min_pairs: 64, min_seconds: 1.0, max_seconds: 1.5}
device: cpu-x86
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe and, as stages finish, one store: each case finds the stages before its own made."""
    folder = tmp_path_factory.mktemp("ctrl-c")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def build(desk: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgecnn", "build", "recipe.yaml", "--json"], cwd=desk, start_new_session=True,
        env={**os.environ, "EDGECNN_CACHE": str(desk / "store"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def running(group: int) -> list[str]:
    """The processes of a process group that are not zombies: their stat lines."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            line = stat.read_text()
        except OSError:
            continue  # it ended meanwhile
        state, _, its_group = line.rpartition(")")[2].split()[:3]
        if int(its_group) == group and state != "Z":
            found.append(line)
    return found


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        ("data", "data: running"),
        ("teacher", "teacher: running"),
        ("train", "train: running"),  # its child is still starting
        ("train", "train: CPU"),  # in its epochs
        ("export", "export: running"),
        ("quantize", "quantize: running"),
        ("compile-int8", "compile-int8: running"),
        ("score-int8", "score-int8: running"),
        ("speed", "speed: running"),
    ],
)
def test_ctrl_c(desk: Path, stage: str, line: str) -> None:
    finished = set(desk.glob("store/stages/*/*"))
    process = build(desk)
    assert process.stderr is not None
    said = ""
    while f"{stage}: running" not in said or not said.splitlines()[-1].startswith(line):
        text = process.stderr.readline()
        assert text, f"the build ended before `{line}`:\n{said}"
        said += text
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130, said + errors
    assert "interrupted: finished stages are kept; the same command continues" in errors
    assert "Traceback" not in errors
    assert printed == ""
    assert running(process.pid) == []

    assert not (desk / "runs").exists()
    made = set(desk.glob("store/stages/*/*"))
    assert made >= finished
    for folder in made:
        files = json.loads((folder / "stage.json").read_text())["files"]
        assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {*files, "stage.json"}
    left = [path.name for partial in desk.glob("store/partial/*") for path in partial.iterdir()]
    assert set(left) <= {"resume"}


def test_the_same_command_completes(desk: Path) -> None:
    process = build(desk)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    document = json.loads(printed)
    assert {"speed", "verdict"} <= set(document["made"])
    assert not {"data", "teacher", "train", "export"} & set(document["made"])
    assert {"report.json", "model.int8.onnx"} <= {path.name for path in Path(desk, document["run"]).iterdir()}
