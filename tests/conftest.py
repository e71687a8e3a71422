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
# They take longest: begun first, none of them is left to run alone when files are shared among workers.
LONG = (
    "test_link_faults", "test_build_over_ssh", "test_build", "test_readme", "test_files", "test_recipes",
    "test_zoo_sample", "test_agent_time", "test_random_graphs", "test_build_detect", "test_orin_build", "test_qat",
    "test_board_jobs", "test_export", "test_bad_input", "test_fleet", "test_bad_graphs_and_disks", "test_ctrl_c",
)  # fmt: skip


def pytest_configure() -> None:
    # A shell starts background work with Ctrl-C ignored, and children inherit that: the tests send it to theirs.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


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
