"""The rooms of the package: no circle between them, few files beside them, and heavy libraries only in their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import pytest

from edgecnn.agent.pack import packed_modules
from edgecnn.process.sources import PACKAGE, modules, own_imports

HEAVY = (
    "torch", "torchvision", "timm", "ultralytics", "tensorrt", "tensorrt_rtx", "polygraphy", "openvino", "ray",
)  # fmt: skip
# Whose modules may import them as they are imported; the `__init__` of none may.
HEAVY_ROOMS = ("families", "training", "quantize.torch", "quantize.rungs.learned")
# In every process of the test, children too: an import finds nothing.
BLOCK = f"import sys\nfor name in {HEAVY!r}:\n    sys.modules[name] = None\n"
IMPORT = """\
import importlib, sys
sys.path.remove("")  # as every process of edgecnn starts
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(name, error)
"""


def room(module: str) -> str:
    """The first folder below the package, or the file beside the rooms."""
    return ".".join(module.split(".")[:2])


def heavy(module: str) -> bool:
    return module.startswith(tuple(f"{PACKAGE.name}.{name}." for name in HEAVY_ROOMS))


@pytest.fixture(scope="module")
def blocked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(BLOCK)
    return {**os.environ, "PYTHONPATH": str(folder)}


def refused(blocked: dict[str, str], names: set[str]) -> list[str]:
    """Of these modules, those that cannot be imported without the heavy libraries, and why."""
    command = [sys.executable, "-c", IMPORT, *sorted(names)]
    done = subprocess.run(command, capture_output=True, text=True, env=blocked)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_no_circle_between_rooms() -> None:
    needed: dict[str, set[str]] = defaultdict(set)
    why: dict[tuple[str, str], str] = {}
    for name in modules():
        for other in own_imports(name) - {PACKAGE.name}:
            if room(name) not in (room(other), PACKAGE.name):
                needed[room(name)].add(room(other))
                why[room(name), room(other)] = f"{name} imports {other}"
    try:
        list(TopologicalSorter(needed).static_order())
    except CycleError as error:
        circle: list[str] = error.args[1]
        pytest.fail("; ".join(why[after, before] for before, after in pairwise(circle)))


def test_few_files_stand_beside_the_rooms() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_every_folder_is_a_package_that_says_what_it_is() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [
        str(folder) for folder in sorted(folders) if not (folder / "__init__.py").read_text().startswith('"""')
    ] == []


def test_the_block_blocks(blocked: dict[str, str]) -> None:
    assert len(refused(blocked, {"torch"})) == 1


def test_light_modules_import_without_the_heavy_libraries(blocked: dict[str, str]) -> None:
    light = {name for name in modules() if not heavy(name)} - {f"{PACKAGE.name}.__main__"}
    assert refused(blocked, light) == []


def test_what_light_rooms_use_of_the_heavy_ones_is_light(blocked: dict[str, str]) -> None:
    outside = {name for name in modules() if room(name) not in {room(f"{PACKAGE.name}.{one}") for one in HEAVY_ROOMS}}
    used = {other for name in outside for other in own_imports(name) if heavy(other)}
    assert refused(blocked, used) == []
    assert used


def test_what_a_board_runs_is_of_few_rooms() -> None:
    """Their libraries are held to numpy by a test of the zipapp itself."""
    assert {room(name).rpartition(".")[2] for name in packed_modules()} == {
        "edgecnn", "process", "measure", "backends", "agent"
    }  # fmt: skip
