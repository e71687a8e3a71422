"""Progress of long work: bars on a terminal, plain lines elsewhere, nothing unless the CLI asked for it.

Any stage may call `track`; who shows it is decided once, by `showing`. Logs and progress go to stderr, never to stdout.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, TypeVar

from edgecnn.process.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


class Task(Protocol):
    """One piece of work being shown."""

    def update(self, done: float, text: str = "") -> None:
        """Set how much is done (of the task's total) and a short text such as `loss 0.31`."""


class Progress(Protocol):
    """Where progress and notes go."""

    def task(self, name: str, total: float | None) -> AbstractContextManager[Task]:
        """Show a task until the context ends; total None when unknown."""

    def note(self, text: str) -> None:
        """One line for the person: a stage kept, a wait, a repair."""


class _Silent:
    def update(self, done: float, text: str = "") -> None:
        pass

    @contextmanager
    def task(self, name: str, total: float | None) -> Iterator[Task]:
        yield self

    def note(self, text: str) -> None:
        pass


class Plain:
    """One line at the start, every `interval_s` seconds and at the end of whatever takes longer than a second."""

    def __init__(self, interval_s: float = 5.0) -> None:
        self.interval_s = interval_s

    @contextmanager
    def task(self, name: str, total: float | None) -> Iterator[Task]:
        task = _PlainTask(self, name, total)
        yield task
        task.finish()

    def note(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)


class _PlainTask:
    def __init__(self, plain: Plain, name: str, total: float | None) -> None:
        self.plain, self.name, self.total = plain, name, total
        self.start = self.said = time.monotonic()
        self.done, self.text = 0.0, ""

    def update(self, done: float, text: str = "") -> None:
        self.done, self.text = done, text or self.text
        if time.monotonic() - self.said >= self.plain.interval_s:
            self._say("")

    def finish(self) -> None:
        seconds = time.monotonic() - self.start
        if seconds >= 1.0:
            self._say(f" in {seconds:.1f} s")

    def _say(self, ending: str) -> None:
        self.said = time.monotonic()
        amount = f"{self.done:g}/{self.total:g}" if self.total else f"{self.done:g}"
        self.plain.note(f"{self.name}: {amount}{' ' + self.text if self.text else ''}{ending}")


class Bars:
    """rich progress bars on stderr."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.table import Column

        # Words share what the numbers leave of the line: those are never cut.
        name, text = (Column(no_wrap=True, overflow="ellipsis", ratio=1) for _ in range(2))
        amount, elapsed, rest = (Column(no_wrap=True) for _ in range(3))
        columns = (
            TextColumn("{task.description}", markup=False, table_column=name), BarColumn(bar_width=16),
            TextColumn("{task.fields[amount]}", table_column=amount, justify="right"),
            TimeElapsedColumn(table_column=elapsed), TimeRemainingColumn(table_column=rest),
            TextColumn("{task.fields[text]}", markup=False, table_column=text),
        )  # fmt: skip
        self.console = console or Console(stderr=True)
        self.rich = Progress(*columns, console=self.console, transient=True, expand=True)
        self.open = 0

    @contextmanager
    def task(self, name: str, total: float | None) -> Iterator[Task]:
        if self.open == 0:
            self.rich.start()
        self.open += 1
        number = self.rich.add_task(printable(name), total=total, amount="", text="")
        try:
            yield _BarTask(self, number, total)
        finally:
            self.rich.remove_task(number)
            self.open -= 1
            if self.open == 0:
                self.rich.stop()

    def note(self, text: str) -> None:
        self.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)


class _BarTask:
    def __init__(self, bars: Bars, number: object, total: float | None) -> None:
        self.bars, self.number, self.total = bars, number, total

    def update(self, done: float, text: str = "") -> None:
        amount = f"{done:g}/{self.total:g}" if self.total else f"{done:g}"
        self.bars.rich.update(self.number, completed=done, amount=amount, text=printable(text))  # type: ignore[arg-type]  # a rich TaskID


_current: ContextVar[Progress] = ContextVar("progress")
_SILENT = _Silent()


def current() -> Progress:
    """The Progress in force; silent by default."""
    return _current.get(_SILENT)


@contextmanager
def showing(progress: Progress) -> Iterator[None]:
    """Send progress and notes to `progress` while the context lasts."""
    token = _current.set(progress)
    try:
        yield
    finally:
        _current.reset(token)


def track(items: Iterable[T], name: str, total: float | None = None) -> Iterator[T]:
    """Yield the items and show how many are done."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with current().task(name, total) as task:
        for done, item in enumerate(items):
            task.update(done)
            yield item
            task.update(done + 1)
