"""The figure: iterations against the exponent, and the dial's two prices, along time above and along depth below."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

COLOURS = {"plain RNN": "#0072B2", "LSTM": "#D55E00", "plain net": "#0072B2", "residual net": "#009E73"}
MARKERS = "o^sDv"
TICKS = (0.003, 0.01, 0.03, 0.1, 0.3, 1)
PANELS = (
    ("test_error", "test error, %"),
    ("log10_gain", "log10 gain of the gradient"),
    ("exponent", "exponent a step"),
    ("iterations", "iterations"),
)


def draw(result: dict) -> Figure:
    measurements = result["measurements"]
    figure, axes = plt.subplots(2, 5, figsize=(15, 6.2))
    for row, axis in zip(axes, ("time", "depth"), strict=True):
        _against_exponent(row[0], [r for r in measurements["untrained"] if r["axis"] == axis])
        rows = [r for r in measurements["dial"] if r["axis"] == axis]
        for panel, (name, label) in zip(row[1:], PANELS, strict=True):
            _dial(panel, rows, name)
            panel.set(xlabel="1 - mean keep at the start", ylabel=label, xscale="log", title=f"the dial along {axis}")
            panel.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
            panel.xaxis.set_minor_locator(NullLocator())
        row[4].axhline(rows[0]["length"], color="0.5", linestyle=":", linewidth=1)
        row[0].set_title(f"untrained, along {axis}")
    axes[0, 1].legend(fontsize=8)
    figure.tight_layout()
    return figure


def _against_exponent(panel: Any, rows: list[dict]) -> None:
    lengths = sorted({row["length"] for row in rows})
    for marker, length in zip(MARKERS, lengths, strict=False):
        panel.axhline(length, color="0.5", linestyle=":", linewidth=1)
        for kind in dict.fromkeys(row["kind"] for row in rows):
            these = [row for row in rows if (row["kind"], row["length"]) == (kind, length)]
            x, y = (np.concatenate([row[name] for row in these]) for name in ("exponent", "iterations"))
            panel.plot(x, y, marker, color=COLOURS[kind], markersize=4, alpha=0.8, label=f"{kind}, {length}")
    panel.axvline(0, color="0.5", linewidth=0.8)
    panel.set(xlabel="exponent a step", ylabel="iterations", yscale="log")
    panel.set_xscale("symlog", linthresh=0.1)
    if not rows:
        panel.text(0.5, 0.5, "not run", ha="center", transform=panel.transAxes)
        return
    panel.set_ylim(top=panel.get_ylim()[1] * 12)
    panel.legend(
        fontsize=6.5, ncol=2, loc="upper left", columnspacing=0.6, handletextpad=0.1, title="cells", title_fontsize=6.5
    )


def _dial(panel: Any, rows: list[dict], name: str) -> None:
    x = np.array([1 - np.mean(row["start"]["keep"]) for row in rows])
    for when, fill, label in (("start", "none", "at the start"), ("trained", "full", "after training")):
        if name == "test_error" and when == "start":
            continue
        values = [100 * np.array(row[name]) if name == "test_error" else np.array(row[when][name]) for row in rows]
        mean, deviation = np.array([v.mean() for v in values]), np.array([v.std() for v in values])
        colour = "#D55E00" if when == "trained" else "0.35"
        panel.errorbar(
            x, mean, deviation, color=colour, marker="o", fillstyle=fill, markersize=4.5, linewidth=1.2, label=label
        )
    if name == "test_error":  # whose legend is that of all
        panel.plot([], [], color="0.35", marker="o", fillstyle="none", label="at the start")
