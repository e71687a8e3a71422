"""What a compile stage leaves: the graphs, and engine.json that says what was made and checked."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from edgecnn.backends import BackendName
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.device import DeviceProfile


@dataclass(frozen=True)
class EngineCheck:
    """One check of a graph. `passed` None: not done, `detail` says why."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Engine:
    """engine.json.

    `built`: an engine exists, or the backend runs the graph itself. `runnable`: it can run on this machine, on this
    device. `engine`: file name, None where the graph is what runs. `quantized`: the graph has Q/DQ nodes.
    `size_bytes`: of the engine file, or of the graph where there is none.
    """

    device: str
    backend: BackendName
    built: bool
    runnable: bool
    engine: str | None
    graph: str
    quantized: bool
    checks: tuple[EngineCheck, ...]
    note: str
    size_bytes: int
    seconds: float

    def write(self, out: Path) -> None:
        """Write engine.json into `out`."""
        (out / "engine.json").write_text(json.dumps(asdict(self), indent=1))


def read_engine(folder: Path) -> Engine:
    """The engine.json of a compile stage's folder."""
    content = json.loads((folder / "engine.json").read_text())
    checks = tuple(EngineCheck(**one) for one in content.pop("checks"))
    return Engine(checks=checks, **content)


def copy_graphs(source: Path, out: Path) -> Path:
    """Copy model.onnx and, where there is one, typed.onnx with what is known of it; return what TensorRT is given."""
    given = out / "model.onnx"
    shutil.copyfile(source / "model.onnx", given)
    if (source / "typed.onnx").exists():
        given = out / "typed.onnx"
        shutil.copyfile(source / "typed.onnx", given)
    if (source / "typed.json").exists():
        shutil.copyfile(source / "typed.json", out / "typed.json")
    return given


def is_quantized(model: Path) -> bool:
    """Whether an ONNX file has QuantizeLinear or DequantizeLinear nodes.

    Raises:
        EdgeError: it isn't readable ONNX.
    """
    import onnx

    try:
        loaded = onnx.load(str(model), load_external_data=False)
    except Exception as error:  # protobuf raises its own kinds
        raise EdgeError(f"`{model}` is not a readable ONNX file: {error}") from error
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in loaded.graph.node)


def fixed_batch(model: Path) -> int | None:
    """The batch that an ONNX file's first input is fixed to, None where it is free."""
    import onnx

    inputs = onnx.load(str(model), load_external_data=False).graph.input
    sizes = [max(0, int(size.dim_value)) for size in inputs[0].type.tensor_type.shape.dim] if inputs else []
    return sizes[0] or None if sizes else None


def take_graphs(out: Path, profile: DeviceProfile, model: Path) -> tuple[Path, bool]:
    """Copy a model's graphs into a compile stage; return the one to compile and whether it is quantized.

    Raises:
        EdgeError: INT8 is asked of a device without it.
    """
    graph = copy_graphs(model, out)
    quantized = is_quantized(graph)
    if quantized:
        profile.require_int8()
    return graph, quantized


def write_engine(
    out: Path, profile: DeviceProfile, quantized: bool, *, built: bool, runnable: bool, checks: tuple[EngineCheck, ...],
    note: str, engine: str | None = None, seconds: float = 0.0,
) -> None:  # fmt: skip
    """Write engine.json for a device; see Engine."""
    size = (out / (engine or "model.onnx")).stat().st_size
    Engine(
        device=profile.name, backend=profile.backend, built=built, runnable=runnable, engine=engine, graph="model.onnx",
        quantized=quantized, checks=checks, note=note, size_bytes=size, seconds=round(seconds, 3),
    ).write(out)  # fmt: skip
