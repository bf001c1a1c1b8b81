"""The figure, from the published numbers alone."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.cifar.drawing import KINDS
from experiments.streams.judging import SMALL

DASHES = (":", "--", "-")  # the longest line is drawn through


def draw(result: dict) -> Figure:
    figure, axes = plt.subplots(4, 2, figsize=(9.5, 12), layout="constrained")
    rows, config = result["measurements"]["rows"], result["config"]
    for column, name in zip(axes.T, ("depth", "time"), strict=True):
        mine = sorted((row for row in rows if row["axis"] == name), key=lambda row: row["size"])
        sizes = sorted({row["size"] for row in mine})
        dashes = dict(zip(sizes, DASHES[-len(sizes) :] if len(sizes) < 4 else ["-"] * len(sizes), strict=True))
        for row in mine:
            curves(column, row, KINDS[row["kind"]][0], dashes[row["size"]])
        label(column, name, mine, dashes)
    figure.suptitle(
        f"{result['data']['name']}, {config['pixels']} x {config['pixels']} pixels, {result['measurements']['images']} "
        f"test images; along depth {config['width']}, {2 * config['width']}, {4 * config['width']} filters, batch norm "
        f"by its running statistics; along time hidden size {config['hidden_size']}\n{result['seeds']} seeds: mean, "
        "bands from least to greatest (bottom: quartiles of the images, of the longest alone)",
        fontsize=9,
    )
    return figure


def curves(column: Any, row: dict, colour: str, dash: str) -> None:
    """All four of a row's."""
    responses = np.array(row.get("layers", row["response"]))
    count = row["cells"][-1]
    if "layers" in row:  # the stem before the first block's two
        at = (np.arange(responses.shape[1]) - 0.5) / (2 * count)
        column[0].plot(at[2::2], responses.mean(0)[2::2], ".", color=colour, markersize=4)
    else:
        at = (np.array(row["cells"]) - 0.5) / count
    band(column[0], at, responses, colour, dash)
    band(column[1], np.linspace(0, 1, len(at)), -np.sort(-responses, axis=1), colour, dash)
    if row["stages"] == count:
        return  # stages of one block have no estimate before their last
    ends = np.array(row["cells"]) / count
    names = ("difference", "distance", "distance_25", "distance_75")
    parts = zip(*(np.split(np.array(row[name]), row["stages"], axis=1) for name in names), strict=True)
    for at, (difference, distance, low, high) in zip(np.split(ends, row["stages"]), parts, strict=True):
        band(column[2], at, difference, colour, dash)
        column[3].plot(at, distance.mean(0), dash, color=colour, linewidth=1.3)
        if dash == DASHES[-1]:
            column[3].fill_between(at, low.mean(0), high.mean(0), color=colour, alpha=0.15, linewidth=0)


def band(axis: Axes, x: Any, seeds: np.ndarray, colour: str, dash: str) -> None:
    """Mean, and from the least to the greatest, of [seeds, points]."""
    axis.plot(x, seeds.mean(0), dash, color=colour, linewidth=1.3)
    axis.fill_between(x, seeds.min(0), seeds.max(0), color=colour, alpha=0.2, linewidth=0)


def label(column: Any, name: str, rows: list[dict], dashes: dict[int, str]) -> None:
    depth = name == "depth"
    unit, what = ("layers", "3x3 layer's output") if depth else ("time steps", "step's add")
    column[0].set(
        title="along depth: He et al. 2015's block" if depth else "turned, along time",
        ylabel=f"response: deviation of a\n{what}" + (", after its norm" if depth else ""),
        xlabel="position, three stages (dots: a block's second layer, its add)" if depth else "time, t / T",
    )
    column[1].set(ylabel="response, sorted", xlabel=f"rank of the {'layer' if depth else 'step'} (0 largest, 1 least)")
    column[2].set(ylabel="E[x - x_end], in deviations of x_end", xlabel="position" if depth else "time, t / T")
    column[3].set(ylabel="||x - x_end|| / ||x_end||, median", xlabel="position" if depth else "time, t / T")
    column[2].axhspan(-SMALL, SMALL, color="#009E73", alpha=0.12, linewidth=0)
    for panel in (column[0], *column[2:]) if depth else ():
        for edge in (1 / 3, 2 / 3):
            panel.axvline(edge, color="grey", linewidth=0.8)
    kinds = [Line2D([], [], color=KINDS[kind][0], label=kind) for kind in dict.fromkeys(row["kind"] for row in rows)]
    lengths = [Line2D([], [], color="grey", linestyle=dash, label=f"{size} {unit}") for size, dash in dashes.items()]
    column[0].legend(handles=kinds + lengths, ncols=2, fontsize=7, loc="best")
