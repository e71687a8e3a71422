"""What `.ci/run` holds the tests to: the programs that they start are there, and what is skipped is counted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from programs import MISSING, PACKAGES, why_missing

TESTS = """
import pytest
from programs import why_missing

@pytest.fixture
def server():
    if why := why_missing("no-such-server", "sshd"):
        pytest.skip(why)

def test_one(server): pass
def test_two(server): pass

@pytest.mark.skip("no GPU")
def test_three(): pass
"""


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_a_skip_for_a_missing_program_fails_in_ci(repo: Path, tmp_path: Path, ci: str, code: int) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(repo / "tests"), "PYTEST_ADDOPTS": "", "PATH": "/nowhere"}
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-c", "/dev/null", "--rootdir", tmp_path, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout
    said = done.stdout.partition("skipped, by reason")[2]
    assert "   1 no GPU" in said
    assert ("   2 missing program: no-such-server" in said) is (not ci)
    assert ("errors" in done.stdout and MISSING in done.stdout) is bool(ci)


def test_the_reason_names_the_packages() -> None:
    assert why_missing("sh") is None
    assert why_missing("no-such") == "missing program: no-such (apt-get install no-such)"


def test_every_skip_for_a_program_is_told_by_one_helper(repo: Path) -> None:
    """Another wording would pass in CI."""
    for path in (repo / "tests").rglob("test_*.py"):
        for call in re.findall(r"shutil\.which\(\"([a-z-]+)\"\)", path.read_text()):
            assert call not in PACKAGES, path
