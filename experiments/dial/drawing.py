"""The figure, from the published numbers alone."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.dial.judging import sequences_until_solved
from experiments.dial.order import STRETCH
from experiments.fit import counted

LOOKS = {  # by the first word of a setting: colour, marker, where its number stands, in words
    "identity": ("black", "s", (0, 6, "center"), "identity: keep 1"),
    "constant": ("#0072B2", "o", (-5, 3, "right"), "constant: what is kept / added times"),
    "exclusive": ("#D55E00", "^", (0, 6, "center"), "exclusive gate, its bias at the start"),
    "shortcut": ("#009E73", "D", (5, -8, "left"), "shortcut-only gate, its bias at the start"),
    "1997": ("black", "s", (0, 6, "center"), "LSTM of 1997: keep 1"),
    "bias": ("#0072B2", "o", (5, 3, "left"), "LSTM, its forget bias at the start"),
    "GRU": ("#CC79A7", "v", (-5, -8, "right"), "GRU"),
}
PAPER = {  # He et al. 2016, Table 1: test error of 110 layers, %
    "identity": 6.61,
    "0.5/0.5": 12.35,
    "exclusive:-6": 8.70,
    "shortcut:0": 12.86,
    "shortcut:-6": 6.91,
}
FAILED = "0.5/1"  # in the same table
RATIO = {"bias:5": 1.0, "bias:1": 3.0}  # Gers et al. 2000: sequences over those of 1997, about
NONE = 3e-5  # where a keep of 1 stands, for zero has no logarithm
DEEPEST = -12.0  # of the gain: what is below is drawn here


def draw(result: dict) -> Figure:
    figure, axes = plt.subplot_mosaic(
        [["depth error", "time error"], ["depth gain", "time gain"], ["words", "until"]],
        figsize=(9, 9.5),
        layout="constrained",
        gridspec_kw={"height_ratios": (1, 1, 0.9)},
    )
    measurements, config = result["measurements"], result["config"]
    for name in ("depth", "time"):
        rows = [row for row in measurements["rows"] if row["axis"] == name]
        errors(axes[f"{name} error"], rows)
        gains(axes[f"{name} gain"], rows)
    until_solved(axes["until"], measurements)
    axes["depth error"].set_title(
        f"along depth: residual net of {config['depth']} layers, {config['steps']} steps of {config['batch']}\n"
        f"{result['data']['name']}, {config['pixels']} x {config['pixels']} pixels, width {config['width']}",
        fontsize=9,
    )
    axes["time error"].set_title(
        f"along time: temporal order, {config['length']} to {config['length'] * 11 // 10} symbols, 8 classes\n"
        f"hidden size {config['hidden_size']}, {config['stretches'] * STRETCH:,} sequences by Adam",
        fontsize=9,
    )
    words(axes["words"], result)
    return figure


def kind(setting: str) -> str:
    return "constant" if "/" in setting else setting.split(":")[0]


def number(setting: str) -> str:
    """What is written beside a point."""
    return setting if "/" in setting else setting.partition(":")[2].replace("-", "−")


def opened(row: dict, when: str) -> np.ndarray:
    """1 - mean keep, of each seed."""
    return np.maximum(1 - np.array([each["keep"] for each in row[when]]), NONE)


def points(axis: Axes, rows: list[dict], values: Any) -> None:
    """Of each setting values(row), one for each seed: the mean, from the least to the greatest, and its number."""
    for row in rows:
        colour, marker, (right, up, side), _ = LOOKS[kind(row["setting"])]
        y, at = np.array(values(row)), (opened(row, "start").mean(), np.mean(values(row)))
        ends = [[at[1] - y.min()], [y.max() - at[1]]]
        axis.errorbar(*at, ends, fmt=marker, color=colour, markersize=5, elinewidth=1)
        up = -9 if row["setting"] == FAILED else up  # it stands where 0.5/0.5 does
        words = {"fontsize": 6.5, "color": colour, "ha": side}
        axis.annotate(number(row["setting"]), at, (right, up), textcoords="offset points", **words)


def scaled(axis: Axes, rows: list[dict]) -> None:
    """The scale that all share, with 1/T on it."""
    steps = rows[0]["steps"]
    axis.set_xscale("log")
    axis.set_xlim(NONE / 1.6, 1.3)
    ticks = [NONE, 1e-4, 1e-3, 1e-2, 1e-1, 1]
    axis.set_xticks(ticks, ["0", *(f"$10^{{{round(np.log10(tick))}}}$" for tick in ticks[1:-1]), "1"])
    axis.minorticks_off()
    axis.axvline(1 / steps, color="grey", linestyle=":", linewidth=1.2)
    place = {"transform": axis.get_xaxis_transform(), "ha": "right", "va": "top"}
    axis.text(1 / steps, 0.99, f"1/T = 1/{steps} ", fontsize=7, color="grey", **place)
    axis.set_xlabel("1 − mean keep, at the start")


def errors(axis: Axes, rows: list[dict]) -> None:
    scaled(axis, rows)
    points(axis, rows, lambda row: 100 * np.array(row["error"]))
    for row in rows:
        y, colour = 100 * np.mean(row["error"]), LOOKS[kind(row["setting"])][0]
        ends = opened(row, "start").mean(), opened(row, "trained").mean()
        axis.plot(ends, (y, y), "-", color=colour, alpha=0.4, linewidth=1)
        axis.plot(ends[1], y, "|", color=colour, alpha=0.7, markersize=6)
        if row["setting"] in PAPER:
            axis.plot(ends[0], PAPER[row["setting"]], "x", color="grey", markersize=6)
        if row["setting"] == FAILED:
            axis.text(ends[0], 97, "paper: 0.5/1 fails", fontsize=6.5, color="grey", ha="center", va="top")
    if rows[0]["axis"] == "depth":
        axis.set_yscale("log")
        axis.set(ylim=(5, 100), ylabel="test error, %")
        axis.set_yticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
        axis.minorticks_off()
    else:
        axis.set(ylim=(-3, 100), ylabel="error, new sequences, %")


def gains(axis: Axes, rows: list[dict]) -> None:
    scaled(axis, rows)
    keeps = 1 - np.geomspace(NONE, 0.9999, 400)
    axis.plot(1 - keeps, (rows[0]["steps"] - 1) * np.log10(keeps), color="grey", linewidth=1.2)
    points(axis, rows, lambda row: np.maximum([each["log10_gain"] for each in row["start"]], DEEPEST))
    axis.set(ylim=(DEEPEST - 0.5, 2.5), ylabel=r"$\log_{10}$ of the gradient's gain")


def until_solved(axis: Axes, measurements: dict) -> None:
    rows = [row for row in measurements["rows"] if row["axis"] == "time"]
    until, most = sequences_until_solved(measurements), STRETCH * len(rows[0]["errors"][0])
    scaled(axis, rows)
    axis.set_yscale("log")
    axis.set(ylim=(STRETCH / 2, most * 1.6), ylabel="sequences until solved")
    points(axis, rows, lambda row: np.minimum(until[row["setting"]], most))
    axis.axhline(most, color="grey", linewidth=0.8)
    axis.text(NONE, most, "not solved by here", fontsize=6.5, color="grey", va="bottom")
    for row in rows:
        if row["setting"] in RATIO and "1997" in until and np.isfinite(np.median(until["1997"])):
            paper = RATIO[row["setting"]] * np.median(until["1997"])
            axis.plot(opened(row, "start").mean(), paper, "x", color="grey", markersize=6)


def words(axis: Axes, result: dict) -> None:
    """The legends of all, and what is measured."""
    axis.axis("off")
    there = {kind(row["setting"]) for row in result["measurements"]["rows"]}
    for name, (colour, marker, _, label) in LOOKS.items():
        if name in there:
            axis.plot([], [], marker, color=colour, label=label, markersize=5)
    axis.plot([], [], "|-", color="grey", alpha=0.7, label="to the mean keep after training (top)")
    axis.plot([], [], "-", color="grey", label="the direct path: mean keep to the power T − 1 (middle)")
    axis.plot([], [], ":", color="grey", label="1/T, T the steps of the line")
    axis.plot([], [], "x", color="grey", label="papers: He 2016, 110 layers; Gers 2000, times 1997")
    title = f"{counted(result['seeds'], 'seed')}: mean, least and greatest"
    axis.legend(loc="upper left", bbox_to_anchor=(-0.12, 1.0), fontsize=8, title=title, alignment="left")
