"""The README's commands run in order, as a new user types them, and its CI workflow does what it says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.train, pytest.mark.slow]


@pytest.fixture(scope="module")
def desk(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with the packed recipes, an empty store, and `edgecnn` and `pip` of this interpreter on PATH."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(repo / "recipes", folder / "recipes")
    programs = folder / "bin"
    programs.mkdir()
    (programs / "edgecnn").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m edgecnn "$@"\n')
    (programs / "edgecnn").chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return folder, {**os.environ, "EDGECNN_CACHE": str(folder / "store"), "PATH": path}


def blocks(repo: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (repo / "README.md").read_text(), re.DOTALL)


def run(command: str, desk: tuple[Path, dict[str, str]]) -> subprocess.CompletedProcess[str]:
    folder, environment = desk
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


def test_commands(repo: Path, desk: tuple[Path, dict[str, str]]) -> None:
    lines = [line for block in blocks(repo, "sh") for line in block.splitlines() if line.startswith("edgecnn ")]
    assert len(lines) >= 9
    for line in lines:
        done = run(line, desk)
        # Timing on a busy machine may leave a comparison undecided.
        allowed = (0, 3) if line.startswith("edgecnn check") else (0,)
        assert done.returncode in allowed, f"{line}\n{done.stdout}\n{done.stderr}"


def test_recipe_example_is_valid(repo: Path, tmp_path: Path) -> None:
    from edgecnn.recipe.load import load_recipe

    text = next(block for block in blocks(repo, "yaml") if block.startswith("name: flowers"))
    (tmp_path / "flowers.yaml").write_text(text)
    assert load_recipe(str(tmp_path / "flowers.yaml")).name == "flowers"


def test_workflow_steps(repo: Path, desk: tuple[Path, dict[str, str]]) -> None:
    text = next(block for block in blocks(repo, "yaml") if "runs-on" in block)
    assert len(text.splitlines()) <= 20
    steps = [step["run"] for step in yaml.safe_load(text)["jobs"]["int8"]["steps"] if "run" in step]
    build, gate = (step for step in steps if "edgecnn" in step)
    assert not any(
        "--update" in step or "||" in step for step in steps
    )  # what has no baseline or decides nothing fails
    for step, codes in ((build, (0,)), (gate, (2,)), (f"{gate} --update", (0,)), (gate, (0,))):
        if codes == (2,):
            (desk[0] / "quickstart.baseline.zip").unlink(missing_ok=True)
        done = run(step, desk)
        assert done.returncode in codes, f"{step}\n{done.stdout}\n{done.stderr}"


def test_paths_that_the_readme_names_exist(repo: Path) -> None:
    text = (repo / "README.md").read_text()
    for name in re.findall(r"`((?:tests|recipes|devices|edgecnn|\.ci)/[\w./-]*)`", text):
        assert (repo / name).exists(), name
