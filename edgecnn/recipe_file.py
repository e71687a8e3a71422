"""Recipe and device files: find, read, override, and name every mistake with its line."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from edgecnn.device import DeviceProfile
from edgecnn.disk import user_path
from edgecnn.errors import EdgeError
from edgecnn.recipe import Recipe
from edgecnn.spec import Spec

S = TypeVar("S", bound=Spec)
Loc = tuple[str | int, ...]

PACKED = Path(__file__).parent / "packed"
CHECKOUT = Path(__file__).parent.parent


@dataclass(frozen=True)
class _Source:
    """A YAML file, parsed, with the line of every key."""

    path: Path
    content: dict[str, Any]
    lines: dict[Loc, int]

    def line(self, loc: Loc) -> int:
        """The line of the nearest enclosing key that stands in the file."""
        while loc and loc not in self.lines:
            loc = loc[:-1]
        return self.lines.get(loc, 1)


def load_recipe(name: str, overrides: Sequence[str] = (), device: str | None = None) -> Recipe:
    """Read a recipe by path or by the bare name of a packed one.

    Args:
        name: a path, or a packed recipe's name with or without `.yaml`.
        overrides: `key=value` texts, dotted keys, YAML values, applied before anything is checked.
        device: replaces the recipe's `device`.

    Raises:
        EdgeError: not found, not YAML, or wrong: every mistake at once, each with its line and what would be valid.
    """
    source = _read(find("recipes", name))
    for override in [*overrides, *([f"device={device}"] if device else [])]:
        _override(source.content, override)
    _resolve_paths(source)
    recipe = _validate(Recipe, source, overridden=tuple(o.split("=", 1)[0].strip() for o in overrides))
    for name_of_device in (recipe.device, *recipe.compile_for):
        load_device(name_of_device).require_nms(recipe.export.nms)
    return recipe


def load_device(name: str) -> DeviceProfile:
    """Read a device file by path or by the name of a packed one.

    Raises:
        EdgeError: unknown (with the nearest name), or wrong, with lines.
    """
    return _validate(DeviceProfile, _read(find("devices", name)))


def packed(kind: str) -> dict[str, Path]:
    """Names and files of the packed `recipes` or `devices`."""
    for folder in (CHECKOUT / kind, PACKED / kind):
        if folder.is_dir() and any(folder.glob("*.yaml")):
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def find(kind: str, name: str) -> Path:
    """The file of a recipe or device given as a path or as a packed name.

    Raises:
        EdgeError: there is no such file; the nearest packed name is offered.
    """
    path = user_path(name)
    if path.is_file():
        return path
    known = packed(kind)
    stem = name.removesuffix(".yaml").removeprefix(f"{kind}/")
    if stem in known:
        return known[stem]
    raise EdgeError(f"no {kind.removesuffix('s')} `{name}`", nearest_hint(stem, list(known)))


def nearest_hint(given: str, valid: Sequence[str]) -> str:
    """`did you mean …? valid: …` for a name that isn't one of `valid`."""
    nearest = difflib.get_close_matches(given, valid, n=1)
    offer = f"did you mean `{nearest[0]}`? " if nearest else ""
    return f"{offer}valid: {', '.join(valid) or 'none'}"


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "edgecnn recipe",
        **Recipe.model_json_schema(),
    }


# --- reading ---


def _read(path: Path) -> _Source:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeError(f"cannot read `{path}`: {error}") from error
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            content = loader.construct_document(node) if node else None
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise EdgeError(f"{path}{where} is not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(content, dict):
        raise EdgeError(f"`{path}` holds no keys", "a recipe is a YAML mapping: see `edgecnn init`")
    lines: dict[Loc, int] = {}
    duplicates = list(_lines(node, (), lines))
    if duplicates:
        raise EdgeError("\n".join(f"{path}:{line}: `{key}` is written twice" for key, line in duplicates), "keep one")
    return _Source(path, content, lines)


def _lines(node: Any, loc: Loc, lines: dict[Loc, int]) -> Iterator[tuple[str, int]]:
    """Fill `lines`; yield keys that are written twice."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*loc, key.value)
            if here in lines:
                yield ".".join(map(str, here)), key.start_mark.line + 1
            lines[here] = key.start_mark.line + 1
            yield from _lines(value, here, lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            here = (*loc, number)
            lines[here] = value.start_mark.line + 1
            yield from _lines(value, here, lines)


def _override(content: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise EdgeError(f"`--set {text}` is not key=value", "for example --set train.epochs=3")
    try:
        parsed = yaml.safe_load(value) if value else None
    except yaml.YAMLError as error:
        raise EdgeError(f"`--set {text}`: the value is not valid YAML: {error}") from error
    *sections, last = key.strip().split(".")
    for section in sections:
        inner = content.get(section)
        if inner is None:
            inner = content[section] = {}
        if not isinstance(inner, dict):
            raise EdgeError(f"`--set {text}`: `{section}` is a value, not a section")
        content = inner
    content[last] = parsed


def _resolve_paths(source: _Source) -> None:
    """Make the recipe's paths absolute: beside the recipe, else under EDGECNN_DATA when it is there."""
    here = source.path.resolve().parent
    data = source.content.get("data")
    if isinstance(data, dict) and isinstance(data.get("root"), str):
        data["root"] = _beside(here, data["root"])
    for section in ("model", "teacher"):
        model = source.content.get(section)
        if isinstance(model, dict) and isinstance(model.get("weights"), str):
            text = model["weights"]
            path = _beside(here, text)
            # A value without a slash that isn't a file beside the recipe is a name that the library knows.
            if "/" in text or path.is_file():
                model["weights"] = path


def _beside(here: Path, text: str) -> Path:
    path = user_path(text)
    candidates = [here / path]
    if os.environ.get("EDGECNN_DATA"):
        candidates.append(user_path(os.environ["EDGECNN_DATA"]).resolve() / path)
    for candidate in candidates:
        if candidate.exists():
            return candidate.resolve()
    return (here / path).absolute()


# --- checking ---


def _validate(kind: type[S], source: _Source, overridden: tuple[str, ...] = ()) -> S:
    try:
        return kind.model_validate(source.content)
    except ValidationError as error:
        mistakes: dict[Loc, str] = {}  # one a key: of a union's branches the first speaks
        # Where a section was written and a word would do too, the section's own mistakes say more.
        for detail in sorted(
            error.errors(), key=lambda d: d["type"] == "literal_error" and isinstance(d["input"], dict)
        ):
            loc = tuple(part for part in detail["loc"] if not _is_branch(part)) or _named_key(detail["msg"])
            key = ".".join(map(str, loc))
            if detail["type"] == "literal_error" and any(
                len(seen) > len(loc) and seen[: len(loc)] == loc for seen in mistakes
            ):
                continue  # a section was written: its own mistakes were told
            from_set = any(key == o or key.startswith(f"{o}.") for o in overridden)
            where = "--set" if from_set else f"{source.path}:{source.line(loc)}"
            mistakes.setdefault(loc or (detail["msg"],), f"{where}: {_mistake(kind, detail, loc)}")
        hint = "`edgecnn devices show cpu-x86` shows every key"
        if kind is Recipe:
            hint = "`edgecnn schema` lists every key, `edgecnn show RECIPE` every default"
        raise EdgeError("\n".join(mistakes.values()), hint) from None


def _named_key(message: str) -> Loc:
    """The key that a contradiction between sections names first: there is where a user looks."""
    found = re.search(r"`([\w.]+)`", message)
    return tuple(found.group(1).split(".")) if found else ()


def _is_branch(part: str | int) -> bool:
    """Pydantic puts the tried branch of a union into the location; a user never wrote it."""
    return isinstance(part, str) and (
        part in ("str", "int", "path", "constrained-int", "Normalization", "RecoverSpec")
        or part.startswith(("literal[", "function-", "lax-or-strict["))
    )


def _mistake(kind: type[BaseModel], detail: Any, loc: Loc) -> str:
    key = ".".join(map(str, loc)) or "the file"
    given = detail.get("input")
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown key `{key}`; {nearest_hint(str(loc[-1]), _fields_at(kind, loc[:-1]))}"
        case "missing":
            return f"`{key}` is missing"
        case "literal_error":
            expected = detail["ctx"]["expected"].replace(" or ", ", ").replace("'", "")
            return f"`{key}` is {given!r}; {nearest_hint(str(given), expected.split(', '))}"
        case "value_error":
            return str(detail["ctx"]["error"])
        case _:
            message = detail["msg"]
            return f"`{key}` is {given!r}: {message[0].lower()}{message[1:]}"


def _fields_at(kind: type[BaseModel], loc: Loc) -> list[str]:
    """Field names of the spec that stands at `loc`."""
    current: type[BaseModel] = kind
    for part in loc:
        found = [
            option
            for option in _specs_of(current.model_fields[str(part)].annotation)
            if isinstance(option, type) and issubclass(option, BaseModel)
        ] if str(part) in current.model_fields else []  # fmt: skip
        if not found:
            return []
        current = found[0]
    return list(current.model_fields)


def _specs_of(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", ())
    return [annotation] if not arguments else [spec for argument in arguments for spec in _specs_of(argument)]
