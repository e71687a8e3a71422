"""What a report says of boards: which ones, in which power mode and at which clocks, what an inference costs there."""

from __future__ import annotations

from collections.abc import Iterator

from edgecnn.records import ClockPart, ScoreFile, SpeedFile
from edgecnn.report import Figure

SHOWN_ZONES = ("tj", "gpu", "cpu")  # the first that a board has: the hottest point, else what works


def board_text(speed: SpeedFile) -> str:
    """The board that was timed, and the state it was in; empty for this machine."""
    if not speed.board:
        return ""
    clocks = (("GPU", speed.gpu_mhz), ("EMC", speed.emc_mhz), ("CPU", speed.cpu_mhz))
    parts = [
        f"board {speed.board}",
        f"power mode {speed.power_mode}" if speed.power_mode else "",
        "clocks locked" if speed.clocks_locked else "clocks not locked",
        *(_clock_text(name, clock) for name, clock in clocks if clock),
        _heat_text(speed),
    ]
    return " · ".join(part for part in parts if part)


def _clock_text(name: str, clock: ClockPart) -> str:
    moved = clock.max - clock.min > 0.01 * clock.max
    return f"{name} {clock.median:.0f} MHz{f' ({clock.min:.0f} to {clock.max:.0f})' if moved else ''}"


def _heat_text(speed: SpeedFile) -> str:
    zone = next((zone for zone in SHOWN_ZONES if zone in speed.temperature_c), None)
    if zone is None:
        return ""
    heat = speed.temperature_c[zone]
    return f"{zone} {heat.start:.0f} to {heat.max:.0f} °C"


def boards_text(scored: ScoreFile, speed: SpeedFile) -> str:
    """Every board that took part, with what it did: `orin-a: 300 images, INT8 p50 1.204 ms; orin-b: …`."""
    parts = []
    for host in dict.fromkeys([*scored.boards, *speed.boards]):
        did = []
        if host in scored.boards:
            did.append(f"{scored.boards[host]:,} images")
        if host in speed.boards:
            timed = speed.boards[host]
            invalid = "" if timed.valid else f" (invalid: {timed.invalid_why})"
            did.append(f"INT8 p50 {timed.int8['p50_ms']:.3f} ms{invalid}")
        parts.append(f"{host}: {', '.join(did)}")
    return "; ".join(parts)


def board_notes(speed: SpeedFile) -> Iterator[str]:
    """What a reader of a board's figures must know beside them."""
    if not speed.valid:
        yield f"the timing is invalid: {speed.invalid_why}"
    if speed.gpu_users:
        names = ", ".join(sorted({str(user.get("name", "?")) for user in speed.gpu_users}))
        yield f"other processes had the board's GPU open while it was timed: {names}"
    if len(speed.boards) > 1:
        yield f"of {len(speed.boards)} boards timed, the figures are those of the slowest, {speed.board}"


def board_figures(speed: SpeedFile, float_name: str, conditions: str) -> Iterator[Figure]:
    """Times with transfers and end to end, and energy, where a board told them."""
    models = (("float", float_name, "first"), ("int8", "INT8", "second"))
    for kind, words, times in (("io", "with transfers", speed.io_ms), ("e2e", "from image to output", speed.e2e_ms)):
        for key, title, part in models:
            if part in times:
                yield Figure(
                    name=f"{key}_{kind}_p50_ms", title=f"{title} p50 {words}", group="latency",
                    value=times[part]["p50_ms"], unit="ms", conditions=f"host's clock around the call · {conditions}",
                )  # fmt: skip
    for key, title, part in models:
        if (energy := speed.energy_mj.get(part)) is not None:
            yield Figure(
                name=f"{key}_energy_mj", title=f"{title} energy per inference", group="latency", value=energy,
                unit="mJ", conditions=f"whole module, above idle · {conditions}",
            )  # fmt: skip
