"""How long the host waits for a board before it says that something is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from edgecnn.process.errors import EdgeError


@dataclass(frozen=True)
class LinkLimits:
    """A link's time limits in seconds. A fault is an error after `connect_s`, `silence_s` + `look_s` or `answer_s`."""

    connect_s: float = 10.0  # from the name to a logged-in session
    silence_s: float = 7.0  # no byte from the board for so long, in whole seconds from 2 on: the link is dead
    look_s: float = 5.0  # for a look at what became of a board whose link was lost
    answer_s: float = 30.0  # no word from the agent, which tells every few seconds that it is alive
    heartbeat_s: float = 6.0  # no byte from the host for so long: the board ends the job
    stop_s: float = 5.0  # after Ctrl-C, how long the board may take to end the job

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 < getattr(self, field.name) < float("inf"):
                raise EdgeError(f"link limit `{field.name}` is {getattr(self, field.name)}", "give seconds above 0")

    @property
    def beat_s(self) -> float:
        """Time between two heartbeats: three may be late before the board gives up."""
        return self.heartbeat_s / 4


DEFAULT_LIMITS = LinkLimits()


def parse_limits(texts: Sequence[str]) -> LinkLimits:
    """The limits that `NAME=SECONDS` texts ask for.

    Raises:
        EdgeError: one is not of that form, or names no limit.
    """
    known, given = [field.name for field in fields(LinkLimits)], {}
    for text in texts:
        name, _, value = text.partition("=")
        if name.strip() not in known:
            raise EdgeError(f"there is no link limit `{name.strip()}`", f"valid: {', '.join(sorted(known))}")
        try:
            given[name.strip()] = float(value)
        except ValueError:
            raise EdgeError(f"--link takes NAME=SECONDS, not `{text}`", "for example --link connect_s=10") from None
    return LinkLimits(**given)
