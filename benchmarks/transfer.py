"""Bring a file to a board and back, beside scp and rsync, over the same sshd; then cut it at half, and resume.

    python benchmarks/transfer.py [--megabytes 1000] [--rounds 2]

The sshd is started here, on 127.0.0.1. Rounds alternate, so that all meet the same noise; every figure is a median.
Ends with code 1 when sending is below 0.6 of scp and below 90 MB/s, or when more than 10 % are sent twice.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "board"))
from programs import why_missing
from proxy import between
from sshd import Sshd, running

from edgecnn.agent.pack import pack_agent
from edgecnn.board.jobs import Board
from edgecnn.board.limits import LinkLimits
from edgecnn.board.link import LinkLost


def seconds_of(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def make(path: Path, megabytes: int) -> str:
    """A file of random bytes; its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(megabytes):
            block = os.urandom(1_000_000)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def send(board: Board, digest: str, path: Path) -> None:
    answer = board.run({"do": "accept", "files": [{"sha256": digest, "size": path.stat().st_size}]}, {digest: path})
    assert answer["have"] == [digest]


def rates(server: Sshd, folder: Path, path: Path, digest: str, rounds: int) -> dict[str, list[float]]:
    """MB/s by way, one a round."""
    size = path.stat().st_size / 1e6
    ssh = f"ssh -F {shlex.quote(str(server.config))}"
    found: dict[str, list[float]] = {}
    with Board.connect("board", agent=pack_agent(), config=server.config) as board:
        for _ in range(rounds):
            ways: dict[str, Callable[[], object]] = {
                "scp": lambda: subprocess.run(
                    ["scp", "-q", "-F", str(server.config), str(path), "board:by-scp"], check=True
                ),
                "rsync": lambda: subprocess.run(
                    ["rsync", "--partial", "--append-verify", "-e", ssh, str(path), "board:by-rsync"], check=True
                ),
                "edgecnn, checked": lambda: send(board, digest, path),
                "edgecnn, back": lambda: board.fetch(digest, path.stat().st_size, folder / "back"),
            }
            for name, way in ways.items():
                found.setdefault(name, []).append(size / seconds_of(way))
            (folder / "back").unlink()
            for file in (server.home / "by-scp", server.home / "by-rsync", server.cache / "files" / digest):
                file.unlink()
    return found


def cut_and_resume(server: Sshd, path: Path, digest: str) -> tuple[float, float]:
    """(share sent before the cut, share sent after it) of a transfer that is cut at half."""
    size = path.stat().st_size
    with between(server.port) as link:
        server.write_config(port=link.port)
        limits = LinkLimits(silence_s=2.0, look_s=1.0)
        with Board.connect("board", agent=pack_agent(), limits=limits, config=server.config) as board:
            before = link.up
            link.faults.cut_after = before + size // 2
            try:
                send(board, digest, path)
            except LinkLost as error:
                print(f"cut: {error.message}")
            first = link.up - before
            link.heal()
            before = link.up
            send(board, digest, path)
            return first / size, (link.up - before) / size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if why := why_missing("sshd", "ssh", "scp", "rsync"):
        sys.exit(why)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server is ended, the folder removed
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, loopback"
    )
    with tempfile.TemporaryDirectory() as name, running(Path(name) / "board") as server:
        path = Path(name) / "file"
        digest = make(path, options.megabytes)
        found = rates(server, Path(name), path, digest, options.rounds)
        medians = {way: statistics.median(values) for way, values in found.items()}
        for way, values in found.items():
            listed = " ".join(f"{value:.0f}" for value in values)
            print(f"{way:<18} {medians[way]:5.0f} MB/s, {medians[way] / medians['scp']:.2f} of scp   ({listed})")
        first, second = cut_and_resume(server, path, digest)
        twice = first + second - 1
        print(f"cut at half: {first:.1%} sent before, {second:.1%} after: {twice:.1%} sent twice")
    sending = medians["edgecnn, checked"]
    if (sending < 0.6 * medians["scp"] and sending < 90) or twice > 0.1:
        sys.exit(1)


if __name__ == "__main__":
    main()
