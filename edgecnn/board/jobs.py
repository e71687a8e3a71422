"""A board: its link, our agent on it, and jobs that run under the agent's guard.

Parameters travel in a job file; while a job runs, stdin carries nothing but the heartbeat, without which the board
ends the job by itself.
"""

from __future__ import annotations

import getpass
import hashlib
import io
import json
import os
import platform
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecnn.board.answer import Answer
from edgecnn.board.limits import DEFAULT_LIMITS, LinkLimits
from edgecnn.board.link import FileRefused, Link, LinkLost, ending
from edgecnn.board.login import Unreachable
from edgecnn.board.replies import BadAnswer, JobFailed, read_reply
from edgecnn.board.transfer import SPARE_BYTES, fetch, free_bytes, refused, send
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError

if TYPE_CHECKING:
    from edgecnn.agent.pack import Agent

PROTOCOL = 1
CONFIG_VARIABLE = "EDGECNN_SSH_CONFIG"
# Answers after which sending again and running again is the remedy; the last three, the agent itself.
SEND_AGAIN = ("absent", "damaged", "agent-absent", "agent-damaged", "no-answer")
TICK_S = 0.5  # between two looks at whether the agent says anything
Json = dict[str, Any]


class Board:
    """A board with our agent on it, and its link. For one caller at a time; any thread may close it."""

    def __init__(self, host: str, agent: Agent, limits: LinkLimits, config: Path | None) -> None:
        """Use `connect`."""
        self.host, self.agent, self.limits, self.config = host, agent, limits, config
        self.link: Link | None = None
        self.facts: Json = {}
        self.boot_id = ""
        self.closed = False

    @classmethod
    def connect(
        cls, host: str, *, agent: Agent, limits: LinkLimits = DEFAULT_LIMITS, config: Path | None = None
    ) -> Board:  # fmt: skip
        """Log in, bring the agent, and ask the board what it is (`facts`, the agent's `describe`).

        Args:
            host: `[user@]host[:port]`, or an alias of the OpenSSH configuration.
            agent: what to run there; sent when it isn't there.
            config: an OpenSSH client configuration; default EDGECNN_SSH_CONFIG, else the user's own.

        Raises:
            Unreachable: no session; LinkLost: it broke off; JobFailed: the board lacks something; each with the fix.
        """
        if config is None and os.environ.get(CONFIG_VARIABLE):
            config = Path(os.environ[CONFIG_VARIABLE])
        board = cls(host, agent, limits, config)
        try:
            board.facts = board.run({"do": "describe"})
        except BaseException:
            board.close()
            raise
        return board

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the link; a job that runs there, started by another thread, is ended with it."""
        self.closed = True
        if self.link is not None:
            self.link.close()

    def run(
        self, job: Json, inputs: Mapping[str, Path] | None = None, *, out: Path | None = None, step: str = ""
    ) -> Json:
        """Run one job to its end and return its result; its progress and notes are shown.

        Args:
            job: `do` and its parameters, JSON-ready; protocol, holder and heartbeat are added.
            inputs: files the job needs: SHA-256 in hex, and where they are here.
            out: a folder here that takes the job's output files (result key `files`).
            step: what a person would call it, for messages; default `do`.

        Raises:
            LinkLost: the link broke; what was sent and made stays on the board, and the next run goes on with it.
            JobFailed: the agent's error, or its death.
            EdgeError: a file can't be sent or fetched.
            InternalError: a fault of the agent's own.
        """
        step = step or str(job["do"])
        try:
            with self._working(step) as link:
                return self._run(link, job, inputs or {}, out)
        except (LinkLost, Unreachable):
            raise
        except JobFailed as failed:
            raise JobFailed(failed.kind, f"{step} on `{self.host}`: {failed.message}", failed.hint) from failed
        except EdgeError as error:
            raise EdgeError(f"{step} on `{self.host}`: {error.message}", error.hint) from error

    def fetch(self, digest: str, size: int, to: Path) -> None:
        """Bring one of the board's kept files, such as an engine, here; it gets its name once its hash is right.

        Raises:
            EdgeError: see `transfer.fetch`.
        """
        with self._working(f"fetching `{to.name}`") as link:
            to.parent.mkdir(parents=True, exist_ok=True)
            fetch(link, "files", [{"name": digest, "sha256": digest, "size": size}], to.parent)
            (to.parent / digest).replace(to)

    @contextmanager
    def _working(self, step: str) -> Iterator[Link]:
        """The open link, or a new one with the agent in place; it ends with whatever isn't an answer of the board's."""
        try:
            yield self._ready()
        except LinkLost as lost:
            raise self._diagnosed(lost, step) from lost
        except (EdgeError, FileRefused) as error:
            if isinstance(error, BadAnswer) or getattr(error, "kind", "") == "silent":
                self._stop()
            raise
        except BaseException:  # Ctrl-C: nothing keeps running there
            self._stop()
            raise

    def _ready(self) -> Link:
        if self.link is None or not self.link.open:
            self.link = Link(self.host, self.limits, self.config)
            self.boot_id = _boot_id(self.link)
            self._bring_agent(self.link)
        return self.link

    def _stop(self) -> None:
        if self.link is not None:
            self.link.stop()

    def _bring_agent(self, link: Link, *, again: bool = False) -> None:
        """Put the agent where its hash says, unless it is there. It checks its own hash at each start."""
        name = f"agents/{self.agent.sha256}.pyz"
        if again or link.ask("size", name) != [str(len(self.agent.data))]:
            self._write(link, name, self.agent.data, "the agent cannot be written to")

    def _write(self, link: Link, name: str, data: bytes, what: str) -> None:
        """Write something small, at the cost of what is kept where the disk is full."""
        try:
            link.put_new(io.BytesIO(data), name, len(data))
        except FileRefused as error:
            freed = []
            with suppress(FileRefused):
                if free_bytes(link) < SPARE_BYTES:
                    freed = [int(size) for size in link.ask("room", SPARE_BYTES // 1024) if size.isdigit()]
                if freed:
                    dropped = f"{sum(freed) / 1e6:.0f} MB that edgecnn kept there are dropped"
                    progress.current().note(f"the disk of `{self.host}` is full: {dropped}")
                    link.put_new(io.BytesIO(data), name, len(data))
                    return
            raise refused(link, error, what) from error

    def _run(self, link: Link, job: Json, inputs: Mapping[str, Path], out: Path | None) -> Json:
        def once() -> Json:
            if inputs:
                bound = {key: job[key] for key in ("max_bytes",) if key in job}
                send(link, inputs, lambda files: self._agent(link, {"do": "accept", "files": files, **bound}, None))
            return self._agent(link, job, out)

        try:
            return once()
        except JobFailed as failed:
            if failed.kind not in SEND_AGAIN:
                raise
            self._bring_agent(link, again=failed.kind in SEND_AGAIN[2:])
        return once()

    def _agent(self, link: Link, job: Json, out: Path | None) -> Json:
        """Run the agent with a job file, and fetch what it made. A job's folder goes once its result is here."""
        content = {
            "protocol": PROTOCOL, "heartbeat_s": self.limits.heartbeat_s,
            "holder": f"{getpass.getuser()}@{platform.node()}", **job,
        }  # fmt: skip
        text = json.dumps(content, sort_keys=True).encode()
        # The same name for the same score into the same folder: the agent goes on behind the answers that a cut one
        # left in its own. Two tools of one user never share one: the first to end would remove it under the other.
        whose = f"\n{out.resolve() if out else ''}".encode(errors="surrogateescape")
        name = hashlib.sha256(text + whose).hexdigest()[:24] if job["do"] == "score" else secrets.token_hex(12)
        self._write(link, f"jobs/{name}/job.json", text, "the job cannot be written to")
        link.run(self.agent.sha256, name)
        with Answer() as answer:
            code = self._heard(link, answer)
            result = read_reply(str(job["do"]), answer.result(code, self.host))
        link = self._ready()
        if out is not None and result.get("files"):
            fetch(link, f"jobs/{name}/out", result["files"], out)
        with suppress(FileRefused):
            link.ask("drop", name)
        return result

    def _heard(self, link: Link, answer: Answer) -> int | None:
        """Show what the agent says until its end, while it says something; None where only its end failed to come.

        Silence is counted in ticks, not by the clock: a host that was suspended, or too busy to read, blames itself.

        Raises:
            JobFailed: it said nothing for `answer_s`: it hangs, or something else runs in its place.
        """
        heard, silent, beaten, ticked = -1, 0, 0.0, time.monotonic()
        while True:
            if time.monotonic() - beaten >= self.limits.beat_s:
                link.beat()
                beaten = time.monotonic()
            line = link.line(min(TICK_S, self.limits.beat_s))
            if line is not None:
                if (code := ending(line)) is not None:
                    return code
                answer.take(line)
            if time.monotonic() - ticked < TICK_S:
                continue
            silent, heard, ticked = silent + 1 if heard == answer.heard else 0, answer.heard, time.monotonic()
            if answer.last is not None and silent * TICK_S > self.limits.stop_s:
                link.stop()
                return None
            if silent * TICK_S > self.limits.answer_s:
                raise JobFailed(
                    "silent", f"the agent has said nothing for {self.limits.answer_s:g} s",
                    "look at what runs there (`top`): the board may be out of memory, or its python3 hangs; a slow "
                    "board: --link answer_s=120",
                )  # fmt: skip

    def _diagnosed(self, lost: LinkLost, step: str) -> LinkLost:
        """A lost link with what one look at the board tells: it rebooted, is there again, or is gone."""
        if self.link is not None:
            self.link.close()
        cause = f"{step} on `{self.host}`: {lost.message}"
        boot_id = self._look()
        if boot_id is None:
            return LinkLost(f"{cause}; the board does not answer now", lost.hint)
        if self.boot_id and boot_id and boot_id != self.boot_id:
            return LinkLost(
                f"{step} on `{self.host}`: the board rebooted",
                "look at its power supply and temperature; the same command continues where this one stopped",
            )
        return LinkLost(f"{cause}; the board is reachable again", "the same command continues where this one stopped")

    def _look(self) -> str | None:
        """Its boot id now; None where it doesn't answer within `look_s`."""
        until = time.monotonic() + self.limits.look_s
        while (left := until - time.monotonic()) > 0:
            with suppress(EdgeError):  # it may be starting
                link = Link(self.host, replace(self.limits, connect_s=left), self.config)
                try:
                    return _boot_id(link)
                finally:
                    link.close()
            time.sleep(0.2)
        return None


def _boot_id(link: Link) -> str:
    """Another one after every start of the board; '' where it isn't told."""
    try:
        return "".join(link.ask("boot")).strip()[:64]
    except FileRefused:
        return ""
