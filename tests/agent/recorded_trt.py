"""In place of `edgecnn.backends.tensorrt.trt` on a stand-in board: TensorRT 10.3 as recorded, with no GPU.

An engine is the graph behind a header that names version, GPU and power mode; it is refused by another version, as the
real one is. Its answers are the float simulation's; its times are played back: slept, so many ms for a float graph, so
many for one with Q/DQ. Each build is written down beside the timing cache.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from edgecnn.backends import Arrays, TensorInfo, ort
from edgecnn.process.errors import EdgeError

Name = Literal["tensorrt", "tensorrt-rtx"]
MAX_BATCH = 64
TITLES: dict[Name, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
FLOAT_MS, INT8_MS = 2.0, 1.2
HEADER = b"recorded plan of TensorRT "


def recorded_version() -> str:
    return os.environ.get("RECORDED_TENSORRT", "10.3.0")


def installed(name: Name) -> str | None:
    return recorded_version() if name == "tensorrt" else None


class TensorRT:
    def __init__(self, name: Name) -> None:
        if installed(name) is None:
            raise EdgeError(f"{TITLES[name]} is not usable here: it was not recorded")

    def version(self) -> str:
        return f"TensorRT {recorded_version()}"

    def build(
        self, model: Path, engine: Path, *, compute_capability: str | None, timing_cache: Path | None = None
    ) -> dict[str, Any]:
        assert compute_capability is None
        start = time.monotonic()
        ort.load(model, simulate=True, providers=ort.CPU)  # refused here where onnxruntime refuses it
        time.sleep(float(os.environ.get("RECORDED_BUILD_SECONDS", "0")))
        engine.write_bytes(HEADER + recorded_version().encode() + b"\n" + model.read_bytes())
        if timing_cache is not None:
            with timing_cache.open("a") as timings:
                timings.write("built\n")
        return {"version": self.version(), "layers": 1, "seconds": time.monotonic() - start}

    def load(self, model: Path, *, threads: int = 1, simulate: bool = False, tensors: tuple[str, ...] = ()) -> Recorded:
        header, _, graph = model.read_bytes().partition(b"\n")
        if header != HEADER + recorded_version().encode():
            raise EdgeError(
                f"{self.version()} cannot load `{model.name}`: it is no plan of this version",
                "an engine runs only on the GPU and TensorRT version it was built for, and needs a GPU to be loaded",
            )
        return Recorded(self.version(), graph)


class Recorded:
    """A Runner."""

    def __init__(self, version: str, graph: bytes) -> None:
        import tempfile

        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            file.write(graph)
            file.flush()
            self.runner = ort.load(Path(file.name), simulate=True, providers=ort.CPU)
        self.how = f"{version} engine, CUDA graph off"
        self.seconds = (INT8_MS if b"QuantizeLinear" in graph else FLOAT_MS) / 1000

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        return self.runner.inputs

    def __call__(self, feeds: Mapping[str, Any]) -> Arrays:
        return self.runner(feeds)

    def prepared(self, feeds: Mapping[str, Any]) -> Callable[[], None]:
        return lambda: time.sleep(self.seconds)
