"""The README's and the tutorials' commands do what a new user is told, and no page names what is not there.

A block marked `sh` is run, in order, in one folder; one marked `console` is only parsed. A comment before a block says
what else is expected: `<!-- exit: 3 -->`, `<!-- checked: parse -->`, `<!-- checked: plan -->`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
TUTORIALS = [REPO / "docs/tutorials" / f"{name}.md" for name in ("images", "onnx", "yolo", "ci")]
PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
BLOCK = re.compile(r"((?:<!-- [^\n]* -->\n)*)```(\w+)\n(.*?)```", re.DOTALL)
Desk = tuple[Path, dict[str, str]]


@dataclass(frozen=True)
class Block:
    """One block of a page: its text, how it is checked, and the exit codes that its commands may have."""

    language: str
    text: str
    checked: str
    codes: tuple[int, ...]

    @property
    def commands(self) -> list[str]:
        """Its lines, those that go on after a backslash as one; a block with a here-document is one command."""
        if "<<" in self.text:
            return [self.text]
        return [line for line in self.text.replace("\\\n", "").splitlines() if line.strip()]


def blocks(page: Path, *languages: str) -> list[Block]:
    found = []
    for comments, language, text in BLOCK.findall(page.read_text()):
        if language in languages:
            notes = dict(re.findall(r"<!-- (\w+): ([\w ]+) -->", comments))
            codes = tuple(int(code) for code in notes.get("exit", "0").split())
            found.append(Block(language, text, notes.get("checked", "run"), codes))
    return found


def page_name(page: Path) -> str:
    return page.relative_to(REPO).as_posix()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A folder with the packed recipes, an empty store, and `edgecnn` and `python` of this interpreter on PATH."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(REPO / "recipes", folder / "recipes")
    programs = folder / "bin"
    programs.mkdir()
    for name, arguments in (("edgecnn", "-m edgecnn "), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments}"$@"\n')
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return folder, {**os.environ, "EDGECNN_CACHE": str(folder / "store"), "PATH": path}


def run(command: str, desk: Desk) -> subprocess.CompletedProcess[str]:
    folder, environment = desk
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


def run_page(page: Path, desk: Desk) -> int:
    """Run a page's blocks; pip's lines, which set up what runs the tests, are left out. Returns how many ran."""
    ran = 0
    for block in blocks(page, "sh"):
        for command in block.commands:
            if block.checked == "parse" or command.startswith(("pip ", ".ci/")):
                continue
            if block.checked == "plan":
                command = command.replace("edgecnn build", "edgecnn plan")
            # Timing on a busy machine may leave a comparison undecided.
            allowed = (0, 3) if command.startswith("edgecnn check") else block.codes
            done = run(command, desk)
            assert done.returncode in allowed, f"{page_name(page)}: {command}\n{done.stdout}\n{done.stderr}"
            ran += 1
    return ran


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.full(
    reason="the quickstart and what follows it; every command is parsed, and other builds take its stages"
)
def test_commands(desk: Desk) -> None:
    assert run_page(REPO / "README.md", desk) >= 9


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.full(reason="a training, two builds and two quantizations, of which the other tiers test each part")
def test_tutorials(desk: Desk) -> None:
    for page in TUTORIALS:
        assert run_page(page, desk) >= 4, page_name(page)
    for block in blocks(REPO / "docs/reference/api.md", "python"):
        done = run(f"python -c {shlex.quote(block.text)}", desk)
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.full(reason="the quickstart twice, behind a gate whose codes test_gate and test_baseline hold")
def test_workflow_steps(desk: Desk) -> None:
    text = next(block.text for block in blocks(TUTORIALS[-1], "yaml") if "runs-on" in block.text)
    assert len(text.splitlines()) <= 20
    steps = [step["run"] for step in yaml.safe_load(text)["jobs"]["int8"]["steps"] if "run" in step]
    build, gate = (step for step in steps if "edgecnn" in step)
    # What has no baseline or decides nothing fails.
    assert not any("--update" in step or "||" in step for step in steps)
    for step, codes in ((build, (0,)), (gate, (2,)), (f"{gate} --update", (0,)), (gate, (0,))):
        if codes == (2,):
            (desk[0] / "quickstart.baseline.zip").unlink(missing_ok=True)
        done = run(step, desk)
        assert done.returncode in codes, f"{step}\n{done.stdout}\n{done.stderr}"


def parse(command: str) -> None:
    """Parse a command line as edgecnn does, and go no further; wrong names and values raise."""
    import typer

    from edgecnn.cli.app import app

    command_line: Any = typer.main.get_command(app)
    context = command_line.make_context("edgecnn", [], resilient_parsing=True)
    words = shlex.split(command, comments=True)[1:]
    while hasattr(command_line, "commands"):
        name = words.pop(0)
        assert name in command_line.commands, f"no such command: {command}"
        command_line = command_line.commands[name]
    command_line.make_context(name, words, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_command_parses(page: Path) -> None:
    extras = set(re.findall(r"^(\w+) = \[", (REPO / "pyproject.toml").read_text(), re.MULTILINE))
    for block in blocks(page, "sh", "console"):
        for command in block.commands:
            if command.startswith("edgecnn "):
                parse(command)
            for group in re.findall(r"'\.\[([\w,]+)\]'", command):
                assert set(group.split(",")) <= extras, command


def test_a_wrong_option_does_not_parse() -> None:
    for command in (
        "edgecnn build quickstart --devise cpu-x86",
        "edgecnn bild quickstart",
        "edgecnn clean --max-gb x",
        "edgecnn build",
    ):
        with pytest.raises(Exception, match=r"(?i)no such|valid number|not a valid|missing"):
            parse(command)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_recipes_of_the_pages_load(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "yaml"):
        if block.text.startswith("name:") and "device:" in block.text:
            (tmp_path / "recipe.yaml").write_text(block.text)
            done = subprocess.run(
                [sys.executable, "-m", "edgecnn", "show", str(tmp_path / "recipe.yaml")], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_paths_that_the_pages_name_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"`((?:tests|benchmarks|recipes|devices|edgecnn|docs|\.ci)/[\w./-]*)`", text):
        assert (REPO / name).exists(), name
    for link in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_names_of_the_api_exist(page: Path) -> None:
    import edgecnn

    for block in blocks(page, "python"):
        compile(block.text, page_name(page), "exec")
        for name in re.findall(r"\bedgecnn\.(\w+)", block.text):
            assert hasattr(edgecnn, name), name


def test_constraints_pin_what_the_project_asks_for() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==([^;]+);", (REPO / "constraints.txt").read_text(), re.MULTILINE))
    asked = re.findall(r'"([\w-]+)>=([\d.]+)', (REPO / "pyproject.toml").read_text())
    assert len(asked) >= 25
    for name, floor in asked:
        if name not in ("setuptools", "tensorrt"):  # what builds, and what is not in every registry
            numbers = [[int(part) for part in re.findall(r"\d+", text)[:3]] for text in (pins[name.lower()], floor)]
            assert numbers[0] >= numbers[1], name


def test_readme_is_a_page() -> None:
    assert len((REPO / "README.md").read_text().splitlines()) <= 200


def test_architecture_names_the_rooms_that_there_are() -> None:
    table = (REPO / "docs/explanation/architecture.md").read_text().split("## Objects")[0]
    named = {
        name for row in re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)
    }
    rooms = [path for path in (REPO / "edgecnn").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert named == {path.name if path.suffix else f"{path.name}/" for path in rooms if not path.name.startswith("__")}


def test_picture_shows_the_stages_and_rungs() -> None:
    from edgecnn.pipeline import stage_names

    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", (REPO / "docs/img/build.svg").read_text())
    assert [stage for stage in stage_names() if stage not in drawn and not stage.startswith("nms-")] == []
    rungs = re.findall(r"^\| `(\w+)` \|", (REPO / "docs/explanation/ladder.md").read_text(), re.MULTILINE)
    assert len(rungs) == 7
    assert [rung for rung in rungs if rung not in drawn] == []
