"""The figure, from the published numbers alone."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from experiments.cifar.drawing import KINDS
from experiments.fit import counted
from experiments.streams.judging import SMALL

DASHES = ("-", "--", ":", (0, (5, 1, 1, 1)), (0, (1, 3)))  # the longest line is drawn through


def draw(result: dict) -> Figure:
    figure, axes = plt.subplots(4, 2, figsize=(9, 11), dpi=90, layout="constrained")
    rows, config = result["measurements"]["rows"], result["config"]
    for column, name in zip(axes.T, ("depth", "time"), strict=True):
        mine = [row for row in rows if row["axis"] == name]
        sizes = sorted({row["size"] for row in mine})
        dashes: dict[int, Any] = dict(zip(sizes[::-1], DASHES, strict=False))
        for row in mine:
            curves(column, row, KINDS[row["kind"]][0], dashes.get(row["size"], DASHES[-1]))
        describe(column, name)
        kinds = [handle(KINDS[kind][0], "-", kind) for kind in dict.fromkeys(row["kind"] for row in mine)]
        unit = "layers" if name == "depth" else "time steps"
        column[0].legend(
            handles=kinds + [handle("grey", dashes[size], f"{size} {unit}") for size in dashes],
            ncols=2,
            loc="upper right",
        )
    figure.suptitle(
        f"{result['data']['name']}, {config['pixels']} x {config['pixels']} pixels, "
        f"{result['measurements']['images']} test images;\nalong depth {config['width']}, {2 * config['width']}, "
        f"{4 * config['width']} filters, batch norm by its running statistics; along time hidden size "
        f"{config['hidden_size']}.\n"
        f"{counted(result['seeds'], 'seed')}: mean, and a band from least to greatest; in the last row "
        "instead the images' quartiles, of the longest lines",
        fontsize=9,
    )
    return figure


def handle(colour: str, dash: Any, label: str) -> Line2D:
    return Line2D([], [], color=colour, linestyle=dash, label=label)


def curves(column: Any, row: dict, colour: str, dash: Any) -> None:
    """All four of a row's."""
    responses, count = np.array(row.get("layers", row["response"])), row["cells"][-1]
    if "layers" in row:  # the stem, then each block's two
        at = (np.arange(responses.shape[1]) - 0.5) / (2 * count)
        column[0].plot(at[2::2], responses.mean(0)[2::2], ".", color=colour, markersize=4)
    else:
        at = (np.array(row["cells"]) - 0.5) / count
    band(column[0], at, responses, colour, dash)
    band(column[1], np.linspace(0, 1, len(at)), -np.sort(-responses, axis=1), colour, dash)
    if row["stages"] == count:
        return  # a stage of one block has no estimate before its last
    ends = np.split(np.array(row["cells"]) / count, row["stages"])
    names = ("difference", "distance", "distance_25", "distance_75")
    parts = zip(*(np.split(np.array(row[name]), row["stages"], axis=1) for name in names), strict=True)
    for at, (difference, distance, low, high) in zip(ends, parts, strict=True):
        band(column[2], at, difference, colour, dash)
        column[3].plot(at, distance.mean(0), linestyle=dash, color=colour, linewidth=1.3)
        if dash == DASHES[0]:
            column[3].fill_between(at, low.mean(0), high.mean(0), color=colour, alpha=0.15, linewidth=0)


def band(axis: Axes, x: Any, seeds: np.ndarray, colour: str, dash: Any) -> None:
    """Mean, and from the least to the greatest, of [seeds, points]."""
    axis.plot(x, seeds.mean(0), linestyle=dash, color=colour, linewidth=1.3)
    axis.fill_between(x, seeds.min(0), seeds.max(0), color=colour, alpha=0.2, linewidth=0)


def describe(column: Any, name: str) -> None:
    if name == "depth":
        titles = "along depth: responses of the 3x3 layers (dots: a block's add)", "the same, sorted"
        end, place, what, rank = "the stage's end", "position along the three stages", "after its norm", "layer"
    else:
        titles = "turned, along time: responses of the steps (the add)", "the same, sorted"
        end, place, what, rank = "the last step", "time, t / T", "of the add", "step"
    titles += f"difference from {end}", f"distance to {end}"
    ylabels = [f"standard deviation {what}"] * 2
    ylabels += [r"$E[x_l - x_{end}]$, in deviations of $x_{end}$"]
    ylabels += [r"$\Vert x_l - x_{end}\Vert\ /\ \Vert x_{end}\Vert$, median"]
    for panel, title, ylabel in zip(column, titles, ylabels, strict=True):
        panel.set_title(title, fontsize=9)
        panel.set(xlabel=place, ylabel=ylabel, xlim=(-0.04, 1.02))
    column[1].set(xlabel=f"rank of the {rank}: 0 the largest, 1 the least", xlim=(-0.02, 1.02))
    column[2].axhspan(-SMALL, SMALL, color="#009E73", alpha=0.12, linewidth=0)
    column[2].text(0, SMALL, f"small: within {SMALL}", color="#00664B", fontsize=7, va="bottom")
    if name == "time":
        column[0].set_ylim(0, 1.5)  # room for the legend
        return
    for panel in (column[0], *column[2:]):
        for edge in (1 / 3, 2 / 3):
            panel.axvline(edge, color="grey", linewidth=0.8)
    for panel in (column[0], column[1], column[3]):
        panel.set_yscale("log", nonpositive="mask")
    column[2].set_yscale("symlog", linthresh=0.5)
    ticks = [-0.5, -SMALL, 0, SMALL, 0.5, 1, 5]
    column[2].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    column[2].yaxis.set_minor_locator(NullLocator())
    for panel, shown in (
        (
            column[1],
            "He et al. 2015, Fig. 7, trained to the end:\nresidual below plain, deeper below shallower (curves)",
        ),
        (column[2], "Greff et al. 2016, trained to the end: near 0 (curves)"),
    ):
        panel.text(0.98, 0.97, shown, transform=panel.transAxes, fontsize=7, ha="right", va="top", color="grey")
