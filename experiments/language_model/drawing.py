"""The figure: bits per byte against bytes read in training, and against the position in the window."""

from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments.fit import counted

LOOKS = {  # colours of Okabe & Ito 2008
    "lstm": ("LSTM", "#0072B2", "o"),
    "gru": ("GRU", "#009E73", "^"),
    "highway": ("recurrent highway", "#E69F00", "s"),
    "transformer": ("Transformer", "#D55E00", "D"),
}


def draw(result: dict) -> Figure:
    measurements = result["measurements"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.6), layout="constrained")
    for name in dict.fromkeys(run["model"] for run in measurements["runs"]):
        runs = [run for run in measurements["runs"] if run["model"] == name]
        band(left, name, np.array(runs[0]["bytes"]) / 1e6, np.array([run["valid"] for run in runs]))
        centres, curves = binned(np.array([run["by_position"] for run in runs]))
        band(right, name, centres, curves)
    left.set(xlabel="bytes read in training (millions, log)", ylabel="bits per byte, validation text", xscale="log")
    right.set(xlabel="position in the window (log)", ylabel="bits per byte, test text", xscale="log")
    for axis in (left, right):
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
    left.legend(title=f"about {measurements['runs'][0]['parameters'] / 1e6:.2g}M parameters each")
    seeds, data = result["seeds"], result["data"]["name"]
    left.set_title(f"learning: {data}, mean and range of {counted(seeds, 'seed')}", fontsize=9)
    right.set_title("what context is worth, at the end", fontsize=9)
    return figure


def band(axis: Axes, name: str, x: np.ndarray, curves: np.ndarray) -> None:
    """Mean and range over the seeds of curves [seeds, points]."""
    label, colour, marker = LOOKS[name]
    axis.fill_between(x, curves.min(0), curves.max(0), color=colour, alpha=0.2, linewidth=0)
    axis.plot(x, curves.mean(0), color=colour, marker=marker, markersize=3.5, linewidth=1.2, label=label)


def binned(curves: np.ndarray) -> tuple[np.ndarray, Any]:
    """Positions put together into at most 24 bins, equally wide on a log axis: centres, and each bin's mean."""
    length = curves.shape[1]
    edges = np.unique(np.round(np.geomspace(1, length + 1, min(25, length + 1))).astype(int))
    bins = list(pairwise(edges))
    centres = np.array([np.sqrt(low * (high - 1)) for low, high in bins])
    return centres, np.stack([curves[:, low - 1 : high - 1].mean(1) for low, high in bins], axis=1)
