"""A file of the user's folder that has a library's name, or the name of a library's file, is not taken for it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgecnn.process.child import run_child

NAMES = ("torch", "numpy", "onnx", "timm", "typer", "clearml", "mlflow", "albumentations", "json")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder of modules that leave a mark when they are imported."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(
            f"open(__file__ + '.was_run', 'w')\nraise SystemExit('{name} of the user')\n"
        )
    return tmp_path


def test_children_import_nothing_from_the_working_directory(
    desk: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path_factory.mktemp('other')}:")  # an empty part is the working directory
    job = {"models": [["model", {"family": "timm", "name": "resnet18", "image_size": 64}]]}
    assert run_child("edgecnn.families.names", job, tmp_path_factory.mktemp("log") / "names.log") == {}
    assert not list(desk.glob("*.was_run"))


@pytest.mark.parametrize("more", [{}, {"PYTHONPATH": "/nowhere:"}])
def test_the_command_imports_nothing_from_the_working_directory(desk: Path, more: dict[str, str]) -> None:
    command = [sys.executable, "-m", "edgecnn", "devices", "list"]
    done = subprocess.run(command, cwd=desk, env={**os.environ, **more}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not list(desk.glob("*.was_run"))


def test_the_layers_are_those_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("ultralytics") is None:
        pytest.skip("the extra [yolo] is not installed")
    from edgecnn.families import ultralytics as family
    from edgecnn.recipe.recipe import ModelSpec

    monkeypatch.chdir(tmp_path)
    planted = "activation: open('was_run', 'w')\nbackbone: []\nhead: []\nnc: 1\nscales: {n: [1, 1, 1]}\n"
    for name in ("yolov8.yaml", "yolov8n.yaml", "yolov9t.yaml"):
        Path(name).write_text(planted)
    for name in ("yolov8n", "yolov9t"):
        spec = ModelSpec.model_validate({"family": "ultralytics", "name": name, "image_size": 64})
        assert len(family.create(spec, 2, 3).model) > 20
    assert not Path("was_run").exists()
    assert len(list(tmp_path.iterdir())) == 3
