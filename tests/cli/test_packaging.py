"""A built wheel holds the package whole: what an editable install finds by itself must be packed, too."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.full(reason="builds a wheel; only a file that was not packed shows there")
def test_the_wheel_holds_every_file(repo: Path, tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repo, check=True, capture_output=True, text=True).stdout
    tracked = [name for name in listed.split("\0") if name and (repo / name).is_file()]
    for name in tracked:
        copy = tmp_path / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((repo / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(tmp_path / "source")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = set(wheel.namelist())
        entry = wheel.read(next(name for name in packed if name.endswith("entry_points.txt"))).decode()
    wanted = {name for name in tracked if name.startswith("edgecnn/")}
    wanted |= {f"edgecnn/packed/{name}" for name in tracked if name.startswith(("recipes/", "devices/"))}
    assert sorted(wanted - packed) == []
    assert "edgecnn = edgecnn.cli:main" in entry
