"""The one error that users see."""

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
