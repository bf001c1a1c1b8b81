"""The figure: operations in a row, seconds and memory against the line's length, and who is faster at once."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments.bottleneck.judging import PAPERS, line_of, ratios
from experiments.bottleneck.judging import widths as all_widths
from experiments.bottleneck.layers import LAYERS

COLOURS = {  # Okabe & Ito's, which all readers can tell apart
    "LSTM": "#000000",
    "GRU": "#999999",
    "diagonal LSTM": "#0072B2",
    "minLSTM": "#56B4E9",
    "mLSTM": "#009E73",
    "attention": "#D55E00",
    "convolution": "#E69F00",
}
PANELS = (
    ("depth", "operations in a row, forward", 1),
    ("seconds", "ms a training step", 1e3),
    ("bytes", "MB of a training step", 1e-6),
)
APART = 2.5  # factor between positions that are both named


def draw(result: dict) -> Figure:
    measurements = result["measurements"]
    widths = [width for width in all_widths(measurements) if width > 1]
    size = (10, 2.1 * len(widths) + 1.1)
    figure, axes = plt.subplots(len(widths), 4, figsize=size, squeeze=False, layout="constrained")
    for row, width in zip(axes, widths, strict=True):
        for axis, (name, label, unit) in zip(row, PANELS, strict=False):
            for layer in LAYERS:
                _line(axis, layer, line_of(measurements, layer, width), name, unit)
            axis.set_ylabel(label)
        _growth(row[0], measurements, width)
        row[0].set_ylabel(f"width {width}\n{PANELS[0][1]}")
        shown = [1, width] if width == widths[0] else [width]
        _ratios(row[3], measurements, shown)
        for axis in row:
            _logarithmic(axis)
    for axis in axes[-1]:
        axis.set_xlabel("positions T")
    figure.suptitle(_what(measurements), fontsize=9)
    handles: dict[str, Any] = {}
    for axis in axes.ravel():
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    names = [*(name for name in LAYERS if name in handles), *(name for name in handles if name not in LAYERS)]
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncol=5, fontsize=7)
    return figure


def _what(measurements: dict) -> str:
    """Where, and of how many calls."""
    rows = [row for row in measurements["rows"] if "failed" not in row]
    calls = [row["calls"] for row in rows]
    if not rows:
        return f"{measurements['device']}: every layer failed"
    many = " to ".join(map(str, sorted({min(calls), max(calls)})))
    return (
        f"One layer, float32, a batch of {rows[0]['batch']}, {measurements['device']}; medians "
        f"{'and quartiles ' * any('quartiles' in row for row in rows)}of {many} training steps"
    )


def _growth(axis: Any, measurements: dict, width: int) -> None:
    """How numbers grow as T, as log T and not at all."""
    rows, others = line_of(measurements, "LSTM", width), line_of(measurements, "attention", width)
    if not rows or not others:
        return
    steps, few = np.array([row["steps"] for row in rows]), others[0]["depth"]
    guides = {"T": 2 * rows[0]["depth"] * steps / steps[0], "log T": 2.5 * few * np.log(steps) / np.log(steps[0])}
    for label, values in (guides | {"constant": np.full(len(steps), few / 2)}).items():
        axis.plot(steps, values, color="0.6", linewidth=0.8)
        axis.annotate(label, (steps[0], values[0]), (0, 2), textcoords="offset points", fontsize=6)


def _ratios(axis: Any, measurements: dict, widths: list[int]) -> None:
    """Of layers at once over the same step by step; of attention over the LSTM; the papers' numbers as stars."""
    for width in widths:
        for layer in LAYERS:
            other = LAYERS[layer].same or {"attention": "LSTM"}.get(layer)
            if other is None:
                continue
            label = f"{layer}, one unit" if width == 1 else None
            told = [{"steps": steps, "ratio": ratio} for steps, ratio in ratios(measurements, layer, other, width)]
            _line(axis, layer, told, "ratio", 1, label)
            if told and layer in PAPERS and (layer == "GRU, Newton") == (width == 1):
                colour = COLOURS[LAYERS[layer].same or layer]
                label = "of the papers, on GPUs"
                axis.plot(*zip(*PAPERS[layer].items(), strict=True), "*", color=colour, markersize=8, label=label)
    axis.axhline(1, color="0.6", linewidth=0.8)
    axis.set_ylabel("speed over step by step;\nof attention: over the LSTM")


def _line(axis: Any, layer: str, rows: list[dict], name: str, unit: float, label: str | None = None) -> None:
    """With quartiles, where a row has them."""
    if not rows:
        return
    base = LAYERS[layer].same
    dashes = "-" if base is None else ":" if "diagonal Newton" in layer else "-." if LAYERS[layer].cudnn else "--"
    look = {"color": COLOURS[base or layer], "markersize": 3.5, "linewidth": 1.3, "label": label or layer}
    marker = "D" if LAYERS[layer].cudnn else "o" if base is None else "s"
    fill = "none" if label else "full"
    axis.plot([r["steps"] for r in rows], [unit * r[name] for r in rows], dashes, marker=marker, fillstyle=fill, **look)
    if name == "seconds":
        spread = [row for row in rows if "quartiles" in row]
        low, high = ([unit * row["quartiles"][k] for row in spread] for k in (0, 1))
        axis.vlines([row["steps"] for row in spread], low, high, color=look["color"], linewidth=0.9)


def _logarithmic(axis: Any) -> None:
    axis.set(xscale="log", yscale="log")
    named: list[int] = []
    for at in sorted({int(x) for line in axis.lines for x in line.get_xdata() if x > 1}, reverse=True):
        named += [at] * (not named or at * APART <= named[-1])
    axis.set_xticks(named, [f"{at:,}" for at in named], fontsize=7)
    axis.xaxis.set_minor_locator(NullLocator())
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 50 * low else (1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.yaxis.set_minor_locator(NullLocator())
