"""What the package's own modules import, read from their sources: nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


@lru_cache(maxsize=1)
def modules() -> dict[str, Path]:
    """The source of every module, by dotted name; a package's is its `__init__.py`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@lru_cache(maxsize=512)
def names_imported(path: Path) -> frozenset[str]:
    """Dotted names that a source imports, anywhere in it but for types alone; and modules that a text of it names.

    `from a.b import c` is `a.b.c`, a module or what is in one. A text names what a child process runs.
    """
    return frozenset(_names(ast.parse(path.read_bytes())))


def _names(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=str(module), names=names):
            yield from (f"{module}.{alias.name}" for alias in names)
        case ast.Constant(value=str(text)) if text in modules():
            yield text
    for child in ast.iter_child_nodes(node):
        yield from _names(child)


def module_of(name: str) -> str:
    """The module of the package that a dotted name is, or is in: `edgecnn.a.b` of `edgecnn.a.b.Class`."""
    while name not in modules():
        name = name.rpartition(".")[0]
    return name


def own_imports(name: str) -> set[str]:
    """The modules of the package that one of them imports."""
    return {module_of(one) for one in names_imported(modules()[name]) if one.split(".")[0] == PACKAGE.name}


def reached(start: Iterable[str]) -> dict[str, Path]:
    """These modules and all that they import in turn, with the packages they are in: what can run without the rest.

    What the package itself offers is imported only when it is asked for, and isn't followed.
    """
    waiting, found = list(start), dict[str, Path]()
    while waiting:
        name = waiting.pop()
        if name and name not in found:
            found[name] = modules()[name]
            if name != PACKAGE.name:
                waiting += [name.rpartition(".")[0], *own_imports(name)]
    return found
