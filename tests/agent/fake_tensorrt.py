"""A double of NVIDIA's `tensorrt` module, by onnxruntime's float simulation: what edgecnn calls of it, 10.3 to 11.

It is put on a board's path as `tensorrt`; edgecnn's own backend and Polygraphy's CUDA wrapper run as they are. Tensors
move through libcudart, the real one or its stand-in. It is strict where the real one is: a network that isn't strongly
typed (10.x), a plan of another version, a tensor without an address, a batch above the profile.
"""

from __future__ import annotations

import ctypes
import os
from enum import Enum, IntEnum
from typing import Any

import numpy as np

__version__ = os.environ.get("FAKE_TENSORRT", "10.3.0")
STRICT = int(__version__.split(".")[0]) < 11


class ILogger:
    Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None: ...


class NetworkDefinitionCreationFlag(IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class TensorIOMode(Enum):
    NONE, INPUT, OUTPUT = range(3)


def init_libnvinfer_plugins(log: ILogger, namespace: str) -> bool:
    return True


def complain(log: Any, text: str) -> None:
    log.log(ILogger.ERROR, text)


def nptype(dtype: Any) -> Any:
    return np.dtype(dtype).type


class Tensor:
    def __init__(self, info: Any) -> None:
        self.name, self.dtype = info.name, info.dtype
        self.shape = tuple(-1 if size is None else size for size in info.shape)


class Network:
    def __init__(self, flags: int) -> None:
        if STRICT and not flags & 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED:
            raise RuntimeError("this double takes strongly typed networks only")
        self.graph, self.tensors, self.num_layers = b"", [], 0

    @property
    def num_inputs(self) -> int:
        return len(self.tensors)

    def get_input(self, number: int) -> Tensor:
        return self.tensors[number]


class Profile:
    def __init__(self) -> None:
        self.most: dict[str, tuple[int, ...]] = {}

    def set_shape(self, name: str, low: Any, best: Any, most: Any) -> None:
        self.most[name] = tuple(most)


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class Config:
    def __init__(self) -> None:
        self.profile, self.cache = Profile(), None

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profile = profile
        return 0

    def create_timing_cache(self, content: bytes) -> TimingCache | None:
        right = not content or bytes(content).startswith(__version__.encode())
        return TimingCache(bytes(content)) if right else None

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache


class Builder:
    def __init__(self, log: ILogger) -> None:
        self.log = log

    def create_network(self, flags: int) -> Network:
        return Network(flags)

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        for tensor in network.tensors:
            if -1 in tensor.shape and tensor.name not in config.profile.most:
                complain(self.log, f"Network has dynamic input {tensor.name} but no optimization profile")
                return None
        if config.cache is not None:
            config.cache.content = (config.cache.content or __version__.encode()) + b" timed"
        most = min((shape[0] for shape in config.profile.most.values()), default=0)  # 0: every size is fixed
        return f"plan {__version__} {most}\n".encode() + network.graph


class OnnxParser:
    def __init__(self, network: Network, log: ILogger) -> None:
        self.network, self.log, self.num_errors = network, log, 0

    def parse_from_file(self, path: str) -> bool:
        from pathlib import Path

        from edgecnn.backends import ort
        from edgecnn.process.errors import EdgeError

        try:
            runner = ort.load(Path(path), simulate=True, providers=ort.CPU)
        except EdgeError as error:
            complain(self.log, f"ModelImporter: {error.message}")
            return False
        self.network.graph, self.network.num_layers = Path(path).read_bytes(), 1
        self.network.tensors = [Tensor(one) for one in runner.inputs]
        return True


class Runtime:
    def __init__(self, log: ILogger) -> None:
        self.log = log

    def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
        header, _, graph = content.partition(b"\n")
        words = header.split()
        if len(words) != 3 or words[0] != b"plan":
            complain(self.log, "Serialization assertion magicTagRead == kMAGIC_TAG failed.")
            return None
        if words[1].decode() != __version__:
            complain(self.log, f"The engine plan file is not compatible with this version, expecting {__version__}")
            return None
        return Engine(graph, int(words[2]))


class Engine:
    def __init__(self, graph: bytes, most: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.most, inputs = most, self.session.get_inputs()
        self.info = {one.name: one for one in (*inputs, *self.session.get_outputs())}
        self.inputs = [one.name for one in inputs]
        self.num_io_tensors = len(self.info)

    def get_tensor_name(self, number: int) -> str:
        return list(self.info)[number]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> str:
        kind = self.info[name].type.removeprefix("tensor(").removesuffix(")")
        return {"float": "float32"}.get(kind, kind)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.info[name].shape)

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.shapes, self.addresses = engine, dict[str, tuple[int, ...]](), dict[str, int]()

    def set_input_shape(self, name: str, shape: Any) -> bool:
        free = self.engine.get_tensor_shape(name)
        if (
            any(size not in (-1, here) for size, here in zip(free, shape, strict=True))
            or 0 < self.engine.most < shape[0]
        ):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = self.shapes[self.engine.inputs[0]][0]
        return self.shapes.get(name) or tuple(
            batch if size == -1 else size for size in self.engine.get_tensor_shape(name)
        )

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if not stream or set(self.addresses) != set(self.engine.info):
            return False
        if _cuda().cudaStreamSynchronize(ctypes.c_void_p(stream)):  # the inputs come on this stream
            return False
        found = self.engine.session.run(None, {name: self._input(name) for name in self.engine.inputs})
        outputs = [name for name in self.engine.info if name not in self.engine.inputs]
        return all(self._copy(name, value, to_device=True) for name, value in zip(outputs, found, strict=True))

    def _input(self, name: str) -> Any:
        value = np.empty(self.get_tensor_shape(name), self.engine.get_tensor_dtype(name))
        if not self._copy(name, value, to_device=False):
            raise RuntimeError(f"cudaMemcpy of `{name}` failed")
        return value

    def _copy(self, name: str, value: Any, *, to_device: bool) -> bool:
        value = value if value.flags.c_contiguous else np.ascontiguousarray(value)
        device, host = ctypes.c_void_p(self.addresses[name]), ctypes.c_void_p(value.ctypes.data)
        pair, kind = ((device, host), 1) if to_device else ((host, device), 2)  # cudaMemcpyKind
        return bool(_cuda().cudaMemcpy(*pair, ctypes.c_size_t(value.nbytes), kind) == 0)


def _cuda() -> Any:
    return ctypes.CDLL("libcudart.so")
