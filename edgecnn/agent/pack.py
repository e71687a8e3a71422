"""The agent as one file: a zipapp of the modules that a board needs, the same bytes for the same sources."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from edgecnn.process.sources import PACKAGE, reached

HOST = ("pack", "boot")  # of this room: what packs, and what becomes the zipapp's `__main__`
# Polygraphy's CUDA wrapper (Apache-2.0) and what it imports; pure Python, for TensorRT alone.
POLYGRAPHY = ("common", "cuda", "datatype", "exception", "func", "json", "logger", "mod", "util")
DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Agent:
    """The zipapp and the hex SHA-256 that is its name on the board."""

    data: bytes
    sha256: str


@lru_cache(maxsize=1)
def packed_modules() -> dict[str, Path]:
    """This room's modules and all that they import. They need Python 3.10 and, where engines are used, numpy."""
    own = (f"{__package__}.{path.stem}" for path in Path(__file__).parent.glob("*.py") if path.stem not in HOST)
    return reached(name.removesuffix(".__init__") for name in own)


def pack_agent(*, replace: Mapping[str, Path] | None = None) -> Agent:
    """Pack the agent.

    Args:
        replace: other sources for modules, by dotted name as `backends.tensorrt.trt`: a test's recorded engine.
    """
    return _packed(tuple(sorted((replace or {}).items())))


@lru_cache(maxsize=8)
def _packed(replace: tuple[tuple[str, Path], ...]) -> Agent:
    modules, replaced = packed_modules(), {f"edgecnn.{name}": source for name, source in replace}
    if unknown := replaced.keys() - modules.keys():
        raise ValueError(f"the agent has no modules {sorted(unknown)}")
    content = {"__main__.py": Path(__file__).with_name("boot.py").read_bytes()}
    for name, path in modules.items():
        inside = path.relative_to(PACKAGE.parent).as_posix()
        content[inside] = replaced.get(name, path).read_bytes()
    content |= dict(_polygraphy())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name in sorted(content):
            entry = zipfile.ZipInfo(name, DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o600 << 16
            file.writestr(entry, content[name])
    data = packed.getvalue()
    return Agent(data, hashlib.sha256(data).hexdigest())


def _polygraphy() -> Iterator[tuple[str, bytes]]:
    """(name in the zip, content) of Polygraphy's part where it is installed."""
    found = importlib.util.find_spec("polygraphy")
    if found is None or not found.submodule_search_locations:
        return
    root = Path(found.submodule_search_locations[0])
    paths = [*root.glob("*.py"), *(path for part in POLYGRAPHY for path in (root / part).rglob("*.py"))]
    for path in paths:
        yield f"polygraphy/{path.relative_to(root).as_posix()}", path.read_bytes()
