"""YAML files of people: read by YAML 1.2's core schema, with the line of every key, and within bounds.

PyYAML alone reads YAML 1.1, where `off` is false, `1e-3` a text, `012` ten and `12:30` seven hundred and fifty.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from edgecnn.process.errors import EdgeError

Loc = tuple[str | int, ...]

MOST_BYTES = 256 << 10  # PyYAML reads some 50 kB a second where every word is a key
MOST_VALUES = 100_000  # with those that aliases repeat
MOST_DEPTH = 40
_LARGEST = 2**63
_NUMBER = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
# The core schema: tag, what a plain scalar of it looks like, and with which characters that begins.
_CORE = (
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("int", re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), list("-+0123456789")),
    ("float", re.compile(rf"{_NUMBER.pattern}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"), list("-+.0123456789")),
    ("merge", re.compile("<<"), ["<"]),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # as PyYAML has it


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would read as something else than text."""


for _tag, _pattern, _first in _CORE:
    _whole = re.compile(rf"(?:{_pattern.pattern})\Z")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, _first)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, _first)


@dataclass(frozen=True)
class YamlFile:
    """A YAML file that holds a mapping, parsed, with the line of every key."""

    path: Path
    content: dict[str, Any]
    lines: dict[Loc, int]

    def line(self, loc: Loc) -> int:
        """The line of the nearest enclosing key that stands in the file."""
        while loc and loc not in self.lines:
            loc = loc[:-1]
        return self.lines.get(loc, 1)

    def below(self, key: str) -> YamlFile:
        """The mapping that stands under a key, as if it were the file."""
        return YamlFile(
            self.path, self.content[key], {loc[1:]: n for loc, n in self.lines.items() if loc[:1] == (key,)}
        )


def read_yaml(path: Path, hint: str) -> YamlFile:
    """Read a file that must hold a mapping.

    Args:
        hint: what such a file is, where it holds something else.

    Raises:
        EdgeError: unreadable, not text, not YAML, too large, not a mapping, or a key is written twice; with the line.
    """
    text = _text(path)
    parsed = _Parsed(str(path))
    content = parsed.document(text)
    if not isinstance(content, dict):
        raise EdgeError(f"`{path}` has no keys", hint)
    return YamlFile(path, content, parsed.lines)


def parse_yaml(text: str, where: str) -> Any:
    """The value that a text such as `[1, 2]` writes; `where` names its place in errors.

    Raises:
        EdgeError: it isn't YAML.
    """
    return _Parsed(where, numbered=False).document(text)


def dump_yaml(content: object, **options: Any) -> str:
    """Plain YAML, the keys in their own order, that `read_yaml` reads as the same values."""
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **options)
    return text


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise EdgeError(
                f"`{path}` is larger than {MOST_BYTES >> 10} kB",
                "a recipe or device file has a few kB: check that this is the right file",
            )
        data = path.read_bytes()
    except OSError as error:
        raise EdgeError(
            f"cannot read `{path}`: {error.strerror or error}", "check the path and its permissions"
        ) from error
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise EdgeError(f"{path}:{line}: the file is not UTF-8: {error.reason}", "save it as UTF-8") from error


def _dotted(loc: Loc) -> str:
    return f"`{'.'.join(map(str, loc))}`" if loc else "the value"


@dataclass
class _Parsed:
    """One text on its way from nodes to values."""

    where: str
    numbered: bool = True  # whether its lines are worth telling
    lines: dict[Loc, int] = field(default_factory=dict)
    twice: list[tuple[Loc, int]] = field(default_factory=list)
    values: int = 0
    open: list[yaml.Node] = field(default_factory=list)

    def document(self, text: str) -> Any:
        loader: _Loader | None = None
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
        except RecursionError:
            raise self._deep(None) from None
        except yaml.MarkedYAMLError as error:
            raise self._error(error.problem_mark, f"not valid YAML: {error.problem or error.context}") from error
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            what = f"not valid YAML: the character U+{error.character:04X} is not allowed"
            raise EdgeError(f"{self._at(line)}{what}", "remove it") from error
        except (ValueError, OverflowError) as error:  # an escape that names no character
            raise EdgeError(f"{self._at(1)}not valid YAML: {error}", "correct the escape sequence") from error
        finally:
            if loader:
                loader.dispose()
        content = self.value(node, ()) if node else None
        if self.twice:
            lines = (f"{self._at(line)}{_dotted(loc)} is written twice" for loc, line in self.twice)
            raise EdgeError("\n".join(lines), "keep one")
        return content

    def value(self, node: yaml.Node, loc: Loc) -> Any:
        self.values += 1
        if node in self.open:
            raise self._error(node.start_mark, f"{_dotted(loc)} refers to itself")
        if self.values > MOST_VALUES:
            raise self._error(
                node.start_mark, f"the file holds more than {MOST_VALUES:,} values, with what aliases repeat"
            )
        if len(self.open) >= MOST_DEPTH:
            raise self._deep(node.start_mark)
        self.open.append(node)
        try:
            match node:
                case yaml.MappingNode(tag="tag:yaml.org,2002:map"):
                    return dict(self.pairs(node, loc))
                case yaml.SequenceNode(tag="tag:yaml.org,2002:seq"):
                    return [self.item(one, (*loc, number)) for number, one in enumerate(node.value)]
                case yaml.ScalarNode():
                    return self.scalar(node, loc)
                case _:
                    raise self._error(node.start_mark, f"the tag `{node.tag}` is not read here")
        finally:
            self.open.pop()

    def item(self, node: yaml.Node, loc: Loc) -> Any:
        self.lines[loc] = node.start_mark.line + 1
        return self.value(node, loc)

    def pairs(self, node: yaml.MappingNode, loc: Loc) -> Iterator[tuple[str | int, Any]]:
        """Keys and values, those of `<<` first: what stands in the mapping itself wins."""
        own = [(key, value) for key, value in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for one in reversed(merged):
                    if not isinstance(one, yaml.MappingNode):
                        raise self._error(key.start_mark, "`<<` merges mappings alone")
                    content = self.value(one, loc)
                    yield from content.items()
        seen = set()
        for key, value in own:
            name = self.scalar(key, loc) if isinstance(key, yaml.ScalarNode) else None
            if isinstance(name, bool) or not isinstance(name, (str, int)):
                raise self._error(key.start_mark, "a key must be a word or a whole number")
            here = (*loc, name)
            if name in seen:
                self.twice.append((here, key.start_mark.line + 1))
            seen.add(name)
            self.lines[here] = key.start_mark.line + 1
            yield name, self.value(value, here)

    def scalar(self, node: yaml.ScalarNode, loc: Loc) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        try:
            match kind:
                case "str" | "merge":
                    text.encode()
                    return text
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return self._whole(text)
                case "float":
                    number = float(text)  # refuses `.inf` and `.nan`, as Python writes them otherwise
                    if math.isfinite(number):
                        return number
                case _:
                    pass
        except UnicodeEncodeError:
            raise self._error(node.start_mark, f"{_dotted(loc)} is not text: it holds half of a character") from None
        except (ValueError, KeyError):
            pass
        what = f"{text[:40]}…" if len(text) > 40 else text
        if kind in ("int", "float"):
            asked = "finite number" if kind == "float" else "whole number below 2^63"
            raise self._error(node.start_mark, f"{_dotted(loc)} is {what}: not a {asked}")
        raise self._error(node.start_mark, f"the tag `{node.tag}` of `{what}` is not read here")

    def _whole(self, text: str) -> int:
        if len(text) > 24:
            raise ValueError(text)
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        number = int(text[2:] if base != 10 else text, base)
        if abs(number) >= _LARGEST:
            raise ValueError(text)
        return number

    def _deep(self, mark: yaml.Mark | None) -> EdgeError:
        return self._error(mark, f"nested deeper than {MOST_DEPTH} levels")

    def _error(self, mark: yaml.Mark | None, what: str) -> EdgeError:
        return EdgeError(f"{self._at(mark.line + 1 if mark else None)}{what}", "correct it there")

    def _at(self, line: int | None) -> str:
        return f"{self.where}:{line}: " if self.numbered and line else f"{self.where}: "
