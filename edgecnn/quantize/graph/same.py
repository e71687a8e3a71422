"""Does the canonical graph compute what the file computes? Run both before anything is measured against either."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from edgecnn.process import progress
from edgecnn.process.errors import EdgeError, InternalError
from edgecnn.quantize.graph.canonical import runnable
from edgecnn.quantize.graph.fold_layers import in_training
from edgecnn.quantize.graph.sessions import Feeds, open_session, run

IMAGES = 2
_CLOSE_DB = 60.0  # rounding alone: an amplitude of 0.1 %
_CLOSE_HALF_DB = 30.0  # of a file in half precision, whose every tensor is rounded to 11 or 8 bits
_FLIPPED = 0.02  # share of entries that may differ where order or a threshold decides, and in what holds no floats
_FLOOR = 1e-10  # power of an entry: less is rounding beside zero
_MARGIN = 100.0  # powers: how much more than the file's own rounding, where that is large, the difference may be
_RANDOM = frozenset({
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial",
})  # fmt: skip
_SELECTING = frozenset({
    "TopK", "NonMaxSuppression", "NonZero", "ArgMax", "ArgMin", "Unique", "Compress", "Loop", "If", "Greater", "Less",
    "GreaterOrEqual", "LessOrEqual", "Equal", "Round", "Floor", "Ceil", "Sign",
})  # fmt: skip
_HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
Outputs = list[list[np.ndarray]]


def require_same(path: Path, model: ir.Model, feeds: list[Feeds]) -> None:
    """Compare the file's answers with the canonical graph's, on single feeds and, where the batch is free, on two.

    Raises:
        EdgeError: the file's answers are NaN, or change from run to run.
        InternalError: the canonical graph answers otherwise than the file, beyond rounding.
    """
    if random := _random(model):
        raise _changing(path, f"{random[0].op_type} `{random[0].name}` draws random numbers")
    feeds = _with_pair(model, feeds[:IMAGES])
    try:
        wanted = _answers(path, feeds)
    except EdgeError as error:
        progress.current().note(
            f"onnxruntime cannot run the file as it is, so its outputs were not compared: {error.message}"
        )
        return
    feeds = feeds[: len(wanted)]
    compared = Comparison.of(path, model)
    got = _answers(model, feeds)
    if not (told := compared.difference(wanted, got)):
        return
    if any(np.isnan(values).any() for one in wanted for values in one if values.dtype.kind == "f"):
        raise EdgeError(
            f"`{path}` itself gives NaN on calibration images",
            "the float model overflows there: check its weights and its input's normalization",
        )
    if told := compared.difference(wanted, _answers(path, feeds)):
        raise _changing(path, told)
    if told := compared.difference(wanted, got, _answers(path, feeds, simulate=True)):
        raise InternalError(
            f"edgecnn's own form of `{path.name}` computes something other than the file: {told}. "
            "Nothing is wrong with the file"
        )


def _changing(path: Path, why: str) -> EdgeError:
    return EdgeError(
        f"`{path}` gives different results from run to run: {why}", "export it with model.eval(), without random nodes"
    )


def _answers(model: Path | ir.Model, feeds: list[Feeds], *, simulate: bool = False) -> Outputs:
    """Outputs by feed. A batch that the graph declares free and does not take is left out."""
    session = open_session(runnable(model) if isinstance(model, Path) else model, simulate=simulate)
    found: Outputs = [run(session, feeds[0])]
    for feed in feeds[1:]:
        try:
            found.append(run(session, feed))
        except EdgeError:
            if isinstance(model, ir.Model):
                raise
            break
    return found


def _with_pair(model: ir.Model, feeds: list[Feeds]) -> list[Feeds]:
    """The feeds, and two of them as one batch where every input leaves the batch free."""
    free = all(value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int)
               for value in model.graph.inputs)  # fmt: skip
    if not free or not feeds:
        return feeds
    return [*feeds, {name: np.concatenate([feeds[0][name], feeds[-1][name]]) for name in feeds[0]}]


@dataclass(frozen=True)
class Comparison:
    """How near two graphs' outputs must be.

    Attributes:
        names: of the outputs.
        close_db: least SQNR of an output that rounding explains.
        selects: order or a threshold decides some values, so rounding may exchange a few entries.
    """

    names: tuple[str, ...]
    close_db: float
    selects: bool

    @staticmethod
    def of(path: Path, model: ir.Model) -> Comparison:
        """For a file and its canonical graph."""
        nodes = ir.traversal.RecursiveGraphIterator(model.graph)
        names = tuple(value.name or "" for value in model.graph.outputs)
        close = _CLOSE_HALF_DB if _in_half(onnx.load(str(path), load_external_data=False)) else _CLOSE_DB
        return Comparison(names, close, any(node.op_type in _SELECTING for node in nodes))

    def difference(self, wanted: Outputs, got: Outputs, rounded: Outputs | None = None) -> str:
        """The first output that differs beyond rounding, and how; '' where none does.

        Args:
            rounded: the file's own answers, computed in another order: its own rounding.
        """
        for number, name in enumerate(self.names):
            pairs = [
                (want[number], have[number], rounded[turn][number] if rounded is not None else want[number])
                for turn, (want, have) in enumerate(zip(wanted, got, strict=True))
                if isinstance(want[number], np.ndarray)
            ]
            for want, have, other in pairs:
                if told := self._kind(want, have, other):
                    return f"output `{name}` {told}"
            same = [(want, have, other) for want, have, other in pairs if want.shape == have.shape == other.shape]
            if told := self._values(same):
                return f"output `{name}` {told}"
        return ""

    def _kind(self, want: np.ndarray, have: np.ndarray, other: np.ndarray) -> str:
        if want.ndim != have.ndim or want.dtype != have.dtype:
            return f"is {have.dtype} with {have.ndim} dimensions, not {want.dtype} with {want.ndim}"
        near = all(abs(a - b) <= max(2, a // 20) for a, b in zip(want.shape, have.shape, strict=True))
        if want.shape != have.shape and want.shape == other.shape and not (self.selects and near):
            return f"has the shape {have.shape}, not {want.shape}"
        return ""

    def _values(self, pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> str:
        signal, noise, own, size = [], [], [], 0
        for want, have, other in pairs:
            size += want.size
            if want.dtype.kind != "f":
                unlike, known = (int(np.count_nonzero(want != one)) for one in (have, other))
                if unlike > max(_FLIPPED * want.size, 2.0 * known) and not (self.selects and unlike <= 2):
                    return f"has {unlike:,} other entries of {want.size:,}"
                continue
            finite = np.isfinite(want)
            if np.count_nonzero(finite != np.isfinite(have)) > (_FLIPPED * want.size if self.selects else 0):
                return "has other NaN or infinite values"
            signal.append(math.fsum(_squares(want, np.zeros_like(want))))
            noise.append(math.fsum(self._rounding(_squares(want, have))))
            own.append(math.fsum(_squares(want, other)))
        power, error = math.fsum(signal), math.fsum(noise)
        if error > max(power * 10 ** (-self.close_db / 10), _MARGIN * math.fsum(own), _FLOOR * size):
            return f"is {10 * math.log10(max(power, 1e-300) / error):.1f} dB away"
        return ""

    def _rounding(self, squares: np.ndarray) -> np.ndarray:
        """Without the few largest errors where selection may exchange entries."""
        return np.sort(squares)[: len(squares) - int(_FLIPPED * len(squares))] if self.selects else squares


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared differences of what is finite in both, flat."""
    with np.errstate(invalid="ignore"):
        difference = np.subtract(a, b, dtype=np.float64).reshape(-1)
    return np.square(difference[np.isfinite(difference)])


def _in_half(model: onnx.ModelProto) -> bool:
    """Some weight, end or Cast of the main graph is FP16 or BF16."""
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        kinds |= {a.t.data_type for a in node.attribute if a.name == "value"}
        kinds |= {a.i for a in node.attribute if a.name == "to" and node.op_type == "Cast"}
    return not kinds.isdisjoint(_HALVES)


def _random(model: ir.Model) -> list[ir.Node]:
    return [
        node
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        if node.domain in ("", "ai.onnx")
        and (node.op_type in _RANDOM or (node.op_type == "Dropout" and in_training(node)))
    ]
