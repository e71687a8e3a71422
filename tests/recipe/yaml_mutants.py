"""Broken recipes and device files, seeded: by hand `python tests/yaml_mutants.py 10000` loads so many of each."""

from __future__ import annotations

import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from edgecnn.process.errors import EdgeError
from edgecnn.recipe.load import load_device, load_recipe, packed
from edgecnn.recipe.yaml_file import dump_yaml

Load = Callable[[str], object]
VALUES = (
    'off', 'on', 'yes', 'null', '~', 'true', '-1', '0', '1e999', '.inf', '-.nan', "9" * 5000, '1e-400',
    '0x7fffffffffffffffff', '2024-01-01', '12:30:45', '!!python/object/apply:os.system [id]', '!!binary aGk=',
    '*nowhere', '&a [*a]', '&b {c: *b}', "[" * 200, "{a: " * 60, "- " * 100, "''", '"\\ud800"', '"\\x1b[31m"',
    "'\x85'", '\u202e', '~root', '~no-such-user/x', "a" * 300, "a/" * 3000, '../../../../etc/passwd', '/dev/zero',
    '/dev/stdin', '.', '/', '[]', '{}', '[1, 2]', '{a: b}', '[[[]]]', '!!set {a}', '<<: *x', '? a', '|\n  text', '>-',
    '%', '@', '`', "'", '"', '#', '---', '...', '\t', '\x00', '\x07', '\ufeff', '🦊', '¼', 'NaN', 'None', '3.5', "'3'",
    '[true]', '{mean: [x], std: []}', '{stop_at: {stop_at: qat}}', '<<',
)  # fmt: skip
PIECES = (
    b'\xff\xfe', b'\xef\xbb\xbf', b'\x00', b'\x80', b'\xed\xa0\x80', b'\r', b'\r\n', b'\t', b': ', b'- ', b'? ',
    b'&x ', b'*x', b'!', b'|', b'>', b'{', b'}', b'[', b']', b',', b'#', b'%YAML 9.9\n', b'---\n', b'...\n', b'<<: ',
    b'\xc3',
)  # fmt: skip


def mutants(kind: str, count: int, seed: int) -> Iterator[bytes]:
    """`count` files like the packed `recipes` or `devices`, with one to four mistakes each."""
    draw = random.Random(f"{kind} {seed}")  # no secret
    texts = [path.read_text() for path in packed(kind).values()]
    for _ in range(count):
        content = draw.choice(texts)
        for _ in range(draw.randint(1, 3)):
            content = _mistake(content, texts, draw)
        yield _bytes(content, draw)


def _mistake(text: str, texts: list[str], draw: random.Random) -> str:
    lines = text.split("\n")
    place = draw.randrange(len(lines))
    match draw.randrange(8):
        case 0:  # another value
            key, colon, _ = lines[place].partition(":")
            lines[place] = f"{key}{colon or ':'} {draw.choice(VALUES)}"
        case 1:  # a value inside a flow mapping
            words = lines[place].split(" ")
            words[draw.randrange(len(words))] = draw.choice(VALUES)
            lines[place] = " ".join(words)
        case 2:
            lines.insert(place, lines[draw.randrange(len(lines))])
        case 3:
            del lines[place]
        case 4:
            lines[place] = " " * draw.randrange(9) + lines[place].lstrip()
        case 5:
            lines.insert(place, f"{draw.choice(VALUES)}: {draw.choice(VALUES)}")
        case 6:  # the end of another file
            lines = lines[:place] + draw.choice(texts).split("\n")[draw.randrange(20) :]
        case _:
            lines[place] = lines[place] * draw.choice((2, 50))
    return "\n".join(lines)


def _bytes(text: str, draw: random.Random) -> bytes:
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    match draw.randrange(6):
        case 0:
            return text.encode(draw.choice(("utf-16", "utf-8-sig", "latin-1", "utf-32", "cp1252")), "replace")
        case 1:
            place = draw.randrange(len(content) + 1)
            content[place:place] = draw.choice(PIECES)
        case 2 if content:
            content[draw.randrange(len(content))] = draw.randrange(256)
        case 3:
            del content[draw.randrange(len(content) + 1) :]
        case _:
            pass
    return bytes(content)


def load_all(kind: str, count: int, seed: int, folder: Path) -> tuple[Counter[str], float]:
    """Load so many mutants; how many were refused and taken, and the seconds of the slowest.

    Raises:
        AssertionError: what is taken is not read again as the same.
        Exception: whatever isn't an EdgeError.
    """
    load: Load = load_recipe if kind == "recipes" else load_device
    found: Counter[str] = Counter()
    slowest = 0.0
    file, again = folder / "mutant.yaml", folder / "again.yaml"
    for content in mutants(kind, count, seed):
        file.write_bytes(content)
        start = time.monotonic()
        try:
            loaded = load(str(file))
        except EdgeError as error:
            found["refused" if 0 < len(error.message) < 20_000 else "refused without a word, or with too many"] += 1
        else:
            found["taken"] += 1
            again.write_text(dump_yaml(loaded.model_dump(mode="json")))  # type: ignore[attr-defined]  # a Spec
            assert load(str(again)) == loaded
        slowest = max(slowest, time.monotonic() - start)
    return found, slowest


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for one in ("recipes", "devices"):
            print(one, *load_all(one, int(sys.argv[1]), seed=1, folder=Path(scratch)))
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
