"""OpenVINO: the fast INT8 engine of x86 CPUs. It reads the Q/DQ graph itself and fuses it for the CPU it finds.

What is float in the graph is computed in FP32, also where the CPU could do it in BF16: the precision of every tensor is
what the graph says, as on every other device, and the FP32 model is what INT8 is compared with.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgecnn.backends import Arrays, TensorInfo
from edgecnn.process.errors import EdgeError
from edgecnn.process.versions import install_command, installed_version

INSTALL = install_command("openvino")
_COMPILED = 2  # input shapes kept compiled: scoring has two, a full batch and the last one
_Shapes = tuple[tuple[int, ...], ...]


def installed() -> str | None:
    """The installed version, as `2026.4.1`, or None. Reads package metadata only."""
    version = installed_version("openvino")
    return None if version == "absent" else version


def version() -> str:
    """`OpenVINO 2026.4.1`, or `OpenVINO not installed`."""
    return f"OpenVINO {installed() or 'not installed'}"


class OpenVino:
    """The Backend on the CPU.

    Raises:
        EdgeError: the module is not installed, or its native library doesn't load.
    """

    def __init__(self) -> None:
        try:
            import openvino
        except (ImportError, OSError) as error:
            raise EdgeError(f"OpenVINO is not usable here: {error}", INSTALL) from error
        self.openvino: Any = openvino

    def version(self) -> str:
        """`OpenVINO 2026.4.1`."""
        return version()

    def load(
        self, model: Path, *, threads: int = 1, simulate: bool = False, tensors: tuple[str, ...] = ()
    ) -> OpenVinoRunner:
        """See Backend.load. It doesn't simulate: it fuses Q/DQ into INT8 kernels wherever it has them."""
        if simulate:
            raise EdgeError("OpenVINO runs INT8 kernels; the float simulation is onnxruntime's")
        core = self.openvino.Core()
        try:
            network = core.read_model(str(model))
        except Exception as error:  # RuntimeError and its own kinds
            raise _refused(model, error) from error
        for name in tensors:
            try:
                network.add_outputs(name)
            except Exception as error:
                raise EdgeError(f"`{model}` has no tensor `{name}`") from error
        runner = OpenVinoRunner(self.openvino, core, network, _output_names(model) + tensors, threads, model)
        runner.check()
        return runner


class OpenVinoRunner:
    """A network, compiled for each shape of inputs that it is given: fixed shapes have the faster kernels."""

    def __init__(
        self, openvino: Any, core: Any, network: Any, outputs: tuple[str, ...], threads: int, model: Path
    ) -> None:
        self._openvino, self._core, self._network, self._model = openvino, core, network, model
        self._threads, self._compiled = threads, dict[_Shapes, Any]()
        self.outputs = outputs
        self.how = f"{version()} CPU kernels, {threads} thread{'s' if threads != 1 else ''}"
        self.inputs = tuple(
            TensorInfo(one.get_any_name(), _dtype(one), tuple(_sizes(one.get_partial_shape())))
            for one in network.inputs
        )

    def __call__(self, feeds: Mapping[str, Any]) -> Arrays:
        """See Runner."""
        request = self._request(feeds)
        request.infer()
        return {name: request.get_output_tensor(index).data.copy() for index, name in enumerate(self.outputs)}

    def prepared(self, feeds: Mapping[str, Any]) -> Callable[[], None]:
        """See Runner. Inputs lie in the request's own tensors, so that no copy is in the time."""
        request = self._request(feeds)
        infer = request.infer

        def run() -> None:
            infer(share_outputs=True)  # else it copies them

        return run

    def check(self) -> None:
        """Compile once, with 1 for every free size, so that a graph without kernels is refused when it is loaded."""
        self.compiled(tuple(tuple(size or 1 for size in one.shape) for one in self.inputs))

    def _request(self, feeds: Mapping[str, Any]) -> Any:
        import numpy as np

        for one in self.inputs:
            if one.name not in feeds:
                raise EdgeError(f"`{self._model}` needs the input `{one.name}`, which was not given")
        arrays = [np.ascontiguousarray(feeds[one.name], np.dtype(one.dtype)) for one in self.inputs]
        request = self.compiled(tuple(array.shape for array in arrays)).create_infer_request()
        for index, array in enumerate(arrays):
            request.get_input_tensor(index).data[...] = array
        return request

    def compiled(self, shapes: _Shapes) -> Any:
        """OpenVINO's compiled model for these input shapes."""
        if shapes not in self._compiled:
            settings = {
                "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(self._threads),
                "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": "NO",  # the caller's own affinity holds
            }  # fmt: skip
            try:
                network = self._network.clone()
                network.reshape({index: self._openvino.PartialShape(list(shape)) for index, shape in enumerate(shapes)})
                with _own_signal_stack():
                    compiled = self._core.compile_model(network, "CPU", settings)
            except Exception as error:
                raise _refused(self._model, error) from error
            while len(self._compiled) >= _COMPILED:
                del self._compiled[next(iter(self._compiled))]
            self._compiled[shapes] = compiled
        return self._compiled[shapes]


@contextlib.contextmanager
def _own_signal_stack() -> Iterator[None]:
    """Set this thread's alternate signal stack back to what it was.

    OpenVINO sets one of its own when it compiles a model and, when the model goes, sets back the one that it had found.
    Where the older of two goes first, that is a stack that is no longer there, and the next signal that Python handles,
    Ctrl-C or a child's end, kills the process (seen with 2026.4). With this, each finds the one from before OpenVINO.
    """
    if sys.platform != "linux":
        yield
        return
    import ctypes

    class Stack(ctypes.Structure):
        """Linux' stack_t."""

        _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    libc, found = ctypes.CDLL(None), Stack()
    libc.sigaltstack(None, ctypes.byref(found))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(found), None)


def _output_names(model: Path) -> tuple[str, ...]:
    """The graph's output names in order; OpenVINO merges names of tensors that it finds to be one."""
    import onnx

    return tuple(one.name for one in onnx.load(str(model), load_external_data=False).graph.output)


def _sizes(shape: Any) -> list[int | None]:
    return [size.get_length() if size.is_static else None for size in shape]


def _dtype(port: Any) -> str:
    import numpy as np

    return str(np.dtype(port.get_element_type().to_dtype()).name)


def _refused(model: Path, error: Exception) -> EdgeError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # It names its own source files first; the last lines say what is wrong.
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return EdgeError(
        f"{version()} cannot load `{model}`: {(said or lines or [type(error).__name__])[-1]}",
        "check the file with `python -m onnx.checker`; what OpenVINO lacks may run under onnxruntime: device cpu-x86",
    )
