"""onnxruntime: the reference, the CPU engine, and the float simulation of Q/DQ graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgecnn.backends import Arrays, TensorInfo
from edgecnn.process.errors import EdgeError

CPU = ("CPUExecutionProvider",)


def version() -> str:
    """`onnxruntime 1.32.0`, read from the package's metadata; the library is not loaded."""
    from edgecnn.process.versions import installed_version

    # One module comes in two packages; the GPU one is told apart because it computes with other kernels.
    gpu = installed_version("onnxruntime-gpu")
    return f"onnxruntime-gpu {gpu}" if gpu != "absent" else f"onnxruntime {installed_version('onnxruntime')}"


def default_providers() -> tuple[Any, ...]:
    """CUDA first where onnxruntime-gpu offers it, in full FP32 (no TF32), else the CPU."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return (("CUDAExecutionProvider", {"use_tf32": "0"}), *CPU)
    return CPU


class OnnxRuntime:
    """The Backend on the CPU: what cpu-* devices run."""

    def version(self) -> str:
        """`onnxruntime 1.32.0`."""
        return version()

    def load(
        self, model: Path, *, threads: int = 1, simulate: bool = False, tensors: tuple[str, ...] = ()
    ) -> OrtRunner:
        """See Backend.load."""
        return load(model, threads=threads, simulate=simulate, providers=CPU, tensors=tensors)


class OrtRunner:
    """A session. `provider` is the one that onnxruntime really took, not the one asked for."""

    def __init__(self, session: Any, how: str) -> None:
        self.session, self.how = session, how
        self.provider: str = session.get_providers()[0]
        self.inputs = tuple(TensorInfo(one.name, _dtype(one.type), _shape(one.shape)) for one in session.get_inputs())
        self.outputs = [one.name for one in session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Any]) -> Arrays:
        """See Runner."""
        try:
            return dict(zip(self.outputs, self.session.run(self.outputs, dict(feeds)), strict=True))
        except Exception as error:  # its exceptions share no base class but Exception
            raise _cannot_run(error) from error

    def prepared(self, feeds: Mapping[str, Any]) -> Callable[[], None]:
        """See Runner. Inputs and outputs are bound, so that Python's copying is not in the time."""
        binding = self.session.io_binding()
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        for name in self.outputs:
            binding.bind_output(name)
        run, synchronize = self.session.run_with_iobinding, binding.synchronize_outputs
        try:
            run(binding)  # what the graph refuses it refuses here, outside the time
        except Exception as error:
            raise _cannot_run(error) from error
        if self.provider == CPU[0]:
            return lambda: run(binding)

        def run_and_wait() -> None:
            run(binding)
            synchronize()

        return run_and_wait


def load(
    model: Path, *, threads: int = 1, simulate: bool = False, providers: tuple[Any, ...] | None = None,
    tensors: tuple[str, ...] = (),
) -> OrtRunner:  # fmt: skip
    """Load an ONNX file.

    Args:
        threads: intra-op threads.
        simulate: all graph optimizations off, so that Q and DQ are computed one by one and every layer between them in
            float: what stands for an engine that isn't here (8-bit sums never saturate).
        providers: execution providers; None takes `default_providers()`.
        tensors: intermediate tensors to return beside the outputs.

    Raises:
        EdgeError: onnxruntime refuses the file, or a named tensor isn't in it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    # Two sessions that are timed in turn share the cores: threads must not spin on after their own run.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL if simulate else levels.ORT_ENABLE_ALL
    source: str | bytes = _with_outputs(model, tensors) if tensors else str(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=list(providers or default_providers()))
    except Exception as error:  # its exceptions share no base class but Exception
        raise EdgeError(
            f"onnxruntime cannot load `{model}`: {_first_line(error)}",
            "check the file with `python -m onnx.checker`, or use a newer onnxruntime",
        ) from error
    kernels = session.get_providers()[0].removesuffix("ExecutionProvider")
    if simulate:
        how = f"float simulation of the graph ({version()} {kernels}, optimizations off)"
    else:
        how = f"{version()} {kernels} kernels, {threads} thread{'s' if threads != 1 else ''}"
    return OrtRunner(session, how)


def _with_outputs(model: Path, tensors: tuple[str, ...]) -> bytes:
    import onnx

    loaded = onnx.load(str(model))
    present = {name for node in loaded.graph.node for name in node.output}
    outputs = {one.name for one in loaded.graph.output}
    for name in tensors:
        if name not in present:
            raise EdgeError(f"`{model}` has no tensor `{name}`")
        if name not in outputs:
            loaded.graph.output.append(onnx.ValueInfoProto(name=name))  # the type is onnxruntime's to infer
    serialized: bytes = loaded.SerializeToString()
    return serialized


def _cannot_run(error: Exception) -> EdgeError:
    return EdgeError(
        f"onnxruntime cannot run the graph: {_first_line(error)}", "check that the sizes of the inputs fit the model"
    )


def _dtype(text: str) -> str:
    name = text.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


def _shape(shape: list[Any]) -> tuple[int | None, ...]:
    return tuple(one if isinstance(one, int) else None for one in shape)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
