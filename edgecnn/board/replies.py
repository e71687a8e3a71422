"""What a board may answer: the one place where its words become values, each of a known type, size and range.

A board's agent is ours, but its Python, its disk and whoever has its login are not. What doesn't fit is refused as
BadAnswer; text is made printable, since names of devices, power modes and processes end up on a terminal.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from edgecnn.process.errors import EdgeError, printable

Json = dict[str, Any]
STARTS = 8  # places of a line where a message may begin: behind a login shell's banner
MOST, MOST_TEXT = 1 << 53, 8000

R = TypeVar("R", bound=BaseModel)


def _one_line(text: str) -> str:
    """A name goes into messages, tables and the comments of a device file."""
    return printable(text).replace("\n", "\\n")


def _excerpt(text: str) -> str:
    """Words for a person: a log may be longer than anybody reads."""
    return printable(text if len(text) <= MOST_TEXT else f"{text[: MOST_TEXT // 2]}\n…\n{text[-MOST_TEXT // 2 :]}")


Text = Annotated[str, AfterValidator(_excerpt)]
Name = Annotated[str, Field(max_length=1000), AfterValidator(_one_line)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern="^[0-9A-Za-z_-][0-9A-Za-z._-]{0,99}$")]  # one that a board may make here
Count = Annotated[int, Field(ge=0, le=MOST)]
Amount = Annotated[float, Field(ge=0, le=MOST)]
Figure = Annotated[float, Field(ge=-MOST, le=MOST)]


class JobFailed(EdgeError):
    """The board is there and said no. `kind`: the agent's one word for why, as `lock`, `killed`, `disk-full`."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.kind = kind


class BadAnswer(JobFailed):
    """The board said something that our agent doesn't say."""

    def __init__(self, what: str) -> None:
        super().__init__(
            "bad-answer", f"the board's answer is not one of our agent's: {what}",
            "run it again; if it stays, what prints into the login's output, its python3 or its disk is at fault",
        )  # fmt: skip


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Line(_Reply):
    """One line while a job runs, or its last one. Other keys of a last word are in `result`."""

    model_config = ConfigDict(extra="ignore")

    task: Name | None = None
    done: Figure | None = None
    total: Figure | None = None
    text: Name = ""
    note: Text | None = None
    alive: Count | None = None
    result: dict[str, Any] | None = None
    error: Text | None = None
    hint: Text = ""
    kind: Annotated[str, Field(pattern="^[a-z-]{1,40}$")] = "failed"


class GpuReply(_Reply):
    """The board's first GPU; a Jetson's has no memory of its own."""

    name: Name
    compute_capability: Annotated[str, Field(pattern=r"^(\d{1,3}\.\d{1,3})?$")]
    driver: Name
    memory_mb: Count | None


class UserReply(_Reply):
    """A process that uses the GPU."""

    pid: Count
    name: Name


class DescribeReply(_Reply):
    """See `agent.describe`."""

    agent: Name
    protocol: Count
    python: Name
    numpy: Name
    machine: Name
    hostname: Name
    board: Name
    l4t: Name
    jetpack: Name
    cpu: Name
    vnni: bool | None
    cores: Count
    memory_mb: Count
    free_memory_mb: Count
    disk_free_mb: Count
    boot_id: Name
    clock: Figure
    backends: dict[Name, Name]
    gpu: GpuReply | None
    power_mode: Name
    power_modes: Annotated[list[Name], Field(max_length=100)]
    clocks_locked: bool
    governor: Name
    temperature_c: dict[Name, Figure]
    power_rails: Annotated[list[Name], Field(max_length=100)]
    gpu_users: list[UserReply]
    load_average: Figure


class AcceptReply(_Reply):
    """See `agent.files.accept`."""

    accepted: list[Digest]
    refused: list[Digest]
    have: list[Digest]
    partial: dict[Digest, Count]
    free_bytes: Count


class CleanReply(_Reply):
    """See `agent.files.clean`."""

    dropped: Count
    freed_bytes: Count
    kept_bytes: Count


class CompileReply(_Reply):
    """See `agent.compiling`."""

    engine: Digest | None
    size: Count
    seconds: Amount
    cached: bool
    version: Name


class FileReply(_Reply):
    """A file of a job's `out/` folder: two of these become paths here, one a length."""

    name: FileName
    sha256: Digest
    size: Count
    rows: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None


def _distinct(files: list[FileReply]) -> list[FileReply]:
    if len({file.name for file in files}) < len(files):
        raise ValueError("a name appears twice")
    return files


class _WithFiles(_Reply):
    files: Annotated[list[FileReply], Field(min_length=1, max_length=100_000), AfterValidator(_distinct)]


class ScoreReply(_WithFiles):
    """See `agent.scoring`."""

    how: Name
    seconds: Amount
    images: Count


class ClockReply(_Reply):
    """MHz."""

    min: Amount
    median: Amount
    max: Amount


class HeatReply(_Reply):
    """°C."""

    start: Figure
    max: Figure


class PowerReply(_Reply):
    """What the keeper set."""

    was: Name
    set: Name
    clocks_locked: bool


class ConditionsReply(_Reply):
    """What pairs were timed under; see `agent.timing`, `agent.monitor` and `bench`."""

    when: Name
    warmup_ms: Count
    batch: Count
    threads: Count | None
    load_average: Figure
    governor: Name
    frequency_mhz: Amount | None
    clocks_locked: bool
    p99_valid: bool
    p99_invalid_why: Text
    pairs: Count
    seconds: Amount
    timer: Name
    sampled_hz: Amount
    gpu_mhz: ClockReply | None
    emc_mhz: ClockReply | None
    cpu_mhz: ClockReply | None
    temperature_c: dict[Name, HeatReply]
    rails_mw: dict[Name, Figure]
    idle_mw: Figure | None
    energy_mj: dict[Name, Figure | None]
    throttled: bool
    throttled_why: Text
    how: dict[Name, Name]
    gpu_users: list[UserReply]
    watched: bool
    backend: Name
    profile: Name
    valid: bool
    invalid_why: Text
    power_mode: Name
    power: PowerReply | dict[str, None]


class TimeReply(_WithFiles):
    """See `agent.timing`; `restored` where a power mode or clocks were set."""

    conditions: ConditionsReply
    restored: bool | None = None


REPLIES: dict[str, type[_Reply]] = {
    "describe": DescribeReply, "accept": AcceptReply, "clean": CleanReply, "compile": CompileReply,
    "score": ScoreReply, "time": TimeReply,
}  # fmt: skip
OURS = frozenset(Line.model_fields) - {"done", "total", "text", "hint", "kind"}


def read_line(line: bytes) -> Line | None:
    """The agent's message that ends a line of its output; None where there is none: a banner, a library's print.

    Raises:
        BadAnswer: a message with another type or number in it.
    """
    start = line.find(b'{"')
    for _ in range(STARTS):
        if start < 0:
            break
        try:
            content = json.loads(line[start:].decode(), object_pairs_hook=_pairs, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            start = line.find(b'{"', start + 1)
        else:
            return _parsed(Line, content, "") if OURS & content.keys() else None
    return None


def read_reply(do: str, result: Json) -> Json:
    """The result of a job, checked and printable; JSON-ready.

    Args:
        do: the job's name.

    Raises:
        BadAnswer: a part is missing, unknown, or of another type or range.
    """
    return _parsed(REPLIES[do], result, f"{do}: ").model_dump(mode="json", exclude_unset=True)


def _parsed(kind: type[R], content: Json, where: str) -> R:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = printable(".".join(str(part)[:60] for part in first["loc"]))
        raise BadAnswer(f"{where}`{place}`: {first['msg']}, not {repr(first['input'])[:80]}") from None
    except RecursionError:
        raise BadAnswer(f"{where}nested too deep") from None


def _pairs(pairs: list[tuple[str, Any]]) -> Json:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise BadAnswer("a key appears twice in one of its objects")
    return content


def _refuse_constant(name: str) -> float:
    raise BadAnswer(f"{name} in place of a number")
