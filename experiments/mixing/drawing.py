"""The figure, from the published numbers alone."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.fit import counted
from experiments.mixing.nets import ATTENTION, GATED, ONES

MAPS = (ONES, GATED, ATTENTION)  # the first net of each form is drawn
LEAST = 1e-3  # of the colours: what is below is drawn as this
LOOKS = {
    "plain": ("#D55E00", "--"),
    "residual": ("black", "-"),
    "LSTM 1997": ("black", "-"),
    "highway": ("#CC79A7", "-."),
    "LSTM": ("#0072B2", "-."),
    "minLSTM": ("#56B4E9", "--"),
    "attention": ("#009E73", "-"),
}
AXES = {"depth": ("layer", 0), "time": ("step", 1)}  # what its positions are called, and the first one's number


def draw(result: dict) -> Figure:
    figure, axes = plt.subplots(2, 4, figsize=(11.5, 5.6), layout="constrained", width_ratios=(1, 1, 1, 1.15))
    image = None
    for across, name in zip(axes, AXES, strict=True):
        rows = [row for row in result["measurements"]["rows"] if row["axis"] == name]
        for axis, form in zip(across, MAPS, strict=False):
            drawn = next((row for row in rows if row["form"] == form), None)
            axis.axis("off")
            if drawn:
                image = heat_map(axis, drawn)
        reaches(across[-1], rows, name)
    if image:
        bar = figure.colorbar(image, ax=axes[:, :3], location="bottom", aspect=60, shrink=0.8, extend="min")
        bar.set_label("weight M[l, k], mean over units and images")
    config = result["config"]
    figure.suptitle(
        f"Trained nets of hidden size {config['hidden_size']} after {config['steps']} steps ({result['data']['name']}, "
        f"{counted(result['seeds'], 'seed')}; the matrices are of the first)",
        fontsize=9,
    )
    return figure


def heat_map(axis: Axes, row: dict) -> Any:
    """Rows l downwards, columns k; what comes later, k > l, is left white."""
    word, first = AXES[row["axis"]]
    shown, size = row["shown"], len(row["shown"])
    matrix = np.full((size, size), np.nan)
    for at, weights in enumerate(row["matrix"]):
        matrix[at, : at + 1] = np.maximum(weights, LEAST)
    axis.axis("on")
    axis.grid(visible=False)
    axis.set(title=f"{row['kind']}: {row['form']}", xlabel=f"from {word} k", ylabel=f"to {word} l")
    ticks = np.unique(np.linspace(0, size - 1, 5).round().astype(int))
    labels = [str(shown[tick] + first) for tick in ticks]
    axis.set_xticks(ticks, labels)
    axis.set_yticks(ticks, labels)
    return axis.imshow(matrix, cmap="viridis", norm=LogNorm(LEAST, 1), interpolation="nearest")


def reaches(axis: Axes, rows: list[dict], name: str) -> None:
    """How far each stream reaches back, of every net along an axis."""
    word, first = AXES[name]
    for row in rows:
        colour, dash = LOOKS[row["kind"]]
        curves, at = np.array(row["reach"]), np.arange(row["positions"]) + first
        axis.plot(at, curves.mean(0), dash, color=colour, label=row["kind"], linewidth=1.6)
        axis.fill_between(at, curves.min(0), curves.max(0), color=colour, alpha=0.2, linewidth=0)
    axis.set(title=f"reach, along {name}", xlabel=f"{word} l", ylabel=f"mean distance l − k, {word}s")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.legend(fontsize=8, loc="upper left")
