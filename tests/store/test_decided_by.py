"""Every library that a stage's code imports is in its key, or stands here with the reason why it decides nothing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgecnn import quantize
from edgecnn.families.export import export
from edgecnn.process import versions
from edgecnn.process.sources import PACKAGE, modules, names_imported, own_imports
from edgecnn.store.stage import Store
from edgecnn.targets import host
from edgecnn.targets import ssh as target_ssh
from edgecnn.targets.score import score_reference
from edgecnn.tasks.prepare import prepare
from edgecnn.training import train
from edgecnn.verdict import runs

# (the stage, where its code begins, the rooms in which it goes on). A child process begins where its job's text says.
QUANTIZER = (
    "edgecnn.onnx_file",
    "edgecnn.quantize",
    "edgecnn.training",
    "edgecnn.families",
    "edgecnn.data.pixels",
    "edgecnn.tasks.detect.detect",
)
SCORING = (
    "edgecnn.tasks.score", "edgecnn.tasks.detect.coco_eval", "edgecnn.tasks.detect.answers",
    "edgecnn.tasks.detect.detect", "edgecnn.tasks.detect.decode", "edgecnn.tasks.classify.metrics",
    "edgecnn.measure.feeding", "edgecnn.backends.ort",
)  # fmt: skip
PREPARING = (
    "edgecnn.data", "edgecnn.tasks.prepare", "edgecnn.tasks.classify.prepare", "edgecnn.tasks.detect.prepare",
    "edgecnn.tasks.detect.annotations", "edgecnn.tasks.detect.coco", "edgecnn.tasks.detect.voc",
    "edgecnn.tasks.detect.yolo", "edgecnn.tasks.detect.yolo_yaml", "edgecnn.tasks.detect.boxes",
)  # fmt: skip
STAGES: list[tuple[Callable[..., None], tuple[str, ...], tuple[str, ...]]] = [
    (prepare, ("edgecnn.tasks.classify.prepare", "edgecnn.tasks.detect.prepare"), PREPARING),
    (train, ("edgecnn.training",), ("edgecnn.training", "edgecnn.families", "edgecnn.data.pixels")),
    (export, ("edgecnn.families.export",), ("edgecnn.families",)),
    (quantize.quantize, ("edgecnn.quantize",), QUANTIZER),
    (score_reference, SCORING, SCORING),
    (host.Local.score, SCORING, SCORING),
    (host.Offline.score, SCORING, SCORING),
    (target_ssh.SshTarget.score, ("edgecnn.tasks.detect.coco_eval",), ("edgecnn.tasks.detect.coco_eval",)),
]
DISTRIBUTIONS = {
    "PIL": "pillow", "sklearn": "scikit-learn", "onnx_ir": "onnx-ir", "yaml": "pyyaml",
    "faster_coco_eval": "faster-coco-eval", "google": "protobuf",
}  # fmt: skip
# What another library or build of the same code brings.
BESIDE = {
    "onnxruntime-gpu": "onnxruntime", "opencv-python": "ultralytics", "opencv-python-headless": "ultralytics",
}  # fmt: skip
EVERYWHERE = {
    "pydantic": "checks what a person wrote",
    "pyyaml": "reads text",
    "safetensors": "moves bytes",
    "protobuf": "moves bytes",
}
DECIDES_NOTHING = {
    ("prepare", "numpy"): "integers, and RandomState, whose stream is fixed",
    ("prepare", "scikit-learn"): "its digits are a file that has never changed",
    ("train", "numpy"): "integers, and RandomState, whose stream is fixed",
    ("train", "onnx"): "reads a user's file",
    ("export", "pillow"): "the detector's training images", ("export", "numpy"): "moves arrays",
    ("export", "onnxruntime"): "compares answers, and refuses",
    **{(name, "numpy"): "products, sums and orders of a few numbers each" for name in ("score_reference", "score")},
    ("score_reference", "onnx"): "reads the metadata", ("score", "onnx"): "reads the metadata",
}  # fmt: skip


# Rooms that a stage's code reaches and that decide nothing of its result.
NEUTRAL = {
    "process": "starts children and writes files", "store": "keeps what is made",
    "recipe": "its values are the stage's inputs", "records": "the form of files: who writes them decides",
    "needs": "refuses", "report": "shows", "verdict": "judges what was made", "families": "names libraries",
    "quantize": "takes the suppression off a graph", "onnx_file": "checks a user's file, and refuses",
}  # fmt: skip


# What a stage's rooms reach for other stages' sake.
OTHERS = {
    "prepare": {"measure": "scores", "backends": "scores", "targets": "scores"},
    "train": {"measure": "exports", "backends": "scores", "targets": "scores"},
    "export": {"data": "takes a user's file: the train stage", "tasks": "the same", "backends": "names of backends"},
    "quantize": {"backends": "scores", "targets": "scores"},
}


def reached(rooms: tuple[str, ...]) -> set[str]:
    """The rooms that these import from, anywhere in them."""
    found = set()
    for module in modules():
        if module.split(".")[1:2] and module.split(".")[1] in rooms:
            found |= {name.split(".")[1] for name in own_imports(module) if name.startswith("edgecnn.")}
    return {room for room in found if not room.startswith("__")}


@pytest.mark.parametrize("make", {make: None for make, _, _ in STAGES}, ids=lambda make: make.__qualname__)
def test_a_key_holds_the_sources_that_decide(make: Any) -> None:
    assert all((PACKAGE / room).is_dir() for room in make.rooms)
    excused = NEUTRAL.keys() | OTHERS.get(make.__name__, {}).keys()
    assert reached(make.rooms) - set(make.rooms) - excused == set()


def test_an_edit_elsewhere_makes_no_stage_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "edgecnn"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(versions, "__file__", str(copy / "process" / "versions.py"))
    stages = {"train": train, "quantize": quantize.quantize, "score": score_reference}

    def keys() -> dict[str, str]:
        versions.code_version.cache_clear()
        return {name: Store(tmp_path).facts(make, ())["edgecnn"] for name, make in stages.items()}

    first = keys()
    for room, again in (
        ("report", set()),
        ("cli", set()),
        ("quantize", {"quantize"}),
        ("training", {"train", "quantize"}),
    ):
        with (copy / room / "__init__.py").open("a") as file:
            file.write("# a word\n")
        second = keys()
        assert {name for name in stages if first[name] != second[name]} == again
        first = second
    versions.code_version.cache_clear()


def imported(begin: tuple[str, ...], rooms: tuple[str, ...]) -> set[str]:
    """Distributions that the code from these modules on imports, as long as it stays in the rooms."""
    waiting, seen, libraries = list(begin), set(), set()
    while waiting:
        module = waiting.pop()
        if module in seen or not any(module == room or module.startswith(f"{room}.") for room in rooms):
            continue
        seen.add(module)
        waiting += own_imports(module)
        for top in {name.split(".")[0] for name in names_imported(modules()[module])} - {"edgecnn"}:
            if top not in sys.stdlib_module_names:
                libraries.add(DISTRIBUTIONS.get(top, top))
    return libraries


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage[0].__qualname__)
def test_a_key_holds_what_decides(stage: tuple[Any, tuple[str, ...], tuple[str, ...]]) -> None:
    make, begin, rooms = stage
    name, listed = make.__name__, set(make.libraries)
    excused = {library for one, library in DECIDES_NOTHING if one == name} | EVERYWHERE.keys()
    wanted = imported(begin, rooms) - excused
    assert wanted - listed == set(), "add them to decided_by, or say here why they decide nothing"
    assert {BESIDE.get(library, library) for library in listed} - imported(begin, rooms) == set()


def test_no_excuse_outlives_its_reason() -> None:
    used = {(make.__name__, library) for make, begin, rooms in STAGES for library in imported(begin, rooms)}
    assert DECIDES_NOTHING.keys() - used == set()


@pytest.mark.parametrize(
    ("make", "library"),
    [
        (train, "ultralytics"), (train, "pillow"), (export, "ultralytics"), (quantize.quantize, "scipy"),
        (score_reference, "faster-coco-eval"), (target_ssh.SshTarget.score, "faster-coco-eval"),
    ],
)  # fmt: skip
def test_another_version_is_another_key(tmp_path: Path, make: Callable[..., None], library: str) -> None:
    facts = [
        Store(tmp_path, versions=lambda name, version=version: version if name == library else "1.0").facts(make, ())
        for version in ("8.4.0", "9.9.9")
    ]
    assert facts[0] != facts[1]


def test_the_lock_file_names_every_library_of_a_key() -> None:
    keyed = {library for make, _, _ in STAGES for library in make.libraries}  # type: ignore[attr-defined]
    assert keyed <= set(runs.LIBRARIES)
