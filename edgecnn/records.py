"""The JSON files that stages leave, as far as a verdict reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from edgecnn.process.errors import EdgeError
from edgecnn.recipe.device import Scheme
from edgecnn.recipe.spec import Spec, describe_fault

M = TypeVar("M", bound=BaseModel)


class CompiledCheck(Spec):
    """One check of an engine that was compiled or parsed, such as the parser of TensorRT for RTX."""

    name: str
    passed: bool | None  # None: not done here, `detail` says why
    detail: str = ""


class _File(BaseModel):
    """A stage's JSON: what the verdict reads of it; other keys are the stage's own."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class CocoPart(_File):
    """A detector's average precisions, fractions of 1; None where no box of the kind is labelled."""

    map50_95: float
    map50: float
    by_class: dict[str, float | None]
    by_size: dict[str, float | None]


class StepPart(_File):
    """Milliseconds of one step beside the engine, one image at a time."""

    images: int
    p50_ms: float
    p90_ms: float
    confidence: float | None = None  # of suppression: what it was timed at


class HostPart(_File):
    """What a detector costs on the host beside its engine; `nms` None where the graph suppresses itself."""

    hardware: str
    preprocess: StepPart
    nms: StepPart | None = None


class ScoreFile(_File):
    """score.json. `value` is a fraction of 1; `coco`, `host` are a detector's; `boards`: images scored by each."""

    metric: str
    value: float
    n: int
    how: str
    simulated: bool
    coco: CocoPart | None = None
    host: HostPart | None = None
    boards: dict[str, int] = {}


class ClockPart(_File):
    """A clock while pairs ran, MHz."""

    min: float
    median: float
    max: float


class HeatPart(_File):
    """A zone's temperature while pairs ran, °C."""

    start: float
    max: float


class BoardPart(_File):
    """One board's own pairs: percentiles of INT8 in ms by name, as `p50_ms`."""

    int8: dict[str, float]
    valid: bool = True
    invalid_why: str = ""


class SpeedFile(_File):
    """speed.json; where `measured` is False only `why` is sure to be there.

    What follows `load_average` is a board's, of the one whose pairs are the figure; `first` is float, `second` INT8.
    """

    measured: bool
    why: str | None = None
    when: str = ""
    pairs: int = 0
    seconds: float = 0.0
    batch: int = 1
    threads: int | None = None
    hardware: str = ""
    backend: str = ""
    what: str = ""
    clocks_locked: bool = False
    p99_valid: bool = False
    p99_invalid_why: str | None = None
    load_average: float | None = None
    board: str = ""
    boards: dict[str, BoardPart] = {}
    power_mode: str = ""
    gpu_mhz: ClockPart | None = None
    emc_mhz: ClockPart | None = None
    cpu_mhz: ClockPart | None = None
    temperature_c: dict[str, HeatPart] = {}
    energy_mj: dict[str, float | None] = {}  # per inference, above idle
    io_ms: dict[str, dict[str, float]] = {}
    e2e_ms: dict[str, dict[str, float]] = {}
    gpu_users: tuple[dict[str, Any], ...] = ()
    valid: bool = True
    invalid_why: str = ""


class EngineFile(_File):
    """engine.json of a compile stage."""

    device: str
    built: bool
    runnable: bool
    engine: str | None = None
    checks: tuple[CompiledCheck, ...] = ()
    note: str = ""
    size_bytes: int | None = None


class CalibrationPart(_File):
    """How the ranges were found."""

    images: int
    digest: str


class CoveragePart(_File):
    """Shares of the graph computed in INT8, 0 to 1."""

    macs: float
    activation_bytes: float


class LayerPart(_File):
    """One layer of quantize.json."""

    name: str
    op: str
    macs: int = 0
    int8: bool
    why_float: str | None = None
    sqnr_db: float | None = None


class RungPart(_File):
    """One rung of quantize.json's ladder; accuracies, drops and shares are fractions of 1."""

    rung: str
    kept: bool
    why: str = ""
    float_value: float | None = None
    value: float | None = None
    drop: float | None = None
    lower: float | None = None
    upper: float | None = None
    images: int | None = None
    sqnr_db: float | None = None
    seconds: float = 0.0
    float_nodes: int = 0
    int8_macs: float = 0.0
    expected_speed: float = 1.0


class RecoveryPart(_File):
    """How the climb ended."""

    budget: float | None = None
    state: Literal["unasked", "held", "within", "missed"] = "unasked"
    best: str = "ranges"
    stop_at: str = "ranges"
    judged: str = ""
    notes: tuple[str, ...] = ()


class TypedPart(_File):
    """A typed graph in FP16 arithmetic against the float file; of the output that FP16 costs most."""

    images: int
    sqnr_db: float | None = None
    fp32_sqnr_db: float | None = None  # the same graph in FP32
    accumulation: str = "FP32"


class QuantizeFile(_File):
    """quantize.json."""

    scheme: Scheme
    ranges: str
    calibration: CalibrationPart
    coverage: CoveragePart
    layers: tuple[LayerPart, ...] = ()
    layer_images: int = 0
    sqnr_db: float | None = None  # of all outputs, powers of all images summed
    sqnr_median_db: float | None = None  # of the images' own
    agreement: float | None = None
    compared_images: int = 0
    compared_held: bool = False
    warnings: tuple[str, ...] = ()
    typed: TypedPart | None = None
    ladder: tuple[RungPart, ...] = ()
    recovery: RecoveryPart = RecoveryPart()


class IndexFile(_File):
    """index.json of the data stage."""

    classes: tuple[str, ...]


def parsed(kind: type[M], path: Path) -> M:
    """A stage's JSON file as its model.

    Raises:
        EdgeError: missing, or not what the stage writes.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise EdgeError(f"cannot read `{path}`: {error.strerror}", "run `edgecnn clean` and build again") from error
    except ValidationError as error:
        raise EdgeError(
            f"`{path}` is damaged: {describe_fault(error)}", "run `edgecnn clean` and build again"
        ) from error
