"""A stand-in for backends/trt.py, packed into the agent: its "engine" is made of the graph's bytes, slowly, in pieces.

It takes EDGECNN_TEST_BUILD_S seconds (default 0), and writes each piece when it has it, so that a build which is
broken off leaves half a file.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

MAX_BATCH = 64
TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
PIECES = 40


def installed(name: str) -> str | None:
    return "10.3.0" if name == "tensorrt" else None


class TensorRT:
    def __init__(self, name: str) -> None:
        self.name = name

    def version(self) -> str:
        return "TensorRT 10.3.0"

    def build(
        self, model: Path, engine: Path, *, compute_capability: str | None, timing_cache: Path | None = None
    ) -> dict[str, Any]:
        seconds = float(os.environ.get("EDGECNN_TEST_BUILD_S", "0"))
        seed = hashlib.sha256(model.read_bytes()).digest()
        with engine.open("wb") as file:
            for piece in range(PIECES):
                file.write(hashlib.shake_256(seed + bytes([piece])).digest(25_000))
                file.flush()
                time.sleep(seconds / PIECES)
        return {"version": self.version(), "seconds": seconds}
