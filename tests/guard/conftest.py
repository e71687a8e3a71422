"""`--renew` and `--texts` of the guard, and the committed digests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from digests import Guard


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--renew", action="store_true", help="take the guard's digests down anew")
    parser.addoption("--texts", type=Path, help="folder that takes what each of the guard's digests is of")


@pytest.fixture(scope="session")
def guard(request: pytest.FixtureRequest) -> Iterator[Guard]:
    """Options are known only where this folder is named to pytest."""
    made = Guard(request.config.getoption("--renew", False), request.config.getoption("--texts", None))
    yield made
    if made.renew:
        made.write(keep=bool(request.config.getoption("keyword")))
