"""How long the host waits for a board before it says that something is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from edgecnn.process.errors import EdgeError


@dataclass(frozen=True)
class LinkLimits:
    """Time limits of a link, in seconds. A fault is an error after `connect_s`, `silence_s` + `look_s` or `answer_s`.

    Each can be set by an environment variable: EDGECNN_CONNECT_S, EDGECNN_SILENCE_S, EDGECNN_LOOK_S,
    EDGECNN_ANSWER_S, EDGECNN_HEARTBEAT_S, EDGECNN_STOP_S.
    """

    connect_s: float = 10.0  # from the name to a logged-in session and its file server
    silence_s: float = 7.0  # no byte from the board for so long: the link is dead
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

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> LinkLimits:
        """The limits of the environment.

        Raises:
            EdgeError: a variable is not a number above 0.
        """
        given = {}
        for field in fields(cls):
            name = f"EDGECNN_{field.name.upper()}"
            if environ.get(name):
                try:
                    given[field.name] = float(environ[name])
                except ValueError:
                    raise EdgeError(f"{name} is `{environ[name]}`, not a number of seconds") from None
        return cls(**given)
