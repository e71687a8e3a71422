"""The command line in this process: what starts with an interpreter and its torch takes no time here.

For tests whose subject isn't the border of a process. What crosses it still does: arguments and jobs go as text.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecnn import cli
from edgecnn.process import child

TORCH_ROOMS = (
    "edgecnn.families.",
    "edgecnn.training.",
    "edgecnn.quantize.torch.",
)  # whose children do nothing before torch is imported
START_CHILD = child.run_child


def edgecnn(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`edgecnn ARGUMENTS` in a folder, answered as by a process; `environment` is added to this one's."""
    printed, said = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["edgecnn", *arguments])
        patch.setattr(sys, "path", [*sys.path])
        for name, value in environment.items():
            patch.setenv(name, value)
        with children_here(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
            code = ended()
    return subprocess.CompletedProcess(["edgecnn", *arguments], code, printed.getvalue(), said.getvalue())


def ended() -> int:
    """Run the command that sys.argv holds; its exit code."""
    kept = dict(os.environ)
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        os.environ.clear()
        os.environ.update(kept)


@contextlib.contextmanager
def children_here() -> Iterator[None]:
    """The children that need torch work in this process, which has it; engines crash in one of their own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("edgecnn") and getattr(module, "run_child", None) is START_CHILD:
                patch.setattr(module, "run_child", run_here)
        yield


def run_here(module: str, job: dict[str, Any], log: Path, **options: Any) -> dict[str, Any]:
    """In place of run_child: what a child's `serve` calls, called with the job as it would have read it."""
    if options or not module.startswith(TORCH_ROOMS):
        return START_CHILD(module, job, log, **options)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # they would go to the log
        for name, value in child.added_environment().items():
            patch.setenv(name, value)
        result = importlib.import_module(module).work(json.loads(json.dumps(job)))
    answer: dict[str, Any] = json.loads(json.dumps(result))
    return answer
