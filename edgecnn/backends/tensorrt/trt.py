"""TensorRT and TensorRT for RTX: one API under two module names. Everything but `installed` runs in a child process.

Networks are strongly typed: the precision of every tensor is what the ONNX graph says. An engine holds one
optimization profile, batch 1 to `max_batch`, tuned for batch 1.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from edgecnn.backends import Arrays, TensorInfo
from edgecnn.backends.tensorrt.cuda_events import Stopwatch
from edgecnn.process.disk import replacing
from edgecnn.process.errors import EdgeError
from edgecnn.process.versions import install_command, installed_version

Name = Literal["tensorrt", "tensorrt-rtx"]
MAX_BATCH = 64
TITLES: dict[Name, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
INSTALL: dict[Name, str] = {
    "tensorrt": f"{install_command('tensorrt')}; on a Jetson use the board's own: apt install python3-libnvinfer",
    "tensorrt-rtx": install_command("rtx"),
}
# The same module comes in packages for several CUDA versions.
PACKAGES: dict[Name, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}


def installed(name: Name) -> str | None:
    """The installed version, as `1.7.1.116`, or None. Reads package metadata only."""
    if importlib.util.find_spec(name.replace("-", "_")) is None:
        return None
    versions = (installed_version(package) for package in PACKAGES[name])
    return next((found for found in versions if found != "absent"), "of unknown version")


class TensorRT:
    """The Backend of either module.

    Raises:
        EdgeError: the module is not installed.
    """

    def __init__(self, name: Name) -> None:
        module = name.replace("-", "_")
        try:
            self.trt: Any = importlib.import_module(module)
        except (ImportError, OSError) as error:  # OSError: its native library doesn't load
            raise EdgeError(f"{TITLES[name]} is not usable here: {error}", INSTALL[name]) from error
        self.name, self.title = name, TITLES[name]
        self.log = _logger(self.trt)
        if name == "tensorrt":  # its own plugins, EfficientNMS_TRT among them; TensorRT for RTX has none
            self.trt.init_libnvinfer_plugins(self.log, "")

    def version(self) -> str:
        """`TensorRT for RTX 1.7.1.116`."""
        return f"{self.title} {self.trt.__version__}"

    def parse(self, model: Path) -> dict[str, Any]:
        """Give an ONNX file to the parser; return the network's counts.

        Raises:
            EdgeError: refused: the node and the parser's own words.
        """
        _, network = self._network(model)
        return {"version": self.version(), "layers": network.num_layers}

    def build(
        self, model: Path, engine: Path, *, compute_capability: str | None, timing_cache: Path | None = None
    ) -> dict[str, Any]:
        """Compile an ONNX file and write the engine.

        Args:
            compute_capability: the GPU to compile for, as `8.9`, or several for one engine, as `8.6, 8.9, 12.0`
                (TensorRT for RTX, which needs no GPU for it); None: the GPU here.
            timing_cache: what TensorRT timed in earlier builds on this GPU, and takes what it times in this one;
                TensorRT for RTX times nothing in a build.

        Raises:
            EdgeError: the parser or the builder refuses; their own words are told.
        """
        start = time.monotonic()
        builder, network = self._network(model)
        config = builder.create_builder_config()
        if compute_capability is not None:
            targets = [self._capability(one.strip()) for one in compute_capability.split(",")]
            config.num_compute_capabilities = len(targets)
            for place, target in enumerate(targets):
                config.set_compute_capability(target, place)
        if (profile := self._profile(builder, network)) is not None:
            config.add_optimization_profile(profile)
        timings = timing_cache if self.name == "tensorrt" else None
        if timings is not None:
            self._take_timings(config, timings)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EdgeError(f"{self.version()} cannot build an engine from `{model.name}`: {self._complaint()}")
        engine.write_bytes(memoryview(plan))
        if timings is not None:
            _keep_timings(config, timings)
        seconds = time.monotonic() - start
        return {"version": self.version(), "layers": network.num_layers, "seconds": seconds}

    def load(
        self, model: Path, *, threads: int = 1, simulate: bool = False, tensors: tuple[str, ...] = ()
    ) -> TrtRunner:
        """Load an engine file made by `build` for the GPU here. See Backend.load.

        A plan holds native code: give only files that you built.
        """
        if simulate or tensors:
            raise EdgeError(f"{self.title} runs engines; it neither simulates nor returns inner tensors")
        runtime = self.trt.Runtime(self.log)
        engine = runtime.deserialize_cuda_engine(model.read_bytes())
        if engine is None:
            raise EdgeError(
                f"{self.version()} cannot load `{model.name}`: {self._complaint()}",
                "an engine runs only on the GPU and TensorRT version it was built for, and needs a GPU to be loaded",
            )
        return TrtRunner(self, runtime, engine)

    def _network(self, model: Path) -> tuple[Any, Any]:
        trt = self.trt
        builder = trt.Builder(self.log)
        # TensorRT 11 is always strongly typed and ignores the flag; 10.x needs it.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self.log)
        if not parser.parse_from_file(str(model)):
            raise self._refusal(model, parser)
        return builder, network

    def _refusal(self, model: Path, parser: Any) -> EdgeError:
        if not parser.num_errors:
            return EdgeError(f"{self.version()}'s parser refuses `{model.name}`: {self._complaint()}")
        errors = [parser.get_error(number) for number in range(parser.num_errors)]
        first = errors[0]
        node = first.node_name() or f"number {first.node()}"
        where = f"node `{node}` ({first.node_operator()}) of `{model.name}`"
        words = f"{first.code().name}: {first.desc()}"
        more = f"; {len(errors) - 1} more errors are in its log" if len(errors) > 1 else ""
        return EdgeError(
            f"{self.version()}'s parser refuses {where}: {words}{more}",
            "change the model so that this node is exported otherwise, or keep it out of the quantized part "
            f"(`quantize.keep_float: [{node}]`)",
        )

    def _capability(self, text: str) -> Any:
        name = "SM" + text.replace(".", "")
        known = self.trt.ComputeCapability
        found = getattr(known, name, None)
        if found is None:
            names = ", ".join(one for one in dir(known) if one.startswith("SM"))
            raise EdgeError(
                f"{self.version()} does not compile for compute capability {text} ({name})", f"it knows {names}"
            )
        return found

    def _profile(self, builder: Any, network: Any) -> Any | None:
        profile, free = builder.create_optimization_profile(), False
        for number in range(network.num_inputs):
            tensor = network.get_input(number)
            shape = tuple(tensor.shape)
            if -1 in shape[1:]:
                raise EdgeError(
                    f"input `{tensor.name}` has free dimensions besides the batch: {shape}",
                    "export it with a fixed image size",
                )
            if shape and shape[0] == -1:
                free = True
                sizes = [(batch, *shape[1:]) for batch in (1, 1, MAX_BATCH)]
                profile.set_shape(tensor.name, *sizes)
        return profile if free else None

    def _take_timings(self, config: Any, file: Path) -> None:
        """Give the builder the timings of earlier builds; those of another GPU or version it refuses by itself."""
        content = file.read_bytes() if file.exists() else b""
        for given in (content, b"") if content else (b"",):
            cache = config.create_timing_cache(given)
            if cache is not None and config.set_timing_cache(cache, False):
                return

    def _complaint(self) -> str:
        return str(self.log.errors[-1]) if self.log.errors else "it gave no reason"


class TrtRunner:
    """An engine on the GPU here. Device memory and streams are Polygraphy's CUDA wrappers (libcudart by ctypes)."""

    def __init__(self, backend: TensorRT, runtime: Any, engine: Any) -> None:
        try:
            from polygraphy import cuda
        except ImportError as error:
            raise EdgeError("running a TensorRT engine needs polygraphy", "pip install 'polygraphy>=0.49'") from error
        trt = backend.trt
        self.trt, self.runtime, self.engine, self.cuda = trt, runtime, engine, cuda
        self.context = engine.create_execution_context()
        if self.context is None:
            raise EdgeError(f"{backend.version()} cannot make an execution context: {backend._complaint()}")
        self.stream = cuda.Stream()
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.dtypes = {name: trt.nptype(engine.get_tensor_dtype(name)) for name in names}
        self.inputs = tuple(self._info(name) for name in names if is_input[name])
        self.outputs = tuple(name for name in names if not is_input[name])
        self.memory = {name: cuda.DeviceArray(dtype=self.dtypes[name]) for name in names}
        self.how = f"{backend.version()} engine, CUDA graph off"

    def __call__(self, feeds: Mapping[str, Any]) -> Arrays:
        """See Runner."""
        import numpy as np

        self._bind(feeds)
        self._enqueue()
        found = {}
        for name in self.outputs:
            host = np.empty(tuple(self.context.get_tensor_shape(name)), self.dtypes[name])
            found[name] = self.memory[name].copy_to(host, self.stream)
        self.stream.synchronize()
        return found

    def prepared(self, feeds: Mapping[str, Any]) -> Callable[[], float]:
        """See Runner. GPU time: neither transfers nor the launch are in it, the call returns when the GPU is done.

        Its memory belongs to this runner: another call with a larger batch makes it invalid.
        """
        self._bind(feeds)
        self.stream.synchronize()
        watch = Stopwatch(self.cuda, self.stream.ptr)

        def run() -> float:
            watch.start()
            self._enqueue()
            return watch.stop()

        return run

    def _info(self, name: str) -> TensorInfo:
        import numpy as np

        shape = tuple(None if size == -1 else int(size) for size in self.engine.get_tensor_shape(name))
        return TensorInfo(name, np.dtype(self.dtypes[name]).name, shape)

    def _bind(self, feeds: Mapping[str, Any]) -> None:
        for name, value in feeds.items():
            if not self.context.set_input_shape(name, value.shape):
                raise EdgeError(
                    f"the engine does not take input `{name}` of shape {value.shape}",
                    f"its largest batch is {MAX_BATCH}",
                )
            self.memory[name].resize(value.shape)
            self.memory[name].copy_from(value, self.stream)
        for name in self.outputs:
            self.memory[name].resize(tuple(self.context.get_tensor_shape(name)))
        for name, memory in self.memory.items():
            self.context.set_tensor_address(name, memory.ptr)

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self.stream.ptr):
            raise EdgeError("the engine failed to run", "the end of the log beside the stage says why")


def _keep_timings(config: Any, file: Path) -> None:
    cache = config.get_timing_cache()
    if cache is None:
        return
    with replacing(file) as part:
        part.write_bytes(memoryview(cache.serialize()))


def _logger(trt: Any) -> Any:
    """A logger that writes to stderr, which the child keeps as its log, and remembers the errors."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            if severity != trt.ILogger.VERBOSE:
                print(f"[{severity.name}] {message}", file=sys.stderr, flush=True)

    return cast(Any, Logger())
