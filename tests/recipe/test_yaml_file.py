"""YAML files: the core schema of YAML 1.2, lines, and bounds that hold whatever a file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from edgecnn.process.errors import EdgeError
from edgecnn.recipe.yaml_file import MOST_BYTES, dump_yaml, parse_yaml, read_yaml

BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"), ("On", "On"), ("yes", "yes"), ("n", "n"), ("true", True), ("False", False), ("~", None),
        ("", None), ("012", 12), ("0o17", 15), ("0x1F", 31), ("-7", -7), ("1e-3", 0.001), (".5", 0.5), ("5.", 5.0),
        ("1_000", "1_000"), ("12:30", "12:30"), ("2024-01-01", "2024-01-01"), ("'3'", "3"), ("0b11", "0b11"),
        ("[1, off]", [1, "off"]), ("{0: person, no: 1}", {0: "person", "no": 1}), ("!!str 3", "3"),
        ("{<<: {a: 1, b: 2}, b: 3}", {"a": 1, "b": 3}), ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
    ],
)  # fmt: skip
def test_values_are_those_of_the_core_schema(text: str, value: object) -> None:
    found = parse_yaml(text, "x")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: .inf", "`a` is .inf: not a finite number"),
        ("a: .NaN", "`a` is .NaN: not a finite number"),
        ("a: 1e999", "`a` is 1e999: not a finite number"),
        (f"a: {'9' * 5000}", "not a whole number below 2^63"),
        ("a: 9223372036854775808", "not a whole number below 2^63"),
        ("&a [*a]", "`0` refers to itself"),
        ("a: &a {b: {c: *a}}", "`a.b.c` refers to itself"),
        (BOMB, "more than 100,000 values"),
        ("[" * 600, "nested deeper than 40 levels"),
        ("- " * 600, "nested deeper than 40 levels"),
        ("[" * 41 + "]" * 41, "nested deeper than 40 levels"),
        ("a: !!python/object/apply:os.system [ls]", "the tag `tag:yaml.org,2002:python/object/apply:os.system`"),
        ("a: !!binary aGk=", "the tag `tag:yaml.org,2002:binary` of `aGk=`"),
        ("a: !!timestamp 2024-01-01", "is not read here"),
        ("a: !!int three", "`a` is three: not a whole number"),
        ("a: 1\nb: 2\na: 3", "x: `a` is written twice"),
        ("a: {b: 1, b: 1}", "`a.b` is written twice"),
        ("? [1, 2]\n: 3", "a key must be a word or a whole number"),
        ("true: 3", "a key must be a word or a whole number"),
        ("<<: 3", "`<<` merges mappings alone"),
        ("a: *nowhere", "not valid YAML: found undefined alias"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ('a: "\\ud800"', "`a` is not text: it holds half of a character"),
        ('a: "\\UFFFFFFFF"', "not valid YAML"),
        ("a: \a", "the character U+0007 is not allowed"),
        ("%YAML 9.9\n---\na", "not valid YAML"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(EdgeError) as caught:
        parse_yaml(text, "x")
    assert words in caught.value.message
    assert caught.value.message.startswith("x: ")
    assert caught.value.hint


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom"])
def test_encodings(tmp_path: Path, codec: str) -> None:
    text = "name: größe\nlist: [1]\n"
    data = b"\xff\xfe" + text.encode("utf-16-le") if codec == "utf-16-le-bom" else text.encode(codec)
    (tmp_path / "f.yaml").write_bytes(data)
    found = read_yaml(tmp_path / "f.yaml", "")
    assert found.content == {"name": "größe", "list": [1]}
    assert found.line(("list", 0)) == 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a: 1\nname: größe\n".encode("latin-1"), "f.yaml:2: the file is not UTF-8"),
        (b"\xff\xfe\x00", "the file is not UTF-8"),
        (b"a: 1\nb: \x00\n", "f.yaml:2: not valid YAML: the character U+0000 is not allowed"),
        (b"#" * (MOST_BYTES + 1), "f.yaml` is larger than 256 kB"),
        (b"a: 1\n  b: 2\n", "f.yaml:2: not valid YAML"),
        (b"a: 1\n\nb: 1\na: 2\nb: 2\n", "f.yaml:4: `a` is written twice"),
        (b"- 1\n", "f.yaml` has no keys"),
        (b"", "f.yaml` has no keys"),
    ],
)
def test_files_that_are_refused_name_the_line(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "f.yaml").write_bytes(data)
    with pytest.raises(EdgeError) as caught:
        read_yaml(tmp_path / "f.yaml", "a mapping")
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "value",
    ["off", "1e-3", "0o17", "012", ".inf", "12:30", "2024-01-01", "", "~", "<<", "true", "naïve", "a: b", 1e-05, 1e16,
     -0.0, 3, True, None, [1, {"b": "no"}]],
)  # fmt: skip
def test_what_is_written_is_read_as_the_same(value: Any) -> None:
    text = dump_yaml({"key": value})
    assert parse_yaml(text, "x") == {"key": value}
    assert yaml.safe_load(text) == {"key": value}
