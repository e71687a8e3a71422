"""Fixtures that every room shares."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import MISSING

REPO = Path(__file__).resolve().parents[1]
_STATUS = pytest.StashKey[int]()
EXAMPLES = {False: "100", True: "500"}  # random graphs of the quick tier and of all


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests marked `full` too, which find rare faults")


def pytest_configure(config: pytest.Config) -> None:
    # Files run side by side: a second thread of one would wait, spinning, for the core of another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("EDGECNN_EXAMPLES", EXAMPLES[config.option.all])
    # The commands that tests start import the same modules: compiled by the first, read by the rest.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # A shell starts background work with Ctrl-C ignored, and children inherit that: the tests send it to theirs.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers more than cores, since tests of links mostly wait; none where files are named."""
    if config.option.file_or_dir:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the full tier where it is not asked for; begin with long files, so that the last one to end is short."""
    named = any("::" in argument for argument in config.option.file_or_dir)
    for item in items:
        full = item.get_closest_marker("full")
        if full:
            item.add_marker(pytest.mark.timeout(900))
        if full and not config.option.all and not named:
            item.add_marker(pytest.mark.skip(reason=f"only with --all: {full.kwargs['reason']}"))
    long = {item.path for item in items if is_slow(item)}
    items.sort(key=lambda item: item.path not in long)


def is_slow(item: pytest.Item) -> bool:
    """Whether a test that will run is marked so."""
    return item.get_closest_marker("slow") is not None and item.get_closest_marker("skip") is None


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """In CI a test that is skipped because a program is missing has failed: `.ci/run` installs them."""
    report = (yield).get_result()  # type: ignore[misc, attr-defined]
    if report.skipped and os.environ.get("CI") and reason_of(report).startswith(MISSING):
        report.outcome, report.longrepr = "failed", reason_of(report)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many tests were skipped, by reason."""
    counts = Counter(reason_of(one) for one in terminalreporter.stats.get("skipped", ()))
    if counts:
        terminalreporter.section("skipped, by reason")
        for reason, count in counts.most_common():
            terminalreporter.line(f"{count:4} {reason}")


def reason_of(report: Any) -> str:
    """Why a test was skipped."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave at once when everything is reported, with the tests' own status.

    A whole run loads torch, onnxruntime, OpenVINO, TensorRT for RTX and OpenCV into one process, and was seen to crash
    after the last test, while it was torn down. edgecnn itself gives every engine a process of its own.
    """
    status = config.stash.get(_STATUS, None)
    if status is not None and not hasattr(config, "workerinput"):  # a worker of pytest-xdist still has to report
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
