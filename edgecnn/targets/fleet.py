"""Several boards of one device: work is spread over them, and a board that fails leaves its work to the others.

One board alone is worked in the calling thread, and its error is the error. Of several, each has a thread and a link
of its own; what fails on one is said, and is an error only when no board is left.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from edgecnn.process import progress
from edgecnn.process.errors import EdgeError

Json = dict[str, Any]
R = TypeVar("R")
W = TypeVar("W")


class Board(Protocol):
    """What a fleet asks of a board that it is connected to; `board.jobs.Board` is the real one."""

    @property
    def host(self) -> str:
        """As it was given."""

    @property
    def facts(self) -> Json:
        """What it answered about itself; see `agent.describe`."""

    def run(
        self, job: Json, inputs: Mapping[str, Path] | None = None, *, out: Path | None = None, step: str = ""
    ) -> Json:
        """Run one job of the agent there; see `board.jobs.Board.run`."""

    def fetch(self, digest: str, size: int, to: Path) -> None:
        """Bring one of the board's kept files here."""

    def close(self) -> None:
        """End the link, and a job that runs."""


Reach = Callable[[str], AbstractContextManager[Board]]  # connects to a board by its host


@dataclass(frozen=True)
class Done(Generic[R]):
    """A piece of work: on which board, and what came of it."""

    host: str
    result: R


@dataclass(frozen=True)
class Fleet:
    """The boards of one device. `reach` connects to one; every call of a method connects anew.

    A build trains for hours between two stages: a link kept open meanwhile would be lost without anybody asking.
    """

    hosts: tuple[str, ...]
    reach: Reach

    def first(self, do: Callable[[Board], R]) -> Done[R]:
        """Do something once, on the first board that can.

        Raises:
            EdgeError: the last board's, when none can.
        """
        for host in self.hosts[:-1]:
            try:
                return Done(host, self._on(host, do))
            except EdgeError as error:
                _say_left_out(host, error)
        return Done(self.hosts[-1], self._on(self.hosts[-1], do))

    def each(self, do: Callable[[Board], R]) -> list[Done[R]]:
        """Do the same on every board, all at once; results of the living ones, in the order of the hosts.

        Raises:
            EdgeError: the first board's, when all failed.
        """
        if len(self.hosts) == 1:
            return [Done(self.hosts[0], self._on(self.hosts[0], do))]
        found: dict[str, R] = {}

        def work(board: Board, host: str) -> None:
            found[host] = do(board)

        failed = self._together(work)
        if not found:
            raise failed[self.hosts[0]]
        return [Done(host, found[host]) for host in self.hosts if host in found]

    def spread(self, pieces: Sequence[W], do: Callable[[Board, W], R]) -> list[Done[R]]:
        """Do every piece once, on whichever board is free; results in the order of the pieces.

        A piece whose board fails goes back to the others.

        Raises:
            EdgeError: the last failing board's, when pieces are left and no board is.
        """
        if len(self.hosts) == 1 and pieces:
            host = self.hosts[0]
            return [Done(host, result) for result in self._on(host, lambda board: [do(board, one) for one in pieces])]
        found: dict[int, Done[R]] = {}
        waiting = queue.SimpleQueue[int]()
        for number in range(len(pieces)):
            waiting.put(number)

        def work(board: Board, host: str) -> None:
            while len(found) < len(pieces):
                try:
                    number = waiting.get(timeout=0.2)  # another board's piece may come back
                except queue.Empty:
                    continue
                try:
                    found[number] = Done(host, do(board, pieces[number]))
                except BaseException:
                    waiting.put(number)
                    raise

        failed = self._together(work) if pieces else {}
        if len(found) < len(pieces):
            raise list(failed.values())[-1]
        return [found[number] for number in range(len(pieces))]

    def _on(self, host: str, do: Callable[[Board], R]) -> R:
        with self.reach(host) as board:
            return do(board)

    def _together(self, work: Callable[[Board, str], None]) -> dict[str, EdgeError]:
        """Run `work` on every board in a thread each; the errors of those that failed, in the order they did."""
        failed: dict[str, EdgeError] = {}
        broken: list[BaseException] = []
        open_boards: dict[str, Board] = {}
        stopping = threading.Event()

        def run(host: str) -> None:
            try:
                with progress.showing(_Named(progress.current(), host)), self.reach(host) as board:
                    open_boards[host] = board
                    if not stopping.is_set():  # Ctrl-C came while it was being reached
                        work(board, host)
            except EdgeError as error:
                failed[host] = error
                _say_left_out(host, error)
            except BaseException as error:  # noqa: BLE001  # a mistake of ours is raised by who waits
                broken.append(error)
            finally:
                open_boards.pop(host, None)

        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(run, host), name=host, daemon=True)
            for host in self.hosts
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
        except BaseException:  # Ctrl-C: nothing keeps running on a board
            stopping.set()
            for board in list(open_boards.values()):
                with suppress(Exception):
                    board.close()
            for thread in threads:
                thread.join(10)
            raise
        if broken:
            raise broken[0]
        return failed


def _say_left_out(host: str, error: EdgeError) -> None:
    progress.current().note(f"{host}: {error.message}; continuing without it")


class _Named:
    """A board's Progress: every task and note names the board."""

    def __init__(self, shown: progress.Progress, host: str) -> None:
        self.shown, self.host = shown, host

    @contextmanager
    def task(self, name: str, total: float | None) -> Iterator[progress.Task]:
        with self.shown.task(f"{self.host}: {name}", total) as task:
            yield task

    def note(self, text: str) -> None:
        self.shown.note(text if text.startswith(f"{self.host}:") else f"{self.host}: {text}")
