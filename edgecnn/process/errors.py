"""What users see when something is wrong: their input (EdgeError) or edgecnn itself (InternalError)."""

from __future__ import annotations


class EdgeError(Exception):
    """Bad input or a failed step: what happened and where (`message`), and what to do about it (`hint`).

    The CLI prints it as `error: …` and `hint: …` and exits with code 2. The message's first line stands alone.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class InternalError(Exception):
    """A fault of edgecnn's own, never of what it was given; not an EdgeError, so that nothing takes it for bad input.

    The CLI writes the traceback to a file, says where in one line, and exits with code 70, as on any other exception
    that nobody foresaw. `trace`: the traceback of the process it happened in, where that was another one.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.trace = trace


def printable(text: str) -> str:
    """Text for a terminal: what would steer it (escape sequences, bells, turned writing) is spelled out, as \\x1b."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode("ascii") for one in text
    )
