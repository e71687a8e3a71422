"""`edgecnn init`: three questions, one commented recipe that builds."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edgecnn.cli.guess import READ, Guess, guess
from edgecnn.process.disk import user_path
from edgecnn.process.errors import EdgeError
from edgecnn.process.progress import current
from edgecnn.recipe.load import SCHEMA_FILE, load_recipe, nearest_hint, packed, schema

Ask = Callable[[str, str], str]
T = TypeVar("T")
TASKS = ("classify", "detect")


def ask_and_write(path: Path | None, *, task: str | None, data: str | None, device: str | None, ask: Ask) -> Path:
    """Ask for what is not given, look at the data, write the recipe; refuses to overwrite.

    A wrong answer is told and asked again; what is given is right or refused. The task is not asked for where the data
    are given, which say it.

    Raises:
        EdgeError: no such task, device or data, something wrong with the data, or the file exists.
    """
    if path is not None and path.exists():
        raise EdgeError(f"`{path}` exists", "give another file name: edgecnn init other.yaml")
    if task is not None or data is None:
        task = _answer(task, "task (classify or detect)", "classify", ask, _task)
    default = "digits" if task == "classify" else ""
    place, found = _answer(data, f"data ({READ})", default, ask, lambda text: _data(text, task))
    task = found.spec.task
    device = _answer(device, "device", "cpu-x86", ask, _device)
    stem = "digits" if found.spec.format == "digits" else place.absolute().stem
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{stem or 'data'}_{device}").lstrip(".-")
    path = path or Path(f"{name}.yaml")
    if path.exists():
        raise EdgeError(f"`{path}` exists", "give another file name: edgecnn init other.yaml")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_recipe(name, device, found, path), encoding="utf-8")
    except OSError as error:
        raise EdgeError(f"cannot write `{path}`: {error.strerror}", "give another file name") from error
    try:
        load_recipe(str(path))
    except EdgeError:
        path.unlink()
        raise
    _write_schema(path.parent / SCHEMA_FILE)
    return path


def _write_schema(file: Path) -> None:
    """The schema that the recipe's first line names, for editors; one that is not ours stays as it is."""
    try:
        if file.exists() and json.loads(file.read_bytes())["title"] != schema()["title"]:
            return
        file.write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError, LookupError, TypeError):
        current().note(f"{file} was left as it is: `edgecnn schema` prints what editors complete recipes by")


def _answer(given: str | None, text: str, default: str, ask: Ask, check: Callable[[str], T]) -> T:
    if given is not None:
        return check(given)
    while True:
        try:
            return check(ask(text, default))
        except EdgeError as error:
            if error.hint == NO_TERMINAL:
                raise
            current().note(f"{error.message}\n{error.hint}")


NO_TERMINAL = "without a terminal give all three: --task, --data and --device"


def answer_of(text: str, default: str) -> str:
    """Ask on the terminal.

    Raises:
        EdgeError: there is nobody to answer.
    """
    try:
        return input(f"{text}{f' [{default}]' if default else ''}: ").strip() or default
    except EOFError:
        raise EdgeError(f"no answer to: {text}", NO_TERMINAL) from None


def _task(text: str) -> str:
    if text not in TASKS:
        raise EdgeError(f"no task `{text}`", nearest_hint(text, TASKS))
    return text


def _device(text: str) -> str:
    if text not in packed("devices"):
        raise EdgeError(f"no device `{text}`", nearest_hint(text, list(packed("devices"))))
    return text


def _data(text: str, task: str | None) -> tuple[Path, Guess]:
    if not text:
        raise EdgeError("no data is given", f"give {READ}")
    place = user_path(text)
    found = guess(place)
    fits = found.spec.task
    if task not in (None, fits):
        raise EdgeError(f"`{text}` is data for the task {fits}, not {task}", f"start again with --task {fits}")
    return place, found


def _recipe(name: str, device: str, found: Guess, path: Path) -> str:
    spec = found.spec
    lines = [f"  format: {spec.format}"]
    if spec.root is not None:
        lines.append(f"  root: {_quoted(os.path.relpath(spec.root.absolute(), path.parent.absolute()))}")
    sets = [(key, value) for key in ("train", "select", "scored") if (value := getattr(spec, key))]
    lines += [f"  {key}: {_quoted(value)}" for key, value in sets]
    if not sets:
        lines.append("  # scored_fraction: 0.33       # held out for scoring; or declare `train` and `scored`")
    lines.append(f"  color: {spec.color}")
    model, train, score = (_detector if spec.task == "detect" else _classifier)(found)
    return f"""\
# yaml-language-server: $schema={SCHEMA_FILE}
# What to build, from which images, for which device. `edgecnn show {path.name}` prints every default,
# `edgecnn schema` every key. Build it with: edgecnn build {path.name}
name: {name}
task: {spec.task}
device: {device}                # the verdict's device; `edgecnn devices list` names them
# compile_for: [rtx-4060]       # further devices whose engines are made or checked beside it

data:
{chr(10).join(lines)}

model:
{model}

train:
{train}

quantize:
  # images: 256                 # calibration images, taken from the training images; by default up to this many
  ranges: auto                  # or minmax, percentile, entropy, mse
  # effort: balanced            # or fast, thorough: how long the rungs that need no labels may take
{score}
budgets:
  max_accuracy_drop: 0.02       # of INT8 against float, as a fraction: 0.02 is two points
"""


def _classifier(found: Guess) -> tuple[str, str, str]:
    side = 16 if found.spec.format == "digits" else min(128, max(32, found.shorter // 32 * 32))
    augment = "shift" if found.spec.format == "digits" else "standard"
    model = f"""\
  family: small                 # or timm / torchvision with any of their model names
  name: {"gap-s" if side <= 16 else "gap-m"}
  image_size: {side}
  # weights: my_weights.safetensors"""
    train = f"""\
  epochs: 20                    # 0 uses `model.weights` as they are
  batch: 64
  lr: 0.003
  augment: {augment}"""
    return model, train, ""


def _detector(found: Guess) -> tuple[str, str, str]:
    model = f"""\
  family: ultralytics
  name: yolov8n                 # or yolo11n, yolov8s, …
  image_size: {min(640, max(64, -(-found.longer // 32) * 32))}
  # weights: yolov8n.pt         # published weights to start from: far fewer images will do"""
    train = """\
  epochs: 50                    # 0 uses `model.weights` as they are
  batch: 16"""
    return model, train, "\nscore:\n  metric: map50_95\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a folder `no` or `1e3` is one to YAML only in quotes
