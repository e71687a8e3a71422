"""The figures of a build's report, each with its unit and the conditions it holds under."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgecnn.measure import stats
from edgecnn.records import QuantizeFile, SpeedFile
from edgecnn.report import Distribution, Figure, Group, Unit
from edgecnn.report.ladder import Ladder, Rung
from edgecnn.report.wording import time_text
from edgecnn.verdict.board_figures import board_figures, board_text
from edgecnn.verdict.evidence import Array, Measured, finite

BINS = 60


def all_figures(measured: Measured, float_name: str) -> tuple[Figure, ...]:
    """Every figure of a build. `float_name` is the precision INT8 is timed against: `FP16` or `FP32`."""
    task, compared = measured.task, measured.compared
    return (
        *task.figures(compared, coverage_text(measured), float_name),
        *_quantization(measured),
        *_sizes(measured, float_name),
        *_latency(measured, float_name),
        *task.host_figures(compared, measured.speed, measured.float_ms, measured.int8_ms),
    )


def ladder(found: QuantizeFile) -> Ladder | None:
    """The climb of quantize.json in percent and points; None where the quantizer wrote none."""
    if not found.ladder:
        return None
    recovery = found.recovery
    return Ladder(
        state=recovery.state, budget=_hundredfold(recovery.budget), best=recovery.best, stop_at=recovery.stop_at,
        judged=recovery.judged,
        rungs=tuple(
            Rung(
                rung=part.rung, kept=part.kept, why=part.why, float_accuracy=_hundredfold(part.float_value),
                accuracy=_hundredfold(part.value), drop=_hundredfold(part.drop), lower=_hundredfold(part.lower),
                upper=_hundredfold(part.upper), images=part.images, sqnr_db=finite(part.sqnr_db), seconds=part.seconds,
                float_nodes=part.float_nodes, int8_macs=100 * part.int8_macs, expected_speed=part.expected_speed,
            )
            for part in found.ladder
        ),
    )  # fmt: skip


def _hundredfold(share: float | None) -> float | None:
    return None if share is None else 100 * share


def distribution(first_ms: Array, second_ms: Array, first_name: str, second_name: str) -> Distribution | None:
    """Histogram of two timings (pairs,) in ms over common edges; the slowest share the last bin.

    The edges end where a timing's slowest 1 % begin, or earlier: a long tail would press all others into one bar.
    """
    if not len(first_ms):
        return None
    both = np.concatenate([first_ms, second_ms])
    low, high = float(both.min()), max(_tail(first_ms), _tail(second_ms))
    edges = np.linspace(low, max(high, low * 1.01), BINS + 1)
    counts = [np.histogram(np.minimum(ms, edges[-1]), edges)[0].tolist() for ms in (first_ms, second_ms)]
    return Distribution(
        edges_ms=tuple(edges.tolist()), first_name=first_name, first_counts=counts[0],
        first_p50_ms=float(np.median(first_ms)), second_name=second_name, second_counts=counts[1],
        second_p50_ms=float(np.median(second_ms)),
    )  # fmt: skip


def _tail(ms: Array) -> float:
    """Where the slow runs of one timing begin: its 99th percentile, or six times what half of its runs span."""
    quarter, half, most, last = (float(value) for value in np.quantile(ms, (0.25, 0.5, 0.75, 0.99)))
    return min(last, half + 6 * max(most - quarter, 0.01 * half))


def timing_text(speed: SpeedFile) -> str:
    """How the pairs were timed, or why they were not."""
    if not speed.measured:
        return f"not measured: {speed.why or 'no reason was recorded'}"
    threads = f"{speed.threads} thread{'s' if speed.threads != 1 else ''}" if speed.threads else ""
    parts = (
        f"{speed.pairs:,} interleaved pairs in {speed.seconds:.0f} s", f"batch {speed.batch}", threads,
        speed.hardware, speed.backend, board_text(speed), speed.what, time_text(speed.when),
    )  # fmt: skip
    return " · ".join(part for part in parts if part)


def _figure(
    group: Group, name: str, title: str, value: float | None, unit: Unit, conditions: str,
    bounds: tuple[float, float] | None = None,
) -> Figure:  # fmt: skip
    lower, upper = bounds or (None, None)
    return Figure(
        name=name, title=title, group=group, value=value, lower=lower, upper=upper, unit=unit, conditions=conditions
    )


def coverage_text(measured: Measured) -> str:
    """What stands beside every INT8 accuracy."""
    return f"INT8 coverage {100 * measured.quantize.coverage.macs:.1f} % of MACs"


def _quantization(measured: Measured) -> Iterator[Figure]:
    found = measured.quantize
    graph = "share of the INT8 graph"
    yield _figure("quantization", "coverage_macs", "MACs in INT8", 100 * found.coverage.macs, "%", graph)
    in_int8 = 100 * found.coverage.activation_bytes
    yield _figure("quantization", "coverage_activations", "Activation bytes in INT8", in_int8, "%", graph)
    which = "training images that did not calibrate" if found.compared_held else "of the calibration images"
    compared = f"all outputs · {found.compared_images:,} {which} · float simulation · ranges {found.ranges}"
    for name, title, value in (
        ("calibration_sqnr_median", "SQNR when quantized, median image", found.sqnr_median_db),
        ("calibration_sqnr", "SQNR when quantized, pooled", found.sqnr_db),
    ):
        yield _figure("quantization", name, title, finite(value), "dB", compared)
    for name, title, typed in (
        ("typed_sqnr", "SQNR of the typed file in FP16 arithmetic", found.typed),
        ("float_typed_sqnr", "SQNR of the float typed file in FP16 arithmetic", measured.float_typed),
    ):
        if typed is not None and typed.sqnr_db is not None:
            how = f"{typed.images:,} calibration images · worst output · {typed.accumulation} accumulation"
            if typed is found.typed and typed.fp32_sqnr_db is not None:
                how += f" · {typed.fp32_sqnr_db:.1f} dB in FP32"
            yield _figure("quantization", name, title, finite(typed.sqnr_db), "dB", how)
    if found.layers:
        in_float = sum(not layer.int8 for layer in found.layers)
        yield _figure(
            "quantization", "float_layers", "Layers kept float", in_float, "layers", f"of {len(found.layers)} layers"
        )


def _sizes(measured: Measured, float_name: str) -> Iterator[Figure]:
    megabytes = "10^6 bytes"
    yield _figure("size", "float_size", "Float ONNX", measured.plain_bytes / 1e6, "MB", f"model.onnx · {megabytes}")
    yield _figure("size", "int8_size", "INT8 ONNX", measured.int8_bytes / 1e6, "MB", f"model.int8.onnx · {megabytes}")
    for name, title, engine in (
        ("float_engine_size", f"{float_name} engine", measured.base),
        ("int8_engine_size", "INT8 engine", measured.engine),
    ):
        if engine.built and engine.engine and engine.size_bytes:
            yield _figure("size", name, title, engine.size_bytes / 1e6, "MB", f"{engine.engine} · {megabytes}")


def _latency(measured: Measured, float_name: str) -> Iterator[Figure]:
    conditions = timing_text(measured.speed)
    if not len(measured.int8_ms):
        yield _figure("latency", "speedup", "Speed-up", None, "x", conditions)
        return
    for key, title, ms in (("float", float_name, measured.float_ms), ("int8", "INT8", measured.int8_ms)):
        for percent in (50, 90, 99):
            value = float(np.quantile(ms, percent / 100))
            yield _figure("latency", f"{key}_p{percent}_ms", f"{title} p{percent}", value, "ms", conditions)
    ratio = stats.pair_ratio(measured.int8_ms, measured.float_ms)
    yield _figure(
        "latency", "speedup", "Speed-up", ratio.median, "x",
        f"{float_name} / INT8, median of pairs · one-sided 95 % block-bootstrap bounds · {conditions}",
        (ratio.lower, ratio.upper),
    )  # fmt: skip
    undisturbed = stats.p5_speedup(measured.float_ms, measured.int8_ms)
    yield _figure(
        "latency", "p5_speedup", "Speed-up of undisturbed runs", undisturbed, "x",
        f"{float_name} / INT8, ratio of 5th percentiles · {conditions}",
    )  # fmt: skip
    for key, title, ms in (("float", float_name, measured.float_ms), ("int8", "INT8", measured.int8_ms)):
        rate = 1000 * measured.speed.batch / float(np.median(ms))
        yield _figure("latency", f"{key}_throughput", f"{title} throughput", rate, "images/s", f"at p50 · {conditions}")
    yield from board_figures(measured.speed, float_name, conditions)
