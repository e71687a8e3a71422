"""The report as one self-contained HTML page: no script, no font, no address outside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from edgecnn.report import Check, ClassAccuracy, Figure, LayerError, Report, wording

MOST_CLASSES = 24  # in the plot; the table has them all
MOST_ROWS = 40  # layers in the open table; all of them are in report.json


@dataclass(frozen=True)
class Tile:
    """One headline number at the top of the page."""

    title: str
    value: str
    below: str


@dataclass(frozen=True)
class Row:
    """A figure in its table; `conditions` without what the whole table shares or the row above has said."""

    figure: Figure
    conditions: str


@dataclass(frozen=True)
class FigureTable:
    """The figures of one group and the conditions that all of them share."""

    rows: tuple[Row, ...]
    shared: str


@dataclass(frozen=True)
class Scale:
    """Where a check's numbers lie on its little axis, in percent of its width."""

    measured: float
    lower: float | None
    upper: float | None
    limit: float
    good_from: float
    good_to: float


@dataclass(frozen=True)
class Split:
    """Where the time of one image goes with one model: (step, milliseconds, percent of the longer bar)."""

    name: str
    total_ms: float
    steps: tuple[tuple[str, float, float], ...]


def as_html(report: Report, pictures: Mapping[int, str] | None = None) -> str:
    """The whole page. `pictures`: `data:` addresses of the images that changed, by their numbers."""
    # Autoescape is what keeps a class or layer name from becoming markup.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string((resources.files("edgecnn.report") / "page.html").read_text(encoding="utf-8"))
    tables = {group: _rows([one for one in report.figures if one.group == group]) for group in wording.GROUPS}
    return page.render(
        report=report,
        words=wording,
        tables=tables,
        sizes=[one for one in report.figures if one.group == "size"],
        plotted_classes=_most_changed(report.classes),
        tiles=_tiles(report),
        scales={check.name: scale for check in report.checks if (scale := _scale(check))},
        conditions=wording.condition_rows(report.conditions),
        plots=_plots(report),
        worst=_worst(report.layers),
        float_layers=[layer for layer in report.layers if not layer.int8],
        figure=report.figure,
        pictures=pictures or {},
        splits=_splits(report),
    )


def _plots(report: Report) -> dict[str, Markup] | None:
    """The SVG fragments by name, or None where matplotlib is not installed."""
    try:
        from edgecnn.report import plots
    except ImportError:
        return None
    found = {}
    measure = f"AP by {wording.metric_text(report.metric)}" if report.curve else "accuracy"
    for form, width in (("", plots.WIDTH), ("-narrow", plots.NARROW)):
        if report.classes:
            found[f"classes{form}"] = plots.classes_svg(_most_changed(report.classes), measure, width)
        if report.curve:
            found[f"precision{form}"] = plots.precision_svg(report.curve, width)
        if report.distribution:
            found[f"latency{form}"] = plots.latency_svg(report.distribution, width)
        if any(layer.sqnr_db is not None for layer in report.layers):
            found[f"layers{form}"] = plots.layers_svg(report.layers, width)
    return {name: Markup(svg) for name, svg in found.items()}  # matplotlib escapes its texts


def _splits(report: Report) -> list[Split]:
    """Letterbox, engine and NMS of both models, where all were measured on one machine."""
    found = []
    for key in ("float", "int8"):
        whole, engine = report.figure(f"{key}_image_ms"), report.figure(f"{key}_p50_ms")
        before, behind = report.figure("preprocess_p50_ms"), report.figure("nms_p50_ms")
        if not (whole and engine and before and behind and whole.value and engine.value and before.value):
            return []
        title = engine.title.split()[0]
        steps = [("letterbox", before.value), (f"engine, {title}", engine.value)]
        nms = whole.value - before.value - engine.value  # on this model's own answers
        found.append((title, whole.value, steps + ([("NMS", nms)] if behind.value is not None else [])))
    longest = max((total for _, total, _ in found), default=1.0)
    return [
        Split(name, total, tuple((step, ms, round(100 * ms / longest, 2)) for step, ms in steps))
        for name, total, steps in found
    ]


def _tiles(report: Report) -> list[Tile]:
    tiles = []
    reference = report.figure("reference_accuracy") or report.figure("baseline_accuracy")
    if (int8 := report.figure("int8_accuracy")) and reference:
        beside = "FP32" if report.kind == "build" else "baseline"
        below = f"{beside} {wording.number_text(reference.value, '%')}"
        if report.kind == "build" and report.conditions.simulated:
            below += " · simulated"
        tiles.append(Tile(f"{wording.metric_text(report.metric)}, INT8", wording.number_text(int8.value, "%"), below))
    if drop := report.figure("accuracy_drop"):
        tiles.append(_tile(drop, "95 % bounds " + wording.bounds_text(drop.lower, drop.upper, "points")))
    if speedup := report.figure("speedup"):
        float_p50, int8_p50 = report.figure("float_p50_ms"), report.figure("int8_p50_ms")
        below = "no device to time it on"
        if float_p50 and int8_p50:
            float_name = float_p50.title.split()[0]
            times = [
                wording.number_text(p50.value, "ms").replace(" ", "\N{NO-BREAK SPACE}") for p50 in (int8_p50, float_p50)
            ]
            bounds = wording.bounds_text(speedup.lower, speedup.upper, "x")
            below = f"95 % bounds {bounds} · p50 {times[0]}, {float_name} {times[1]}"
        tiles.append(_tile(speedup, below))
    if ratio := report.figure("latency_ratio"):
        tiles.append(
            _tile(ratio, "95 % bounds " + wording.bounds_text(ratio.lower, ratio.upper, "x") if ratio.value else "")
        )
    size, plain = report.figure("int8_size"), report.figure("float_size")
    if size and plain and size.value and plain.value:
        tiles.append(_tile(size, f"{plain.value / size.value:.1f} times smaller than float"))
    return tiles


def _tile(figure: Figure, below: str) -> Tile:
    return Tile(
        figure.title, wording.number_text(figure.value, figure.unit) if figure.value is not None else "–", below
    )


def _scale(check: Check) -> Scale | None:
    """The axis of a check's little chart: from zero or the lowest number to the highest, with room at both ends."""
    if check.measured is None or check.limit is None:
        return None
    ratio = check.unit == "x"
    numbers = [check.measured, check.limit, *(bound for bound in (check.lower, check.upper) if bound is not None)]
    low, high = min(numbers + ([] if ratio else [0.0])), max(numbers)
    room = 0.12 * (high - low) or 1.0
    low, high = (low - room if low < 0 or ratio else low), high + room

    def place(value: float | None) -> float | None:
        return None if value is None else round(100 * (value - low) / (high - low), 2)

    measured, limit = place(check.measured), place(check.limit)
    assert measured is not None
    assert limit is not None
    at_least = check.name.startswith("min_")
    return Scale(
        measured,
        place(check.lower),
        place(check.upper),
        limit,
        limit if at_least else 0.0,
        100.0 if at_least else limit,
    )


def _rows(figures: list[Figure]) -> FigureTable:
    parts = [figure.conditions.split(" · ") for figure in figures]
    shared = [part for part in parts[0] if all(part in others for others in parts)] if len(parts) > 1 else []
    rows, above = [], ""
    for figure, own in zip(figures, parts, strict=True):
        text = " · ".join(part for part in own if part not in shared)
        rows.append(Row(figure, "" if text == above else text))
        above = text
    return FigureTable(tuple(rows), " · ".join(shared))


def _most_changed(classes: tuple[ClassAccuracy, ...]) -> tuple[ClassAccuracy, ...]:
    """All classes in their order; of many, those whose accuracy moved most, the worst first."""
    if len(classes) <= MOST_CLASSES:
        return classes
    moved = [one for one in classes if one.int8_accuracy != one.float_accuracy] or classes
    most = sorted(moved, key=lambda one: -abs(one.int8_accuracy - one.float_accuracy))[:MOST_CLASSES]
    return tuple(sorted(most, key=lambda one: one.int8_accuracy - one.float_accuracy))


def _worst(layers: tuple[LayerError, ...]) -> list[LayerError]:
    """Layers with the largest error first; those without a number last."""
    return sorted(layers, key=lambda layer: (layer.sqnr_db is None, layer.sqnr_db or 0.0))[:MOST_ROWS]
