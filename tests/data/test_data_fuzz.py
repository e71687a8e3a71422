"""Mutated annotations: read, or one EdgeError that says where; never another exception, a wait or a file opened."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_sets import PICTURES, as_coco, as_voc, as_yolo, picture

from edgecnn.data.sources import find_source
from edgecnn.data.tables import table_files
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import DataSpec
from edgecnn.tasks.detect.annotations import in_pixels
from edgecnn.tasks.detect.coco import outside
from edgecnn.tasks.detect.prepare import annotated
from edgecnn.tasks.detect.yolo import watched

CASES = 250  # of each format
LONGEST_S = 10.0
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, 1e308, -1e308, float("nan"), float("inf"), "", "x", "1",
    "0.5", "x" * 300, "a\0b", "\udce9", "caf\xe9", "..", "../../../../etc/passwd", "/dev/zero", "/", ".", "~", "%s",
    "{}", [], {}, [[]], [None], {"id": 1}, "2020-01-01", "no", "\u0661", "1_0",
]  # fmt: skip
TOKENS = [
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"nan", b"inf", b"-", b"1e999", b"9" * 5000, b"0x10", b"[",
    b"]" * 99, b"{", b'"', b"'", b"\n", b"\r", b"\t", b",", b":", b"&a ", b"*a ", b"!!python/object:os.system ",
    b"<!ENTITY a 'b'>", b"<a>" * 99, b"&amp;", b"<![CDATA[", b"]]>", b"#", b"%", b"\xe9", b"../" * 9, b"x" * 300,
    b"[" * 3000, b"\xf0\x9f\x98\x80",
]  # fmt: skip


def mutated_bytes(content: bytes, chance: random.Random) -> bytes:
    """One to four cuts, copies, flips or odd tokens."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(content) + 1)
        end = min(len(content), at + chance.choice([1, 2, 8, 64]))
        match chance.randrange(5):
            case 0:
                content = content[:at] + content[end:]
            case 1:
                content = content[:end] + content[at:]
            case 2:
                content = content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :]
            case 3:
                content = content[:at]
            case _:
                content = content[:at] + chance.choice(TOKENS) + content[end if chance.random() < 0.5 else at :]
    return content


def mutated_value(value: Any, chance: random.Random) -> Any:
    """The value with one of its parts, or itself, replaced, removed or put in twice."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        match chance.randrange(8):
            case 0:
                return {name: part for name, part in value.items() if name != key}
            case _:
                return {**value, key: mutated_value(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        match chance.randrange(8):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value, copy.deepcopy(value[at])]
            case _:
                return [*value[:at], mutated_value(value[at], chance), *value[at + 1 :]]
    return chance.choice(ODD)


def joined(value: Any, *between: str) -> bytes:
    """Lists of lists of texts as one text."""

    def text(part: Any, depth: int) -> str:
        inside = isinstance(part, list) and depth < len(between)
        return between[depth].join(text(one, depth + 1) for one in part) if inside else str(part)

    return text(value, 0).encode("utf-8", "surrogateescape")


def fuzzed(files: list[Path], read: Callable[[], object], structured: Callable[[Path, random.Random], bytes]) -> int:
    """Mutate one file at a time and read; returns how many were still accepted."""
    accepted = 0
    for case in range(CASES):
        chance = random.Random(case)
        file = chance.choice(files)
        good = file.read_bytes()
        bad = structured(file, chance) if chance.random() < 0.6 else mutated_bytes(good, chance)
        file.write_bytes(bad)
        start, told = time.monotonic(), "accepted"
        try:
            read()
            accepted += 1
        except EdgeError as error:
            told = error.message
        except Exception as error:
            raise AssertionError(f"case {case}: {file.name} {bad[:400]!r}") from error
        assert 0 < len(told) < 20_000, f"case {case}"
        assert time.monotonic() - start < LONGEST_S, f"case {case}"
        file.write_bytes(good)
    read()
    return accepted


def boxes_of(spec: DataSpec) -> Callable[[], object]:
    sizes = {file: size for file, size, _ in PICTURES}

    def read() -> object:
        found, hint = annotated(spec)
        shown = np.asarray([sizes.get(image.file.name, (10, 10)) for image in found.images], np.int32)
        return in_pixels(found, shown, set(), hint)

    return read


@pytest.mark.parametrize("skip", [False, True])
def test_coco(skip: bool, tmp_path: Path) -> None:
    spec = as_coco(tmp_path).model_copy(update={"skip_corrupt": skip})
    file = tmp_path / "annotations" / "instances_train.json"

    def structured(_: Path, chance: random.Random) -> bytes:
        return json.dumps(mutated_value(json.loads(file.read_text()), chance)).encode()

    def read() -> None:
        outside(spec)
        boxes_of(spec)()

    assert fuzzed([file], read, structured) < CASES


@pytest.mark.parametrize("skip", [False, True])
def test_yolo(skip: bool, tmp_path: Path) -> None:
    spec = as_yolo(tmp_path).model_copy(update={"skip_corrupt": skip})
    files = [tmp_path / "data.yaml", *sorted((tmp_path / "labels" / "train").iterdir())]

    def structured(file: Path, chance: random.Random) -> bytes:
        if file.suffix == ".yaml":
            return json.dumps(mutated_value(json.loads(file.read_text()), chance)).encode()
        rows = [line.split() for line in file.read_text().splitlines()] or [["0", ".5", ".5", ".2", ".2"]]
        return joined(mutated_value(rows, chance), "\n", " ")

    def read() -> None:
        watched(spec)
        boxes_of(spec)()

    assert fuzzed(files, read, structured) < CASES


@pytest.mark.parametrize("skip", [False, True])
def test_voc(skip: bool, tmp_path: Path) -> None:
    spec = as_voc(tmp_path).model_copy(update={"skip_corrupt": skip})
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\nc\nd\n")
    files = [lists / "train.txt", *sorted((tmp_path / "Annotations").iterdir())]

    def structured(file: Path, chance: random.Random) -> bytes:
        text = file.read_text()
        parts = text.replace(">", ">\0").replace("<", "\0<").split("\0")
        return joined(mutated_value(parts, chance), "")

    assert fuzzed(files, boxes_of(spec), structured) < CASES


def test_tables(tmp_path: Path) -> None:
    for number in range(6):
        picture(tmp_path / f"{number}.png", (4, 4))
    file = tmp_path / "labels.csv"
    file.write_text("file,label\n" + "".join(f"{number}.png,{'ab'[number % 2]}\n" for number in range(6)))
    spec = DataSpec(format="label-table", root=file)

    def structured(_: Path, chance: random.Random) -> bytes:
        return joined(mutated_value([line.split(",") for line in file.read_text().splitlines()], chance), "\n", ",")

    def read() -> None:
        table_files(file)
        find_source(spec)

    assert fuzzed([file], read, structured) < CASES


@pytest.mark.parametrize("make", [as_coco, as_yolo, as_voc])
@pytest.mark.parametrize("kind", ["pipe", "folder", "dead link", "circle", "device", "nothing"])
def test_files_of_another_kind(make: Callable[[Path], DataSpec], kind: str, tmp_path: Path) -> None:
    """In the place of an annotation file or an image: an error that names it."""
    spec = make(tmp_path / "d")
    annotations = [p for p in (tmp_path / "d").rglob("*") if p.suffix in (".json", ".yaml", ".txt", ".xml")]
    images = list((tmp_path / "d").rglob("a.png"))
    for file in (*annotations, *images):
        aside = shutil.move(file, tmp_path / "aside")
        match kind:
            case "pipe":
                os.mkfifo(file)
            case "folder":
                file.mkdir()
            case "dead link":
                file.symlink_to(tmp_path / "gone")
            case "circle":
                file.symlink_to(file)
            case "device":
                file.symlink_to("/dev/zero")
            case "nothing":
                pass
        # An image less in a folder, or the label of a background image; what is named must be there.
        fine = spec.format == "yolo" and (file.suffix == ".png" or (kind == "nothing" and file.suffix == ".txt"))
        fine = fine or (spec.format == "voc" and kind == "nothing" and file.suffix == ".xml")
        with nullcontext() if fine else pytest.raises(EdgeError):
            boxes_of(spec)()
        file.rmdir() if kind == "folder" else file.unlink(missing_ok=True)
        shutil.move(aside, file)
