"""The only room where inference engines live. A backend is one file here and one `case` in `load_backend`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

BackendName = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
Arrays = dict[str, Any]  # tensor name → numpy array


@dataclass(frozen=True)
class TensorInfo:
    """One input: its name, numpy dtype name, and shape with None for a dimension that is free."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Runner(Protocol):
    """A loaded model."""

    @property
    def how(self) -> str:
        """What computes, for reports: `onnxruntime 1.32.0 CPU kernels, 1 thread`."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs in the model's order."""

    def __call__(self, feeds: Mapping[str, Any]) -> Arrays:
        """Run once: arrays by input name → arrays by output name (and by the named tensors asked of `load`)."""

    def prepared(self, feeds: Mapping[str, Any]) -> Callable[[], float | None]:
        """A call that runs the engine alone on these inputs, already in its memory, and returns when it is done.

        It answers with the milliseconds by the device's own clock; None: the caller's clock is right.
        """


class Backend(Protocol):
    """What loads models: a module or an object with these two functions. Used inside a child process only."""

    def version(self) -> str:
        """Name and version, as `onnxruntime 1.32.0`."""

    def load(self, model: Path, *, threads: int = 1, simulate: bool = False, tensors: tuple[str, ...] = ()) -> Runner:
        """Load an ONNX file or an engine.

        Args:
            model: the file.
            threads: intra-op threads of a CPU engine.
            simulate: evaluate the graph node by node in float, without the engine's INT8 kernels.
            tensors: intermediate tensors to return beside the outputs.

        Raises:
            EdgeError: the file can't be loaded here, or the backend can't do what is asked.
        """


def load_backend(name: BackendName) -> Backend:
    """The backend of this name.

    Raises:
        EdgeError: its package is not installed.
    """
    match name:
        case "onnxruntime":
            from edgecnn.backends import ort

            return ort.OnnxRuntime()
        case "openvino":
            from edgecnn.backends import openvino

            return openvino.OpenVino()
        case "tensorrt" | "tensorrt-rtx":
            from edgecnn.backends.tensorrt import trt

            return trt.TensorRT(name)
