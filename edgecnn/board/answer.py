"""What the agent says while it runs: progress, notes, and a last word; and how it ended without one."""

from __future__ import annotations

import shlex
import signal
from collections import deque
from contextlib import ExitStack

from edgecnn.board.replies import BadAnswer, JobFailed, Json, Line, read_line
from edgecnn.process import progress
from edgecnn.process.errors import InternalError

MOST_NOTES, MOST_TASKS = 10_000, 100
FOREIGN_BYTES, OWN_BYTES = 1 << 20, 64 << 20  # of one job's output: banners and the like, and the agent's lines


class Answer:
    """Reads the agent's lines: shows progress and notes, keeps the last word. `heard` counts its messages."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.tasks: dict[str, progress.Task] = {}
        self.last: Line | None = None
        self.log = deque[bytes](maxlen=40)  # the last lines that weren't messages
        self.heard = self.notes = self.foreign = self.own = 0

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def take(self, line: bytes) -> None:
        """One line of stdout; what isn't the agent's is passed over, a login shell's banner before it on a line too.

        Raises:
            BadAnswer: it says what our agent never says, or far too much.
        """
        message = read_line(line)
        if message is None:
            self.foreign += len(line) + 1
            self.log.append(line[-400:])
        else:
            self.own += len(line)
            self._show(message)
        if self.foreign > FOREIGN_BYTES or self.own > OWN_BYTES or self.notes > MOST_NOTES:
            raise BadAnswer("it goes on and on")

    def _show(self, message: Line) -> None:
        self.heard += 1
        shown = progress.current()
        if message.task is not None:
            if message.task not in self.tasks:
                if len(self.tasks) == MOST_TASKS:
                    raise BadAnswer("it goes on and on")
                self.tasks[message.task] = self.stack.enter_context(shown.task(message.task, message.total))
            self.tasks[message.task].update(message.done or 0.0, message.text)
        elif message.note is not None:
            self.notes += 1
            shown.note(message.note)
        elif message.result is not None or message.error is not None:
            self.last = message

    def result(self, code: int | None, address: str) -> Json:
        """The result, as it was said.

        Args:
            code: the agent's exit status; None where it was ended after its last word.

        Raises:
            JobFailed: an error, or no last word.
            InternalError: an exception in the agent that nobody foresaw.
        """
        if self.last is not None and self.last.error is None and self.last.result is not None:
            return self.last.result
        if self.last is not None and self.last.kind == "fault":
            raise InternalError(f"`{address}`: {self.last.error}", self.last.hint)
        if self.last is not None:
            raise JobFailed(self.last.kind, self.last.error or "", self.last.hint)
        log = b"\n".join(self.log).decode(errors="replace").strip()
        said = f"the end of what it said:\n{log}" if log else "it said nothing"
        if code == 127:
            raise JobFailed(
                "no-python", "there is no `python3` on the board",
                f"on the board: `sudo apt install python3 python3-numpy`; `ssh {shlex.quote(address)} python3 -V` must"
                f" answer; {said}",
            )  # fmt: skip
        if code == 128 + signal.SIGKILL:
            raise JobFailed(
                "killed", "the agent was killed (signal 9): most often the board ran out of memory",
                "free memory there (close the desktop, add swap), or use a smaller batch; run it again",
            )  # fmt: skip
        if code is not None and code > 128:
            raise JobFailed("crashed", f"the agent crashed with signal {code - 128}", said)
        if code == 2 and "No such file" in log:
            raise JobFailed("agent-absent", "the agent is not on the board any more", said)
        raise JobFailed("no-answer", f"the agent ended with code {code} and no answer", said)
