"""Fixtures that every room shares."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
_STATUS = pytest.StashKey[int]()
# Files that take longest, in seconds of a CI run: for shares of equal length.
LONG = {
    "test_readme": 130, "test_build_over_ssh": 125, "test_link_faults": 170, "test_recipes": 125, "test_build": 140,
    "test_build_detect": 80, "test_zoo_sample": 75, "test_random_graphs": 75, "test_files": 70, "test_fleet": 60,
    "test_orin_build": 45, "test_qat": 60, "test_resume": 40, "test_board_jobs": 50, "test_train": 45,
}  # fmt: skip
SHARE = "EDGECNN_TESTS"  # as 2/3: the second of three shares of all test files; `alone`: what wants its own process'


def pytest_configure() -> None:
    # A shell starts background work with Ctrl-C ignored, and children inherit that: the tests send it to theirs.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not (asked := os.environ.get(SHARE)):
        return
    alone = [item for item in items if item.get_closest_marker("alone")]
    if asked == "alone":
        config.hook.pytest_deselected(items=[item for item in items if item not in alone])
        items[:] = alone
        return
    which, shares = (int(number) for number in asked.split("/"))
    counts = Counter(item.path for item in items)
    seconds = {path: LONG.get(path.stem, 0.2 * count) for path, count in counts.items()}
    filled = [0.0] * shares
    mine = set()
    for path in sorted(seconds, key=lambda path: (-seconds[path], path)):
        share = filled.index(min(filled))
        filled[share] += seconds[path]
        if share == which - 1:
            mine.add(path)
    kept = [item for item in items if item.path in mine and item not in alone]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave at once when everything is reported, with the tests' own status.

    A whole run loads torch, onnxruntime, OpenVINO, TensorRT for RTX and OpenCV into one process, and was seen to crash
    after the last test, while it was torn down. edgecnn itself gives every engine a process of its own.
    """
    status = config.stash.get(_STATUS, None)
    if status is not None:
        config.get_terminal_writer().flush()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The checkout's root folder."""
    return REPO


@pytest.fixture(scope="session")
def packs() -> Path:
    """The folder of data packs: EDGECNN_DATA, else `shared/data` beside the checkout; skips without it."""
    root = Path(os.environ.get("EDGECNN_DATA") or REPO.parent / "shared" / "data")
    if not (root / "cifar10-jpeg").is_dir():
        pytest.skip(f"no data packs in {root}: set EDGECNN_DATA")
    return root.resolve()
