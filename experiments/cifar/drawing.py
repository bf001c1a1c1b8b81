"""The figure, from the published numbers alone."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.cifar.judging import PAPER
from experiments.fit import counted

KINDS = {"plain": ("#D55E00", "--o"), "residual": ("black", "-s"), "pre-activated": ("#0072B2", "-^")}
KINDS |= {"highway": ("#CC79A7", "-.v"), "plain RNN": ("#D55E00", "--o"), "residual RNN": ("black", "-s")}
KINDS |= {"LSTM": ("#0072B2", "-D")}


def draw(result: dict) -> Figure:
    figure, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
    rows, config = result["measurements"]["rows"], result["config"]
    deep = [row for row in rows if row["axis"] == "depth"]
    depths = sorted({row["size"] for row in deep})
    colours = dict(zip(depths, plt.get_cmap("viridis")(np.linspace(0, 0.85, len(depths))), strict=True))
    top = max(100 * np.max(row["train_error"]) for row in deep)
    for axis, kind in zip(axes[0], ("plain", "residual"), strict=True):
        for row in (row for row in deep if row["kind"] == kind):
            band(axis, row["step"], row["train_error"], "-", colours[row["size"]], f"{row['size']} layers")
        axis.set(
            title=f"{kind} nets, while training",
            xlabel="training steps",
            ylabel="error of the first training images, %",
        )
        axis.set_ylim(0, min(top + 5, 100))
        axis.legend()
    against_size(axes[1, 0], deep, "layers", "along depth, at the end")
    papers(axes[1, 0], depths)
    long = [row for row in rows if row["axis"] == "time"]
    against_size(axes[1, 1], long, "time steps (longer: fewer values a step)", "turned, along time, at the end")
    figure.suptitle(
        f"{result['data']['name']}, {config['pixels']} x {config['pixels']} pixels; along depth {config['width']}, "
        f"{2 * config['width']}, {4 * config['width']} filters, {config['steps']} steps of {config['batch']} images; "
        f"along time hidden size {config['hidden_size']}\n{counted(result['seeds'], 'seed')}: mean, least and greatest",
        fontsize=9,
    )
    return figure


def papers(axis: Axes, depths: list[int]) -> None:
    """The paper's test errors of residual nets, at depths that we have too."""
    for depth in (depth for depth in depths if depth in PAPER):
        axis.plot(depth, PAPER[depth], "x", color="grey", markersize=6)
        words = {"fontsize": 7, "color": "grey", "ha": "right"}
        axis.annotate(
            f"paper, test: {PAPER[depth]}", (depth, PAPER[depth]), (-6, -2), textcoords="offset points", **words
        )


def band(axis: Axes, x: Any, curves: Any, style: str, colour: Any, label: str) -> None:
    """The mean over the seeds, in %, and from the least to the greatest."""
    errors = 100 * np.array(curves)
    axis.plot(x, errors.mean(0), style, color=colour, label=label, markersize=4)
    axis.fill_between(x, errors.min(0), errors.max(0), color=colour, alpha=0.2, linewidth=0)


def against_size(axis: Axes, rows: list[dict], xlabel: str, title: str) -> None:
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["size"])
        colour, style = KINDS[kind]
        sizes = [row["size"] for row in mine]
        for name, faded in (("train_error", 1.0), ("test_error", 0.4)):
            errors = np.array([[curve[-1] for curve in row[name]] for row in mine]).T  # [seeds, sizes]
            errors = 100 * errors
            label = f"{kind}, {name.split('_')[0].replace('train', 'training')}"
            axis.plot(sizes, errors.mean(0), style, color=colour, alpha=faded, label=label, markersize=4)
            axis.fill_between(sizes, errors.min(0), errors.max(0), color=colour, alpha=0.15, linewidth=0)
    ticks = sorted({row["size"] for row in rows})
    axis.set_xscale("log")
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set(title=title, xlabel=xlabel, ylabel="error, %", ylim=(0, None))
    axis.legend(fontsize=7)
