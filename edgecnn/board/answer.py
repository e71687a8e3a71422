"""What the agent says while it runs: progress, notes, and a last word; and how it ended without one."""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack
from typing import Any

from edgecnn import progress
from edgecnn.board.shell import Exit
from edgecnn.errors import EdgeError

Json = dict[str, Any]


class JobFailed(EdgeError):
    """The board is there and said no. `kind`: the agent's one word for why, as `lock`, `killed`, `disk-full`."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.kind = kind


class Answer:
    """Reads the agent's lines: shows progress and notes, keeps the last word."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.tasks: dict[str, progress.Task] = {}
        self.last: Json | None = None

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def take(self, line: bytes) -> None:
        """One line of stdout; what isn't the agent's is passed over, a login shell's banner before it on a line too."""
        message = _message(line)
        shown = progress.current()
        if "task" in message:
            name = str(message["task"])
            if name not in self.tasks:
                self.tasks[name] = self.stack.enter_context(shown.task(name, message.get("total")))
            self.tasks[name].update(float(message.get("done") or 0), str(message.get("text", "")))
        elif "note" in message:
            shown.note(str(message["note"]))
        elif "result" in message or "error" in message:
            self.last = message

    def result(self, ended: Exit, address: str) -> Json:
        """The result.

        Raises:
            JobFailed: an error, or no last word.
        """
        if self.last is not None and isinstance(self.last.get("result"), dict):
            result: Json = self.last["result"]
            return result
        if self.last is not None:
            raise JobFailed(
                str(self.last.get("kind", "failed")), str(self.last.get("error")), str(self.last.get("hint", ""))
            )
        said = f"the end of what it said:\n{ended.log}" if ended.log else "it said nothing"
        if ended.code == 127:
            raise JobFailed(
                "no-python", "there is no `python3` on the board",
                f"on the board: `sudo apt install python3 python3-numpy`; `ssh {shlex.quote(address)} python3 -V` must"
                f" answer; {said}",
            )  # fmt: skip
        if ended.signal == "KILL" or ended.code == 137:
            raise JobFailed(
                "killed", "the agent was killed (signal 9): most often the board ran out of memory",
                "free memory there (close the desktop, add swap), or use a smaller batch; run it again",
            )  # fmt: skip
        if ended.signal or (ended.code is not None and ended.code > 128):
            name = ended.signal or str((ended.code or 0) - 128)
            raise JobFailed("crashed", f"the agent crashed with signal {name}", said)
        if ended.code == 2 and "No such file" in ended.log:
            raise JobFailed("agent-absent", "the agent is not on the board any more", said)
        raise JobFailed("no-answer", f"the agent ended with code {ended.code} and no answer", said)


def _message(line: bytes) -> Json:
    """The JSON object that ends a line; {} when there is none."""
    start = line.find(b'{"')
    while start >= 0:
        try:
            message: Json = json.loads(line[start:])
        except (ValueError, RecursionError):
            start = line.find(b'{"', start + 1)
        else:
            return message
    return {}
