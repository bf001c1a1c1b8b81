"""The figure: operations in a row, seconds and memory against the line's length, and who is faster at once."""

from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments.bottleneck.judging import line_of, speed_ups
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


def draw(result: dict) -> Figure:
    measurements = result["measurements"]
    widths = sorted({row["width"] for row in measurements["rows"]} - {1})
    figure, axes = plt.subplots(len(widths), 4, figsize=(10.4, 2.5 * len(widths) + 0.7), squeeze=False)
    for row, width in zip(axes, widths, strict=True):
        for axis, (name, label, unit) in zip(row, PANELS, strict=False):
            for layer in LAYERS:
                rows = line_of(measurements, layer, width)
                _line(axis, layer, [r["steps"] for r in rows], [unit * r[name] for r in rows])
            axis.set_ylabel(label)
        _ratios(row[3], measurements, width)
        for axis in row:
            _logarithmic(axis, [r["steps"] for r in line_of(measurements, "LSTM", width)])
            axis.set_title(f"width {width}")
    handles: dict[str, Any] = {}
    for axis in axes.ravel():
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    names = [name for name in LAYERS if name in handles]
    figure.tight_layout(rect=(0, 0.6 / figure.get_size_inches()[1], 1, 1))
    figure.legend([handles[name] for name in names], names, loc="lower center", ncol=7, fontsize=7)
    return figure


def _ratios(axis: Any, measurements: dict, width: int) -> None:
    for layer in LAYERS:
        told = sorted((steps, ratio) for at, steps, ratio in speed_ups(measurements, layer) if at == width)
        if LAYERS[layer].same:
            _line(axis, layer, [steps for steps, _ in told], [ratio for _, ratio in told])
    lstm = {r["steps"]: r["seconds"] for r in line_of(measurements, "LSTM", width)}
    rows = line_of(measurements, "attention", width)
    _line(axis, "attention", [r["steps"] for r in rows], [lstm[r["steps"]] / r["seconds"] for r in rows])
    axis.axhline(1, color="0.6", linewidth=0.8)
    axis.set_ylabel("speed over step by step;\nof attention: over the LSTM")


def _line(axis: Any, layer: str, steps: list[int], values: list[float]) -> None:
    if not steps:
        return
    base = LAYERS[layer].same
    dashes = "-" if base is None else ":" if "diagonal Newton" in layer else "--"
    marker = "o" if base is None else "s"
    axis.plot(
        steps, values, dashes, color=COLOURS[base or layer], marker=marker, markersize=3.5, linewidth=1.3, label=layer
    )


def _logarithmic(axis: Any, steps: list[int]) -> None:
    axis.set(xscale="log", yscale="log", xlabel="positions T")
    axis.set_xticks(steps, [f"{at:,}" for at in steps], fontsize=6.5, rotation=35)
    axis.xaxis.set_minor_locator(NullLocator())
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 50 * low else (1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.yaxis.set_minor_locator(NullLocator())
