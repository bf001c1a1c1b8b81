"""The figure: iterations of untrained lines, and the dial's two prices, along time above and along depth below."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments.fit import counted
from experiments.gradient_flow import FLOOR

COLOURS = {"plain RNN": "#0072B2", "LSTM": "#D55E00", "plain net": "#0072B2", "residual net": "#009E73"}
MARKERS = "o^sDv"
TICKS = (0.01, 0.1, 1)
LEAST = float(np.log10(FLOOR))  # of a gain, which float32 can tell
PANELS = (
    ("test_error", "test error, %"),
    ("log10_gain", "log10 gain of the gradient"),
    ("exponent", "exponent a step"),
    ("iterations", "iterations"),
)
DIALS = {"time": "the dial of LSTMs along time", "depth": "the dial of highway nets along depth"}
EXPONENTS = SymLogNorm(0.03, vmin=-1, vmax=1)


def draw(result: dict) -> Figure:
    measurements, config = result["measurements"], result["config"]
    figure, axes = plt.subplots(2, 6, figsize=(13.5, 5.2), layout="constrained")
    for row, axis in zip(axes, DIALS, strict=True):
        untrained = [r for r in measurements["untrained"] if r["axis"] == axis]
        for panel, drawn in zip(row, (_against_exponent, _against_length), strict=False):
            if untrained:
                drawn(panel, untrained)
            else:
                panel.text(0.5, 0.5, "not run", ha="center", transform=panel.transAxes)
        row[0].set_ylabel(f"along {axis}: iterations")
        dial = [r for r in measurements["dial"] if r["axis"] == axis]
        for panel, (name, label) in zip(row[2:], PANELS, strict=True):
            _dial(panel, dial, name)
            panel.set(ylabel=label, xscale="log")
            panel.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
            panel.xaxis.set_minor_locator(NullLocator())
        row[2].set_title(DIALS[axis], loc="left")
        _cells(row[5], [dial[0]["length"]])
    for panel in axes[1, 2:]:
        panel.set_xlabel("1 - mean keep at the start")
    axes[0, 2].legend(fontsize=8)
    bar = figure.colorbar(plt.cm.ScalarMappable(EXPONENTS, "coolwarm"), ax=axes[:, 1], aspect=40, pad=0.02)
    bar.set_ticks([-1, -0.1, 0, 0.1, 1], labels=["-1", "-0.1", "0", "0.1", "1"], fontsize=7)
    bar.ax.set_title("exponent", fontsize=7)
    figure.suptitle(
        f"{config['data']}, hidden size {config['hidden_size']}, lines solved for a batch of {config['batch']}; "
        f"the dial's trained over {config['steps']} cells, {config['training']:,} steps of {config['images']} images; "
        f"{counted(result['seeds'], 'seed')}: mean, least and greatest",
        fontsize=9,
    )
    return figure


def _against_exponent(panel: Any, rows: list[dict]) -> None:
    lengths = sorted({row["length"] for row in rows})
    for marker, length in zip(MARKERS, lengths, strict=False):
        for kind in dict.fromkeys(row["kind"] for row in rows):
            these = [row for row in rows if (row["kind"], row["length"]) == (kind, length)]
            x, y = (np.concatenate([row[name] for row in these]) for name in ("exponent", "iterations"))
            panel.plot(x, y, marker, color=COLOURS[kind], markersize=4, alpha=0.8, label=f"{kind}, {length}")
    panel.axvline(0, color="0.5", linewidth=0.8)
    panel.set(xlabel="exponent a step", yscale="log")
    panel.set_xscale("symlog", linthresh=0.1)
    panel.set_xticks([-1, -0.1, 0, 0.1], ["-1", "-0.1", "0", "0.1"])
    _cells(panel, lengths)
    _plain(panel)
    panel.annotate("threshold", (0, panel.get_ylim()[0]), (2, 2), textcoords="offset points", fontsize=6.5)
    panel.set_ylim(top=panel.get_ylim()[1] * 15)
    panel.legend(
        fontsize=6.5, ncol=2, loc="upper left", columnspacing=0.6, handletextpad=0.1, title="cells", title_fontsize=6.5
    )


def _against_length(panel: Any, rows: list[dict]) -> None:
    """Of each kind and gain the mean of its seeds, coloured by the exponent of the longest line."""
    colour = plt.get_cmap("coolwarm")
    for marker, kind in zip(MARKERS, dict.fromkeys(row["kind"] for row in rows), strict=False):
        for gain in dict.fromkeys(row["gain"] for row in rows):
            line = sorted((r for r in rows if (r["kind"], r["gain"]) == (kind, gain)), key=lambda row: row["length"])
            panel.plot(
                [row["length"] for row in line],
                [np.mean(row["iterations"]) for row in line],
                marker=marker,
                markersize=3.5,
                linewidth=1,
                color=colour(EXPONENTS(np.mean(line[-1]["exponent"]))),
                label=kind if gain == rows[0]["gain"] else None,
            )
    lengths = sorted({row["length"] for row in rows})
    panel.plot(lengths, lengths, color="0.5", linestyle=":", linewidth=1)
    panel.set(xlabel="cells", xscale="log", yscale="log")
    panel.set_xticks(lengths, [str(length) for length in lengths])
    panel.xaxis.set_minor_locator(NullLocator())
    _plain(panel)
    panel.legend(fontsize=6.5, loc="upper left")


def _dial(panel: Any, rows: list[dict], name: str) -> None:
    x = np.array([1 - np.mean(row["start"]["keep"]) for row in rows])
    for when, fill, label in (("start", "none", "at the start"), ("trained", "full", "after training")):
        if name == "test_error" and when == "start":
            continue
        values = np.array([100 * np.array(row[name]) if name == "test_error" else row[when][name] for row in rows])
        mean = values.mean(1)
        bars = mean - values.min(1), values.max(1) - mean
        colour = "#D55E00" if when == "trained" else "0.35"
        panel.errorbar(
            x, mean, bars, color=colour, marker="o", fillstyle=fill, markersize=4.5, linewidth=1.2, label=label
        )
        if name == "log10_gain" and values.min() <= LEAST:
            panel.axhline(LEAST, color="0.5", linestyle=":", linewidth=1)
            panel.annotate("float32's least", (x.min(), LEAST), (0, 2), textcoords="offset points", fontsize=6.5)
    if name == "test_error":  # whose legend is that of all
        panel.plot([], [], color="0.35", marker="o", fillstyle="none", label="at the start")
    if name == "iterations":
        panel.set_yscale("log")
        _plain(panel)


def _cells(panel: Any, lengths: list[int]) -> None:
    """As many iterations as cells always suffice."""
    for length in lengths:
        panel.axhline(length, color="0.5", linestyle=":", linewidth=1)


def _plain(panel: Any) -> None:
    """Numbers in full along a logarithmic axis."""
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())
