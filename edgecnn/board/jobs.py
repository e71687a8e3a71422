"""A board: its link, our agent on it, and jobs that run under the agent's guard. Synchronous outside, asyncio inside.

The remote command line is a constant and a job id. Parameters travel in a job file; stdin carries nothing but the
heartbeat, without which the board ends the job by itself.
"""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import json
import os
import platform
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecnn.board.answer import Answer
from edgecnn.board.background import Background
from edgecnn.board.limits import LinkLimits
from edgecnn.board.replies import JobFailed, read_reply
from edgecnn.board.shell import ROOT, Exit, FileRefused, Files, LinkLost, Shell, Unreachable
from edgecnn.board.transfer import FILES, Accept, fetch, make_room, refused, remove_tree, send
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError

if TYPE_CHECKING:
    from edgecnn.agent.pack import Agent

PROTOCOL = 1
CONFIG_VARIABLE = "EDGECNN_SSH_CONFIG"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
# Answers after which sending again and running again is the remedy; the last three, the agent itself.
SEND_AGAIN = ("absent", "damaged", "agent-absent", "agent-damaged", "no-answer")
TICK_S = 0.5  # between two looks at whether the agent says anything
Json = dict[str, Any]


class Board:
    """A board with our agent on it, its link and a thread of its own. For one caller at a time; any may close it."""

    def __init__(self, host: str, agent: Agent, limits: LinkLimits, config: Path | None) -> None:
        """Use `connect`."""
        self.host, self.agent, self.limits, self.config = host, agent, limits, config
        self.background = Background(limits.stop_s + 1.0)
        self.shell: Shell | None = None
        self.facts: Json = {}
        self.boot_id = ""
        self.closed = False

    @classmethod
    def connect(cls, host: str, *, agent: Agent, limits: LinkLimits | None = None, config: Path | None = None) -> Board:
        """Log in, bring the agent, and ask the board what it is (`facts`, the agent's `describe`).

        Args:
            host: `[user@]host[:port]`, or an alias of the OpenSSH configuration.
            agent: what to run there; sent when it isn't there.
            limits: default those of the environment.
            config: an OpenSSH client configuration; default EDGECNN_SSH_CONFIG, else the user's own.

        Raises:
            Unreachable: no session; LinkLost: it broke off; JobFailed: the board lacks something; each with the fix.
        """
        if config is None and os.environ.get(CONFIG_VARIABLE):
            config = Path(os.environ[CONFIG_VARIABLE])
        board = cls(host, agent, limits or LinkLimits.read(), config)
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
        """End the link; a job that runs there, started by another thread, is ended first."""
        if self.closed:
            return
        self.closed = True
        self.background.cancel()
        shell, self.shell = self.shell, None
        if shell is not None:
            self.background.call(shell.close())
        self.background.close()

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
        """
        step = step or str(job["do"])
        try:
            return self.background.call(self._run(job, inputs or {}, out))
        except LinkLost as lost:
            raise self._diagnosed(lost, step) from lost
        except Unreachable:
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

        async def work() -> None:
            files = (await self._ready()).files
            to.parent.mkdir(parents=True, exist_ok=True)
            await fetch(files, self.host, FILES, [{"name": digest, "sha256": digest, "size": size}], to.parent)
            (to.parent / digest).replace(to)

        try:
            self.background.call(work())
        except LinkLost as lost:
            raise self._diagnosed(lost, f"fetching `{to.name}`") from lost

    # --- inside the thread ---

    async def _ready(self) -> Shell:
        """The open session, or a new one with the agent in place. One that was lost while idle is opened again."""
        if self.shell is None or not self.shell.open:
            self.shell = await self._open()
            self.boot_id = await _boot_id(self.shell)
            await self._bring_agent(self.shell)
        return self.shell

    async def _open(self) -> Shell:
        from edgecnn.board.ssh import connect

        return await connect(self.host, self.limits, self.config)

    async def _bring_agent(self, shell: Shell, *, again: bool = False) -> None:
        """Put the agent where its hash says, unless it is there. It checks its own hash at each start."""
        files, home = shell.files, f"{ROOT}/agents"
        name = f"{home}/{self.agent.sha256}.pyz"

        async def write() -> None:
            if again or await files.size(name) != len(self.agent.data):
                for folder in (".cache", ROOT, home, FILES, f"{ROOT}/jobs"):
                    await files.make_folder(folder)
                part = f"{home}/{self.agent.sha256}.{secrets.token_hex(4)}.part"
                await files.put_bytes(self.agent.data, part)
                await files.rename(part, name)

        await self._written(files, write, "the agent cannot be written to")

    async def _written(self, files: Files, write: Callable[[], Awaitable[None]], what: str) -> None:
        """Write something small, at the cost of what is kept where the disk is full."""
        try:
            await write()
        except FileRefused as error:
            with suppress(FileRefused):
                if freed := await make_room(files):
                    note = (
                        f"the disk of `{self.host}` is full: {freed / 1e6:.0f} MB that edgecnn kept there are dropped"
                    )
                    progress.current().note(note)
                    await write()
                    return
            raise await refused(files, self.host, error, what) from error

    async def _run(self, job: Json, inputs: Mapping[str, Path], out: Path | None) -> Json:
        shell = await self._ready()
        try:
            return await self._sent_and_run(shell, job, inputs, out)
        except JobFailed as failed:
            if failed.kind not in SEND_AGAIN:
                raise
            await self._bring_agent(shell, again=failed.kind in SEND_AGAIN[2:])
        return await self._sent_and_run(shell, job, inputs, out)

    async def _sent_and_run(self, shell: Shell, job: Json, inputs: Mapping[str, Path], out: Path | None) -> Json:
        try:
            if inputs:
                await send(shell.files, self.host, inputs, self._accept(shell, job))
            return await self._agent(shell, job, out)
        except FileRefused as error:
            raise await refused(shell.files, self.host, error, "its files cannot be used on") from error

    def _accept(self, shell: Shell, job: Json) -> Accept:
        bound = {key: job[key] for key in ("max_bytes",) if key in job}

        async def accept(files: list[Json]) -> Json:
            return await self._agent(shell, {"do": "accept", "files": files, **bound}, None)

        return accept

    async def _agent(self, shell: Shell, job: Json, out: Path | None) -> Json:
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
        folder = f"{ROOT}/jobs/{name}"

        async def write() -> None:
            await shell.files.make_folder(folder)
            await shell.files.put_bytes(text, f"{folder}/job.json")

        await self._written(shell.files, write, "the job cannot be written to")
        command = f"python3 -u {ROOT}/agents/{self.agent.sha256}.pyz {name}"
        with Answer() as answer:
            run = shell.run(command, beat_s=self.limits.beat_s, on_line=answer.take)
            result = read_reply(str(job["do"]), answer.result(await self._heard(run, answer), self.host))
        if out is not None and result.get("files"):
            await fetch(shell.files, self.host, f"{folder}/out", result["files"], out)
        await remove_tree(shell.files, folder, ("out",))
        return result

    async def _heard(self, run: Coroutine[Any, Any, Exit], answer: Answer) -> Exit | None:
        """Wait for the agent's end as long as it says something; None where only its end failed to come.

        Silence is counted in ticks of this loop, not by the clock: see `Life.watch`.

        Raises:
            JobFailed: it said nothing for `answer_s`: it hangs, or something else runs in its place.
        """
        work = asyncio.ensure_future(run)
        heard, silent = -1, 0
        try:
            while not (await asyncio.wait({work}, timeout=TICK_S))[0]:
                silent = silent + 1 if heard == answer.heard else 0
                heard = answer.heard
                if answer.last is not None and silent * TICK_S > self.limits.stop_s:
                    return None
                if silent * TICK_S > self.limits.answer_s:
                    raise JobFailed(
                        "silent", f"the agent has said nothing for {self.limits.answer_s:g} s",
                        "look at what runs there (`top`): the board may be out of memory, or its python3 hangs; a slow "
                        "board: --link answer_s=120",
                    )  # fmt: skip
            return work.result()
        finally:
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)

    def _diagnosed(self, lost: LinkLost, step: str) -> LinkLost:
        """A lost link with what one look at the board tells: it rebooted, is there again, or is gone."""
        if self.closed:
            return lost
        old, self.shell = self.shell, None
        before = self.boot_id

        async def look() -> str:
            if old is not None:
                await old.close()
            while True:
                with suppress(Unreachable):  # it may be starting
                    shell = await self._open()
                    try:
                        return await _boot_id(shell)
                    finally:
                        await shell.close()
                await asyncio.sleep(0.2)

        cause = f"{step} on `{self.host}`: {lost.message}"
        try:
            boot_id = self.background.call(asyncio.wait_for(look(), self.limits.look_s))
        except (EdgeError, asyncio.TimeoutError):
            return LinkLost(f"{cause}; the board does not answer now", lost.hint)
        if before and boot_id and boot_id != before:
            return LinkLost(
                f"{step} on `{self.host}`: the board rebooted",
                "look at its power supply and temperature; the same command continues where this one stopped",
            )
        return LinkLost(f"{cause}; the board answers again now", "the same command continues where this one stopped")


async def _boot_id(shell: Shell) -> str:
    """Another one after every start of the board; '' where it isn't told."""
    try:
        return (await shell.files.get_bytes(BOOT_ID, 64)).decode(errors="replace").strip()
    except FileRefused:
        return ""
