"""Recipe and device files: find, read, override, and name every mistake with its line."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from edgecnn.process.disk import user_path
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.device import DeviceProfile
from edgecnn.recipe.recipe import Recipe
from edgecnn.recipe.spec import Spec
from edgecnn.recipe.yaml_file import Loc, YamlFile, parse_yaml, read_yaml

S = TypeVar("S", bound=Spec)

PACKED = Path(__file__).parents[1] / "packed"
CHECKOUT = Path(__file__).parents[2]
SCHEMA_FILE = "recipe.schema.json"  # beside recipes: their first line names it to editors
LOCK_KEYS = ("recipe", "stages", "data_digest", "versions")  # of a run's recipe.lock.yaml


def load_recipe(name: str, overrides: Sequence[str] = (), device: str | None = None) -> Recipe:
    """Read a recipe by path or by the bare name of a packed one.

    Args:
        name: a path, or a packed recipe's name with or without `.yaml`.
        overrides: `key=value` texts, dotted keys, YAML values, applied before anything is checked.
        device: replaces the recipe's `device`.

    Raises:
        EdgeError: not found, not YAML, or wrong: every mistake at once, each with its line and what would be valid.
    """
    file = find("recipes", name)
    source = _recipe_of(read_yaml(file, "a recipe is a YAML mapping: see `edgecnn init`"))
    for override in [*overrides, *([f"device={device}"] if device else [])]:
        _override(source.content, override)
    _resolve_paths(source, file.resolve().parent if file == user_path(name) else Path.cwd())
    recipe = _validate(Recipe, source, overridden=tuple(o.split("=", 1)[0].strip() for o in overrides))
    load_device(recipe.device).require_nms(recipe.export.nms)
    beside = [load_device(name) for name in recipe.compile_for]
    for number, profile in enumerate(beside):
        profile.require_nms(recipe.export.nms)
        if profile.name in [other.name for other in beside[:number]]:
            raise EdgeError(f"{file}: `compile_for` names `{profile.name}` twice", "keep one")
    return recipe


def load_device(name: str) -> DeviceProfile:
    """Read a device file by path or by the name of a packed one.

    Raises:
        EdgeError: unknown (with the nearest name), or wrong, with lines.
    """
    return _validate(DeviceProfile, read_yaml(find("devices", name), "`edgecnn devices show cpu-x86` is an example"))


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


def _recipe_of(source: YamlFile) -> YamlFile:
    """The recipe in a file; of a run's recipe.lock.yaml the one that it locks."""
    locked = isinstance(source.content.get("recipe"), dict) and set(source.content) <= set(LOCK_KEYS)
    return source.below("recipe") if locked else source


def _override(content: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise EdgeError(f"`--set {text}` is not key=value", "for example --set train.epochs=3")
    parsed = parse_yaml(value, f"`--set {text}`")
    *sections, last = key.strip().split(".")
    for section in sections:
        inner = content.get(section)
        if inner is None:
            inner = content[section] = {}
        if not isinstance(inner, dict):
            raise EdgeError(
                f"`--set {text}`: `{section}` is a value, not a section", "`edgecnn show RECIPE` prints every key"
            )
        content = inner
    content[last] = parsed


def _resolve_paths(source: YamlFile, here: Path) -> None:
    """Make the recipe's paths absolute: beside the recipe (a packed one: in `here`), else under EDGECNN_DATA.

    Raises:
        EdgeError: no file can have this name, with its line.
    """
    for loc in (("data", "root"), ("model", "weights"), ("teacher", "weights")):
        section = source.content.get(loc[0])
        text = section.get(loc[1]) if isinstance(section, dict) else None
        if not isinstance(section, dict) or not isinstance(text, str):
            continue
        try:
            path = _beside(here, text)
            # Weights without a slash that aren't a file beside the recipe are a name that the library knows.
            if loc[1] == "root" or "/" in text or path.is_file():
                section[loc[1]] = path
        except (EdgeError, OSError) as error:
            what, hint = (error.message, error.hint) if isinstance(error, EdgeError) else (error.strerror, "")
            where = f"{source.path}:{source.line(loc)}: `{'.'.join(loc)}`"
            raise EdgeError(f"{where}: {what}", hint or "correct the path") from error


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


def _validate(kind: type[S], source: YamlFile, overridden: tuple[str, ...] = ()) -> S:
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
            return f"`{key}` is {_short(given)}; {nearest_hint(str(given), expected.split(', '))}"
        case "value_error":
            return str(detail["ctx"]["error"])
        case _:
            message = detail["msg"]
            return f"`{key}` is {_short(given)}: {message[0].lower()}{message[1:]}"


def _short(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:80]}…"


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
