"""The figure, from the published numbers alone."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.dial.judging import FAILED, PAPER, PAPER_DEPTH, sequences_until_solved
from experiments.dial.order import STRETCH
from experiments.fit import counted
from experiments.gradient_flow import FLOOR

LOOKS = {  # by the first word of a setting: colour, marker, where its number stands, in words
    "identity": ("black", "s", (0, 7, "center"), "identity: keep 1"),
    "constant": ("#0072B2", "o", (-6, 4, "right"), "constant: what is kept / added times"),
    "exclusive": ("#D55E00", "^", (0, -13, "center"), "exclusive gate, its bias at the start"),
    "shortcut": ("#009E73", "D", (6, -3, "left"), "shortcut-only gate, its bias at the start"),
    "1997": ("black", "P", (0, 6, "center"), "LSTM of 1997: keep 1"),
    "bias": ("#56B4E9", "h", (6, 3, "left"), "LSTM, its forget bias at the start"),
    "GRU": ("#CC79A7", "v", (-6, -8, "right"), "GRU"),
}
WORDS = {"exclusive": "exclusive gate, {}", "shortcut": "shortcut-only gate, {}", "constant": "constant {}"}
BELOW = "0.5/1"  # it stands where 0.5/0.5 does
RATIO = {"bias:5": 1.0, "bias:1": 3.0}  # Gers et al. 2000: sequences over those of 1997, about
NONE = 3e-5  # where a keep of 1 stands, for zero has no logarithm
LEAST = np.log10(FLOOR)  # of the gain: what is less is not known


def draw(result: dict) -> Figure:
    figure, axes = plt.subplot_mosaic(
        [["depth error", "time error"], ["depth gain", "time gain"], ["words", "until"]],
        figsize=(9, 9.5),
        layout="constrained",
        gridspec_kw={"height_ratios": (1, 1, 0.9)},
    )
    measurements, config = result["measurements"], result["config"]
    deep, long = ([row for row in measurements["rows"] if row["axis"] == axis] for axis in ("depth", "time"))
    above_identity(axes["depth error"], deep)
    errors(axes["time error"], long)
    gains(axes["depth gain"], deep, (-3.2, 1.7))
    gains(axes["time gain"], long, (LEAST - 3, 5))
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


def point(axis: Axes, row: dict, x: float, y: float, low: float, high: float) -> None:
    """A setting's mark, from `low` to `high`, and its number."""
    colour, marker, (right, up, side), _ = LOOKS[kind(row["setting"])]
    axis.errorbar(x, y, [[y - low], [high - y]], fmt=marker, color=colour, markersize=5, elinewidth=1)
    up = -9 if row["setting"] == BELOW else up
    words = {"fontsize": 7, "color": "black" if row["axis"] == "time" else colour, "ha": side}
    axis.annotate(number(row["setting"]), (x, y), (right, up), textcoords="offset points", **words)


def points(axis: Axes, rows: list[dict], values: Any) -> None:
    """Of each setting values(row), one for each seed: the mean, from the least to the greatest."""
    for row in rows:
        y = np.array(values(row))
        point(axis, row, opened(row, "start").mean(), y.mean(), y.min(), y.max())


def above_identity(axis: Axes, rows: list[dict]) -> None:
    """A line a setting: the points of test error above identity's, ours and the paper's."""
    there = {row["setting"]: 100 * np.array(row["error"]) for row in rows}
    if "identity" not in there:
        axis.text(0.5, 0.5, "without identity nothing to compare", transform=axis.transAxes, ha="center")
        return
    settings = [name for name in PAPER if name in there] + [name for name in there if name not in PAPER]
    base = there["identity"].mean()
    most = max([errors.max() - base for errors in there.values()] + [PAPER["shortcut:0"] - PAPER["identity"]])
    for place, setting in enumerate(settings):
        colour, marker, *_ = LOOKS[kind(setting)]
        above = there[setting] - base
        axis.plot([above.min(), above.max()], [place - 0.12] * 2, color=colour, linewidth=1)
        axis.plot(above.mean(), place - 0.12, marker, color=colour, markersize=5)
        if PAPER.get(setting) == FAILED:
            words = {"fontsize": 7, "color": "grey", "ha": "right", "va": "center"}
            arrow = {"arrowstyle": "->", "color": "grey"}
            edge = 1.12 * most, place + 0.2
            axis.annotate("paper: fails", edge, (-18, 0), textcoords="offset points", arrowprops=arrow, **words)
        elif setting in PAPER:
            axis.plot(PAPER[setting] - PAPER["identity"], place + 0.2, "x", color="grey", markersize=5)
    names = [WORDS.get(kind(setting), setting).format(number(setting)) for setting in settings]
    axis.set(yticks=range(len(settings)), yticklabels=names, ylim=(len(settings) - 0.4, -0.6))
    said = f"ours {base:.1f} %, the paper's {PAPER['identity']} %"
    axis.set(xlim=(-1.6, 1.12 * most), xlabel=f"points of test error above identity's\n({said})")
    axis.grid(axis="y", visible=False)


def scaled(axis: Axes, rows: list[dict]) -> None:
    """The scale that all others share, with 1/T on it."""
    steps = rows[0]["steps"]
    axis.set_xscale("log")
    axis.set_xlim(NONE / 1.6, 1.3)
    ticks = [NONE, 1e-4, 1e-3, 1e-2, 1e-1, 1]
    axis.set_xticks(ticks, ["0", *(f"$10^{{{round(np.log10(tick))}}}$" for tick in ticks[1:-1]), "1"])
    axis.minorticks_off()
    axis.axvline(1 / steps, color="grey", linestyle=":", linewidth=1.2)
    place = {"transform": axis.get_xaxis_transform(), "ha": "right", "va": "bottom"}
    axis.text(1 / steps, 0.01, f"1/T = 1/{steps} ", fontsize=7, color="grey", **place)
    axis.set_xlabel("1 − mean keep, at the start")


def errors(axis: Axes, rows: list[dict]) -> None:
    """With a line from each setting's mean keep at the start to that after training."""
    scaled(axis, rows)
    points(axis, rows, lambda row: 100 * np.array(row["error"]))
    for row in rows:
        y, colour = 100 * np.mean(row["error"]), LOOKS[kind(row["setting"])][0]
        ends = opened(row, "start").mean(), opened(row, "trained").mean()
        axis.plot(ends, (y, y), "-", color=colour, linewidth=1)
        axis.plot(ends[1], y, "|", color=colour, markersize=6)
    axis.set(ylim=(-9, 100), ylabel="error, new sequences, %")


def gains(axis: Axes, rows: list[dict], limits: tuple[float, float]) -> None:
    scaled(axis, rows)
    keeps = 1 - np.geomspace(NONE, 0.9999, 400)
    axis.plot(1 - keeps, (rows[0]["steps"] - 1) * np.log10(keeps), color="grey", linewidth=1.2)
    points(axis, rows, lambda row: [each["log10_gain"] for each in row["start"]])
    for row in rows:
        if np.mean([each["log10_gain"] for each in row["start"]]) <= LEAST:
            at = opened(row, "start").mean()
            axis.annotate("", (at, LEAST - 3), (at, LEAST), arrowprops={"arrowstyle": "->"})
            axis.text(at, LEAST, f"less than {LEAST:.0f}  ".replace("-", "−"), fontsize=7, ha="right", va="center")
    axis.set(ylim=limits, ylabel=r"$\log_{10}$ of the gradient's gain")


def until_solved(axis: Axes, measurements: dict) -> None:
    """The medians, as they are judged; an arrow where it is more than all sequences read."""
    rows = [row for row in measurements["rows"] if row["axis"] == "time"]
    until, most = sequences_until_solved(measurements), STRETCH * len(rows[0]["errors"][0])
    scaled(axis, rows)
    axis.set_yscale("log")
    least = min(most / 16, *(seeds.min() / 1.5 for seeds in until.values()))
    axis.set(ylim=(least, most * 2), ylabel="sequences until solved")
    for row in rows:
        seeds = until[row["setting"]]
        x, y = opened(row, "start").mean(), np.median(seeds)
        point(axis, row, x, *(min(value, most) for value in (y, seeds.min(), seeds.max())))
        if y > most:
            axis.annotate("", (x, 1.6 * most), (x, most), arrowprops={"arrowstyle": "->", "color": "black"})
    axis.axhline(most, color="grey", linewidth=0.8)
    axis.text(NONE, most, f"arrows: not solved after {most:,}", fontsize=7, color="grey", va="bottom")
    for row in rows:
        if row["setting"] in RATIO and "1997" in until and np.isfinite(np.median(until["1997"])):
            times, at = RATIO[row["setting"]], opened(row, "start").mean()
            paper = times * np.median(until["1997"])
            axis.plot(at, paper, "x", color="grey", markersize=6)
            words = {"fontsize": 7, "color": "grey", "ha": "right", "va": "center"}
            axis.annotate(f"{times:g} x 1997", (at, paper), (-6, 0), textcoords="offset points", **words)


def words(axis: Axes, result: dict) -> None:
    """The legends of all, and what is measured."""
    axis.set_axis_off()
    there = {kind(row["setting"]) for row in result["measurements"]["rows"]}
    for name, (colour, marker, _, label) in LOOKS.items():
        if name in there:
            axis.plot([], [], marker, color=colour, label=label, markersize=5)
    axis.plot([], [], "|-", color="grey", label="to the mean keep after training (top right)")
    axis.plot([], [], "-", color="grey", label="the direct path: mean keep to the power T − 1 (middle)")
    axis.plot([], [], ":", color="grey", label="1/T, T the steps of the line")
    axis.plot([], [], "x", color="grey", label=f"the papers': He 2016, {PAPER_DEPTH} layers; Gers 2000")
    title = f"{counted(result['seeds'], 'seed')}: mean, least and greatest; below, the median"
    axis.legend(loc="upper left", bbox_to_anchor=(-0.12, 1.0), fontsize=8, title=title, alignment="left")
