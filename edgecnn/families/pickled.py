"""Torch files, read without calling anything that they name: objects become records that hold state only.

torch's weights-only unpickler calls what its own closed list holds: the functions that rebuild tensors. Every other
class that a file may name is given to it as a `Record`, which has none of the class's code.
"""

from __future__ import annotations

import contextlib
import mmap
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch

from edgecnn.process.errors import EdgeError

State = dict[str, torch.Tensor]
# What trainers leave beside the weights: settings, paths, times and numpy's numbers. Nobody reads them here.
BESIDE = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w+|pathlib\._local\.\w+|datetime\.\w+"
    r"|numpy\.(dtype|ndarray|dtypes\.\w+|(_core|core)\.multiarray\.(scalar|_reconstruct))"
)
# Of torch's own closed list, what fills the memory by a number alone. No trainer saves one.
FILLS = re.compile(rb"c(?:builtins|__builtin__)\nbytearray\n")
DEEPEST, MOST = 64, 100_000  # levels and modules of a network; a file may nest its modules in a circle


class Record:
    """An object of a torch file: the name of its class, and its state. Making one runs no code but this."""

    kind: ClassVar[str] = ""

    def __new__(cls, *arguments: object, **named: object) -> Record:
        """Take whatever the class would have been called with, and forget it."""
        made = object.__new__(cls)
        made.state = {}
        return made

    def __init__(self, *arguments: object, **named: object) -> None:
        self.state: dict[str, Any]

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}


def read_torch(path: Path, whole: re.Pattern[str] | None, *, trusted: bool) -> Any:
    """What `torch.save` wrote, on the CPU; objects that it may hold beside tensors are `Record`s.

    Args:
        whole: full names of the classes that a saved network consists of; None: networks are refused.
        trusted: unpickle it as it asks to be, which can run code.

    Raises:
        EdgeError: not readable, or it asks for anything else, which is named.
    """
    try:
        if trusted:
            return torch.load(path, map_location="cpu", weights_only=False)
        _refuse_swollen(path)
        with _only_records(_asked(path), whole):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL|global)[: ]+`?([A-Za-z_][\w.]*\.\w+)", str(error))
        asked = f": it asks for `{refused.group(1)}`" if refused else ""
        raise EdgeError(
            f"`{path}` is a pickle that holds more than weights{asked}",
            "edgecnn runs no code from a weights file; if you trust where it came from, save its state dict: "
            "torch.save(model.state_dict(), 'weights.pt'), or build with --trust-weights",
        ) from error
    except EdgeError:
        raise
    except Exception as error:  # torch.load raises many kinds for a damaged file
        if "TorchScript" in str(error):
            raise EdgeError(
                f"`{path}` is a TorchScript archive, which holds code beside its weights",
                "save its state dict: torch.save(torch.jit.load(path).state_dict(), 'weights.pt')",
            ) from error
        text = str(error).split("\n")[0] or type(error).__name__
        raise EdgeError(f"`{path}` is not a readable torch file: {text}", "fetch or save it again") from error


def _refuse_swollen(path: Path) -> None:
    """Refuse what would only fill the memory: records much larger than the file, as torch.save never packs, bytearrays.

    Raises:
        EdgeError: it holds either.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
            bounded = claimed <= 2 * path.stat().st_size + (1 << 20)
            pickles = [archive.read(one) for one in archive.infolist() if bounded and one.filename.endswith(".pkl")]
        if not bounded:
            raise EdgeError(
                f"`{path}` is not a readable torch file: its records would take {claimed:,} bytes, "
                f"the file has {path.stat().st_size:,}",
                "fetch or save it again",
            )
        asked = any(FILLS.search(one) for one in pickles)
    elif path.stat().st_size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            asked = FILLS.search(content) is not None
    else:
        asked = False
    if asked:
        raise EdgeError(
            f"`{path}` holds more than weights: it asks for `bytearray`", "save its state dict: torch.save(…)"
        )


def _asked(path: Path) -> list[str]:
    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except (ValueError, RuntimeError):  # an old or a foreign format: `torch.load` tells
        return []


@contextlib.contextmanager
def _only_records(asked: list[str], whole: re.Pattern[str] | None) -> Iterator[None]:
    """Within it torch reads these classes as records, and none that a library declared safe, as it would call those."""
    declared = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        names = [name for name in asked if BESIDE.fullmatch(name) or (whole and whole.fullmatch(name))]
        torch.serialization.add_safe_globals([(type("Record", (Record,), {"kind": name}), name) for name in names])
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(declared)


def state_of(network: Record) -> State:
    """The state dict of a network that was saved whole: names, order and values as `nn.Module.state_dict` has them.

    Raises:
        ValueError: its modules hold each other, or something other than tensors.
    """
    state: State = {}
    modules: list[str] = []

    def gather(module: object, prefix: str, depth: int) -> None:
        modules.append(prefix)
        if not isinstance(module, Record) or depth > DEEPEST or len(modules) > MOST:
            raise ValueError(f"`{prefix}` is not a module of a network")
        passing = module.state.get("_non_persistent_buffers_set") or ()
        for part in ("_parameters", "_buffers"):
            for name, value in _named(module, part):
                if value is not None and not (part == "_buffers" and name in passing):
                    if not isinstance(value, torch.Tensor):
                        raise ValueError(f"`{prefix}{name}` is not a tensor")
                    state[f"{prefix}{name}"] = value.detach()
        for name, child in _named(module, "_modules"):
            if child is not None:
                gather(child, f"{prefix}{name}.", depth + 1)

    gather(network, "", 0)
    return state


def _named(module: Record, part: str) -> list[tuple[str, object]]:
    found = module.state.get(part) or {}
    if not isinstance(found, dict):
        raise ValueError(f"`{part}` is not a table")  # noqa: TRY004  # a fault of the file
    return list(found.items())
