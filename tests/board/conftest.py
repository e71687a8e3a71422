"""A board for every test that asks for one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from programs import why_missing
from proxy import Proxy, between
from sshd import Sshd, running

from edgecnn.agent.pack import Agent, pack_agent
from edgecnn.board.jobs import Board
from edgecnn.board.limits import LinkLimits

# Short enough for tests, long enough for a machine that runs other things, too.
QUICK = LinkLimits(connect_s=10.0, silence_s=1.5, look_s=1.0, heartbeat_s=2.0, stop_s=4.0)
Connect = Callable[..., Board]


@pytest.fixture(scope="session")
def openssh() -> None:
    """OpenSSH's server and client."""
    if why := why_missing("sshd", "ssh", "ssh-keygen"):
        pytest.skip(why)


@pytest.fixture
def server(openssh: None, tmp_path: Path) -> Iterator[Sshd]:
    with running(tmp_path / "board") as started:
        yield started


@pytest.fixture
def link(server: Sshd) -> Iterator[Proxy]:
    """The server behind a link that can have faults; the client's configuration leads through it."""
    with between(server.port) as proxy:
        server.write_config(port=proxy.port)
        yield proxy


@pytest.fixture(scope="session")
def agent() -> Agent:
    return pack_agent()


@pytest.fixture
def connect(server: Sshd, agent: Agent) -> Iterator[Connect]:
    """Connects to the server, as often as called; every link is closed afterwards."""
    opened: list[Board] = []

    def one(*, limits: LinkLimits = QUICK, agent: Agent = agent, config: Path = server.config) -> Board:
        board = Board.connect("board", agent=agent, limits=limits, config=config)
        opened.append(board)
        return board

    yield one
    for board in opened:
        board.close()


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
