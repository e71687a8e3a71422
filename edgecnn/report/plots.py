"""Plots of the HTML page: SVG fragments that take the page's font and colours, so they follow light and dark."""

from __future__ import annotations

import io
import re

import numpy as np

from edgecnn.report import ClassAccuracy, Distribution, LayerError
from edgecnn.report.detection import PrecisionRecall
from edgecnn.report.drawing import Axes, Figure, FigureCanvasSVG, mpl, shorten_name

# Drawn in these colours, then replaced by the page's variables: matplotlib knows no `var(--…)`.
INK, MUTED, GRID, FLOAT, INT8, SURFACE = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", FLOAT: "float", INT8: "int8", SURFACE: "surface"}
STYLE = {
    "svg.fonttype": "none", "font.size": 13, "font.family": "sans-serif", "text.color": INK, "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED, "xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK, "grid.color": GRID, "grid.linewidth": 0.8, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False,
    "axes.facecolor": "none", "figure.facecolor": "none", "xtick.major.size": 0, "ytick.major.size": 0,
}  # fmt: skip
WIDTH = 12.5  # inches at 72 units each: the page's column, so that a point is about a pixel
NARROW = 4.9  # the same on a telephone
PER_NAME = 0.3  # inches that a layer's name takes on its axis; where they don't fit, the worst are named


def classes_svg(classes: tuple[ClassAccuracy, ...], measure: str = "accuracy", width: float = WIDTH) -> str:
    """What `measure` is of each class, percent, float and INT8 joined by a line."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": f"classes {width}"}):
        figure, axes = _axes(1.25 + 0.34 * len(classes), width)
        rows = np.arange(len(classes))
        plain, int8 = ([getattr(one, key) for one in classes] for key in ("float_accuracy", "int8_accuracy"))
        axes.hlines(rows, plain, int8, color=GRID, linewidth=4, capstyle="round")
        axes.plot(
            plain,
            rows,
            "o",
            color=SURFACE,
            markeredgecolor=FLOAT,
            markeredgewidth=2.2,
            markersize=11,
            label="FP32",
            clip_on=False,
        )
        axes.plot(int8, rows, "o", color=INT8, markersize=7.5, label="INT8", clip_on=False)
        axes.set_yticks(rows, [shorten_name(one.name, 22 if width == WIDTH else 12) for one in classes])
        low, high = min(*plain, *int8), max(*plain, *int8)
        margin = max(1.0, 0.08 * (high - low))  # also below 0 and above 100: a marker is not to lie on a name
        axes.set_xlim(low - margin, high + margin)
        axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= 100])
        axes.set_xlim(low - margin, high + margin)
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.set_xlabel(f"{measure}, %")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        _legend(axes)
        return _svg(figure, f"{measure[0].upper()}{measure[1:]} of each class, FP32 and INT8")


def precision_svg(curve: PrecisionRecall, width: float = WIDTH) -> str:
    """Precision over recall, FP32 and INT8."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": f"precision {width}"}):
        figure, axes = _axes(4.2, width)
        recalls = np.linspace(0, 1, len(curve.float_precision))
        for name, precision, color, thick in (
            ("FP32", curve.float_precision, FLOAT, 4.0), ("INT8", curve.int8_precision, INT8, 1.8),
        ):  # fmt: skip
            label = f"{name}, mAP{100 * curve.iou:.0f} {100 * float(np.mean(precision)):.1f} %"
            axes.plot(recalls, precision, color=color, linewidth=thick, label=label)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel(f"recall at IoU {curve.iou:g}")
        axes.set_ylabel("precision, mean of the classes" if width == WIDTH else "precision")
        axes.tick_params(axis="y", labelcolor=MUTED)
        axes.grid()
        _legend(axes, 2 if width == WIDTH else 1)  # the names are long
        return _svg(figure, "Precision over recall, FP32 and INT8")


def latency_svg(distribution: Distribution, width: float = WIDTH) -> str:
    """Histograms of both timings over the same axis, medians marked."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": f"latency {width}"}):
        figure, axes = _axes(3.7, width)
        edges = np.asarray(distribution.edges_ms)
        tallest = max(*distribution.first_counts, *distribution.second_counts)
        for name, counts, p50, color in (
            (distribution.first_name, distribution.first_counts, distribution.first_p50_ms, FLOAT),
            (distribution.second_name, distribution.second_counts, distribution.second_p50_ms, INT8),
        ):
            axes.stairs(counts, edges, fill=True, color=color, alpha=0.3)
            axes.stairs(
                np.where(counts, counts, np.nan), edges, color=color, linewidth=1.8, label=f"{name}, p50 {p50:.3g} ms"
            )
            axes.vlines(p50, 0, 1.06 * tallest, color=color, linewidth=1.6, linestyle=(0, (4, 3)))
        axes.set_ylim(0, 1.1 * tallest)
        axes.set_xlim(edges[0], edges[-1])
        wide = "milliseconds per inference; the last bin holds all slower ones"
        axes.set_xlabel(wide if width == WIDTH else "ms per inference; last bin: all slower")
        axes.set_ylabel("runs")
        axes.tick_params(axis="y", labelcolor=MUTED)
        axes.grid(axis="y")
        _legend(axes, 2 if width == WIDTH else 1)  # the names are long
        return _svg(figure, "Latency of both models")


def layers_svg(layers: tuple[LayerError, ...], width: float = WIDTH) -> str:
    """SQNR of each layer in the order of the graph; a layer that stays float has a ring at zero."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": f"layers {width}"}):
        figure, axes = _axes(4.8, width)
        columns = np.arange(len(layers))
        measured = np.array([layer.sqnr_db if layer.int8 and layer.sqnr_db is not None else np.nan for layer in layers])
        axes.bar(columns, measured, color=INT8, width=0.68, label="INT8")
        in_float = [column for column, layer in enumerate(layers) if not layer.int8]
        if in_float:
            axes.plot(
                in_float, np.zeros(len(in_float)), "o", color=SURFACE, markeredgecolor=FLOAT, markeredgewidth=2.0,
                markersize=8, label="stays float", clip_on=False,
            )  # fmt: skip
        named = _choose_named(measured, int(width / PER_NAME))
        names = [shorten_name(layers[column].name, 22) for column in named]
        axes.set_xticks(named, names, rotation=55, ha="right", rotation_mode="anchor")
        axes.tick_params(axis="x", labelsize=11.5, labelcolor=INK)
        if len(named) < len(layers):
            order = " in the order of the graph" if width == WIDTH else ""
            axes.set_xlabel(f"{len(layers)} layers{order}; the worst are named")
        axes.set_xlim(-0.7, len(layers) - 0.3)
        axes.set_ylim(bottom=min(0.0, float(np.nanmin(measured))) if np.isfinite(measured).any() else 0.0)
        axes.set_ylabel("SQNR, dB")
        axes.tick_params(axis="y", labelcolor=MUTED)
        axes.grid(axis="y")
        _legend(axes)
        return _svg(figure, "Quantization error of each layer")


def _choose_named(measured: np.ndarray, most: int) -> list[int]:
    """Columns (at most `most`, in order) whose names are shown: all, or the worst that don't lie on each other."""
    count = len(measured)
    if count <= most:
        return list(range(count))
    apart, found = count / most, list[int]()
    for column in np.argsort(np.where(np.isfinite(measured), measured, np.inf), kind="stable"):
        if not np.isfinite(measured[column]) or len(found) >= most // 2:
            break
        if all(abs(int(column) - other) >= apart for other in found):
            found.append(int(column))
    return sorted(found)


def _axes(height: float, width: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _legend(axes: Axes, columns: int = 2) -> None:
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, borderaxespad=0.2, handletextpad=0.5)


def _svg(figure: Figure, title: str) -> str:
    """The figure as an inline fragment: no prolog, metadata or address; ids that nothing refers to are dropped."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    names = {name for pair in used for name in pair if name}
    text = re.sub(r'\sid="([^"]*)"', lambda found: found.group(0) if found.group(1) in names else "", text)
    text = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 var(--font)", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{title}">{rest}'.strip()
