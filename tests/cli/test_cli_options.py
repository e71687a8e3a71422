"""What every command line tool is asked: --version, -h, --quiet, completion, progress that fits, and true hints."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from edgecnn import __version__
from edgecnn.cli.app import app
from edgecnn.cli.options import complete_device, complete_recipe
from edgecnn.process import progress, versions
from edgecnn.process.versions import install_command


def said(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_version() -> None:
    assert said("--version").strip() == f"edgecnn {__version__}"


@pytest.mark.parametrize("command", [(), ("build",), ("devices",), ("devices", "list"), ("bench",)])
def test_short_help(command: tuple[str, ...]) -> None:
    assert said(*command, "-h") == said(*command, "--help")


@pytest.mark.parametrize("command", ["build", "check", "quantize", "sensitivity", "bench"])
def test_long_commands_can_be_quiet(command: str) -> None:
    assert "--quiet" in said(command, "--help")


def test_quiet_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    from edgecnn.cli.options import show_progress

    for quiet in (False, True):
        with show_progress(False, quiet):
            progress.current().note("data: kept")
    assert capsys.readouterr().err == "data: kept\n"


def test_names_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick.yaml").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "board.yaml").touch()
    assert complete_recipe("qui") == ["quickstart", "quick.yaml"]
    assert "jetson-orin-nano" in complete_device("jetson")
    assert complete_device("mine/") == ["mine/board.yaml"]
    assert complete_device("no-such") == []


def test_elapsed_time_and_rest_are_seen_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    bars = progress.Bars(Console(file=text, width=80, force_terminal=True, color_system=None))
    with bars.task("quantize: adaround of a long layer's name", 12345) as task:
        task.update(6000, "loss 0.314 and a good deal more to tell")
        bars.rich.refresh()
    lines = [line for line in text.getvalue().replace("\r", "\n").split("\n") if "6000/12345" in line]
    assert lines
    assert all("0:00:0" in line for line in lines)  # elapsed
    assert any("-:--:--" in line or line.count("0:00:0") == 2 for line in lines)  # the rest


def test_devices_list_has_a_header() -> None:
    assert said("devices", "list").split("\n")[0].split() == ["DEVICE", "BACKEND", "GPU", "MEMORY", "PRECISIONS"]
    assert isinstance(json.loads(said("devices", "list", "--json")), list)


def test_the_command_that_installs_fits_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my code" / "edgecnn"
    monkeypatch.setattr(versions, "__file__", str(package / "process" / "versions.py"))
    assert install_command("train") == "pip install 'edgecnn[train]'"
    package.mkdir(parents=True)
    (package.parent / "pyproject.toml").touch()
    assert shlex.split(install_command("train,yolo")) == ["pip", "install", "-e", f"{package.parent}[train,yolo]"]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "command",
    [
        ("clean", "--max-gb"),
        ("check", ".", "--baseline", "b.zip", "--max-regression"),
        ("quantize", "m.onnx", "--data", "d", "--device", "cpu-x86", "--max-accuracy-drop"),
        ("devices", "clean", "--host", "board", "--max-gb"),
    ],
)
def test_numbers_are_finite(command: tuple[str, ...], value: str) -> None:
    assert CliRunner().invoke(app, [*command, value]).exit_code == 2
