"""The error border: which exit code what gets, one line each, and where a traceback is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from edgecnn.cli import border as cli_border
from edgecnn.process.child import run_child
from edgecnn.process.errors import EdgeError, InternalError, printable

HERE = str(Path(__file__).parent)
REPO = str(Path(__file__).parents[2])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGECNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["edgecnn", "show", "x"])
    return tmp_path / "cache"


def ended(command: Callable[[], object]) -> object:
    with pytest.raises(SystemExit) as end:
        cli_border.run(command)
    return end.value.code


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def command() -> NoReturn:
        raise error

    return command


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgecnn", *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_an_unforeseen_exception_is_one_line_and_70(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(KeyError("r0_Clip"))) == 70
    said = capsys.readouterr().err
    (file,) = (cache / "tracebacks").iterdir()
    assert said == f"internal error: KeyError: 'r0_Clip' (a fault of edgecnn, not of your input); traceback: {file}\n"
    assert "Traceback (most recent call last)" in file.read_text()
    assert "in command" in file.read_text()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EdgeError("no recipe", "write one"), 2),
        (InternalError("the folded graph answers differently"), 70),
        (AssertionError(), 70),
        (RecursionError("too deep"), 70),
        (FileNotFoundError(2, "No such file or directory", "stage.json"), 70),
        (OSError(36, "File name too long", "x" * 300), 2),
        (OSError(28, "No space left on device", "/a"), 2),
        (MemoryError(), 2),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
        (SystemExit(3), 3),
        (SystemExit(None), 0),
    ],
    ids=repr,
)
def test_codes(cache: Path, error: BaseException, code: int) -> None:
    assert ended(raising(error)) == code
    assert (cache / "tracebacks").is_dir() == (code == 70)


def test_a_program_gets_it_as_json(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["edgecnn", "show", "x", "--json"])
    assert ended(raising(ValueError("odd\nand more"))) == 70
    document = json.loads(capsys.readouterr().out)
    assert document["error"] == "internal error: ValueError: odd"
    assert Path(document["traceback"]).is_file()


@pytest.mark.parametrize("hindrance", ["a file in its place", "no home"])
def test_without_a_store_the_traceback_goes_to_the_temporary_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hindrance: str
) -> None:
    if hindrance == "no home":
        monkeypatch.delenv("EDGECNN_CACHE")
        monkeypatch.setenv("HOME", "~nobody-of-this-name")
    else:
        cache.write_text("no folder")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert ended(raising(KeyError("x"))) == 70
    (file,) = (tmp_path / "temporary").iterdir()
    assert str(file) in capsys.readouterr().err


def test_where_nothing_can_be_written_the_traceback_is_said(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("no folder")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    assert ended(raising(KeyError("x"))) == 70
    assert "Traceback" in capsys.readouterr().err


def test_only_the_newest_tracebacks_are_kept(cache: Path) -> None:
    folder = cache / "tracebacks"
    folder.mkdir(parents=True)
    for number in range(30):
        (folder / f"edgecnn-20200101-0000{number:02d}-x.txt").touch()
    assert ended(raising(KeyError("x"))) == 70
    kept = sorted(path.name for path in folder.iterdir())
    assert len(kept) == 20
    assert kept[0] == "edgecnn-20200101-000011-x.txt"


def test_a_childs_unforeseen_exception_is_ours_too(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        run_child("faulty_child", {"do": "divide"}, tmp_path / "log", env={"PYTHONPATH": HERE})

    assert ended(command) == 70
    (file,) = (cache / "tracebacks").iterdir()
    assert "internal error: ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert "faulty_child.py" in file.read_text()  # the child's own trace, not only ours


def test_a_child_that_ends_without_a_word_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="ended with code 5 and no result") as caught:
        run_child("faulty_child", {"do": "leave"}, tmp_path / "log", env={"PYTHONPATH": HERE})
    assert "last words" in caught.value.trace


def test_escape_sequences_are_spelled_out(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[31m\x9b\u202e\r.jpg"
    assert ended(raising(EdgeError(f"`{name}` is no image", f"remove {name}"))) == 2
    said = capsys.readouterr().err
    assert printable("größer 漢\n\tnext") == "größer 漢\n\tnext"
    assert not any(one in said for one in "\x1b\x9b\u202e\r")
    assert said.count(r"a\x1b[31m\x9b\u202e\r.jpg") == 2


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m edgecnn schema | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) in ((141, ""), (0, ""))  # 0: all of it fitted into the pipe


def test_ctrl_c_while_a_class_is_made_is_130_too(tmp_path: Path) -> None:
    module = "from edgecnn.cli.border import run\nrun(lambda: exec('raise KeyboardInterrupt'))\n"
    (tmp_path / "interrupted.py").write_text(module)
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{REPO}"},
    )
    assert done.returncode == 130


def test_a_full_disk_behind_stdout_is_said() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "edgecnn", "schema"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_deleted_working_directory(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"rmdir {gone}; exec {sys.executable} -m edgecnn devices list"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=gone,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": REPO},
    )
    assert done.returncode == 2, done.stderr
    assert "error: the working directory no longer exists" in done.stderr


def test_a_home_that_nobody_has() -> None:
    done = program("show", "~no-such-user/recipe.yaml")
    assert done.returncode == 2
    assert "there is no home folder for `~no-such-user`" in done.stderr


@pytest.mark.parametrize(
    ("environment", "refused"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1"}, True),
        ({"WORLD_SIZE": "two"}, True),
        ({"WORLD_SIZE": "1", "RANK": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"PMI_SIZE": "2"}, True),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, True),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, True),
        ({"SLURM_NTASKS": "8"}, False),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, False),
    ],
)
def test_one_of_several_processes_is_refused(
    environment: dict[str, str], refused: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable, _ in cli_border.LAUNCHERS:
        monkeypatch.delenv(variable, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ran: list[int] = []
    assert ended(lambda: ran.append(1)) == (2 if refused else 0)
    assert bool(ran) != refused
    told = capsys.readouterr().err
    assert not refused or ("start it once" in told and next(iter(environment)) in told)
