"""The figures of a build's report, each with its unit and the conditions it holds under."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgecnn.measure import stats
from edgecnn.report import ClassAccuracy, Distribution, Figure, Group, Unit
from edgecnn.report.board_figures import board_figures, board_text
from edgecnn.report.box_figures import box_figures, class_precisions, split_figures
from edgecnn.report.evidence import Array, Classified, Detected, Measured, Scores, finite
from edgecnn.report.ladder import Ladder, Rung
from edgecnn.report.stage_files import QuantizeFile, SpeedFile
from edgecnn.report.wording import metric_text, time_text

BINS = 60


def all_figures(measured: Measured, float_name: str) -> tuple[Figure, ...]:
    """Every figure of a build. `float_name` is the precision INT8 is timed against: `FP16` or `FP32`."""
    answers = measured.answers
    if isinstance(answers, Detected):
        accuracy = box_figures(answers, coverage_text(measured), float_name)
    else:
        accuracy = _accuracy(answers, measured, float_name)
    return (
        *accuracy,
        *_quantization(measured),
        *_sizes(measured, float_name),
        *_latency(measured, float_name),
        *_beside_engine(measured),
    )


def discordant(first: Scores, second: Scores) -> tuple[int, int]:
    """(b, c): images that only the first model gets right, and that only the second does."""
    return int(np.sum(first.right & ~second.right)), int(np.sum(~first.right & second.right))


def class_accuracies(measured: Measured) -> tuple[ClassAccuracy, ...]:
    """Accuracy of every class that has scored images, in percent, reference beside INT8."""
    answers = measured.answers
    if isinstance(answers, Detected):
        return class_precisions(answers, measured.classes)
    found = []
    for number, name in enumerate(measured.classes):
        of_class = answers.reference.label == number
        if images := int(of_class.sum()):
            plain, int8 = (100 * float(part.right[of_class].mean()) for part in (answers.reference, answers.after))
            found.append(ClassAccuracy(name=name, images=images, float_accuracy=plain, int8_accuracy=int8))
    return tuple(found)


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


def _accuracy(answers: Classified, measured: Measured, float_name: str) -> Iterator[Figure]:
    reference, before, after = answers.reference, answers.before, answers.after
    n, metric = len(reference.label), metric_text(reference.file.metric)
    coverage = coverage_text(measured)
    # Without the device its float engine was never run: what was scored is the graph.
    float_title = "float graph, no engine run" if before.file.simulated else f"{float_name} engine"
    for name, title, scores in (
        ("reference_accuracy", f"{metric}, FP32 reference", reference),
        ("float_accuracy", f"{metric}, {float_title}", before),
        ("int8_accuracy", f"{metric}, INT8{', simulated' if after.file.simulated else ''}", after),
    ):
        right = int(scores.right.sum())
        low, high = stats.wilson_interval(right, n)
        conditions = f"{n:,} images · {scores.file.how}{' · simulated' if scores.file.simulated else ''}"
        if scores is after:
            conditions += f" · {coverage}"
        bounds = (100 * low, 100 * high)
        yield _figure("accuracy", name, title, 100 * right / n, "%", f"{conditions} · 95 % Wilson interval", bounds)
    b, c = discordant(reference, after)
    low, high = stats.tango_bounds(b, c, n)
    paired = f"FP32 reference against INT8, the same {n:,} images"
    yield _figure(
        "accuracy", "accuracy_drop", "Accuracy drop", 100 * (b - c) / n, "points",
        f"{paired} · one-sided 95 % Tango bounds", (100 * low, 100 * high),
    )  # fmt: skip
    yield _figure("accuracy", "discordant", "Exactly one is right (disc)", 100 * (b + c) / n, "%", paired)
    yield _figure("accuracy", "only_float_right", "Only float is right (b)", b, "images", paired)
    yield _figure("accuracy", "only_int8_right", "Only INT8 is right (c)", c, "images", paired)
    mid_p = stats.mcnemar_mid_p(b, c)
    yield _figure(
        "accuracy", "mcnemar_mid_p", "McNemar mid-p", mid_p, "p", f"{paired} · for information, never decides"
    )
    agreement = 100 * float(np.mean(reference.predicted == after.predicted))
    yield _figure("accuracy", "agreement", "Same answer as FP32", agreement, "%", paired)
    sqnr = stats.sqnr(*stats.powers(reference.logits, after.logits))
    yield _figure("accuracy", "logits_sqnr_median", "SQNR of the logits, median image", sqnr.median, "dB", paired)
    yield _figure("accuracy", "logits_sqnr", "SQNR of the logits, pooled", sqnr.pooled, "dB", paired)


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


def _beside_engine(measured: Measured) -> Iterator[Figure]:
    if isinstance(measured.answers, Detected):
        yield from split_figures(measured.answers, measured.speed, measured.float_ms, measured.int8_ms)


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
