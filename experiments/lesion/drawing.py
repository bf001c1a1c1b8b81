"""The figure, from the published numbers alone."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.cifar.drawing import KINDS as OF_CIFAR
from experiments.fit import counted
from experiments.lesion.judging import GATED, IDLE, PAPER_BLOCKS, PAPER_LENGTHS
from experiments.lesion.paths import shares

CELL = {"depth": "block", "time": "time step"}
PLURAL = {"depth": "blocks or layers", "time": "time steps"}
KINDS = OF_CIFAR | {"dense highway": ("#CC79A7", "-.v"), "dense residual": ("#009E73", ":^")}


def draw(result: dict) -> Figure:
    figure, axes = plt.subplots(6, 2, figsize=(9, 15), dpi=77, layout="constrained")
    config, measured = result["config"], result["measurements"]
    chance = 100 * (1 - 1 / measured["classes"])
    for column, along in zip(axes.T, CELL, strict=True):
        rows = sorted((row for row in measured["rows"] if row["axis"] == along), key=lambda row: -row["size"])
        longest = [row for row in rows if not (dense(row) or _faded(row, rows))]
        apart = [row for row in rows if (dense(row) if along == "depth" else _faded(row, rows))]
        for axis, those in ((column[0], [row for row in rows if row not in apart]), (column[1], apart)):
            _single(axis, those, along)
            if those:
                _legend(axis, 2, lines=along == "depth" and axis is column[0])
            else:
                axis.set_axis_off()
        _at_random(column[2], rows, "deleted", f"{PLURAL[along]} deleted at random, %")
        _at_random(column[3], rows, "exchanged", "Kendall's tau of the order, 1: as trained")
        column[3].invert_xaxis()
        for number, axis in enumerate(column[:4]):
            if along == "depth" and number != 1:
                axis.axhline(chance, linestyle=":", color="grey", linewidth=1)
                axis.set(ylabel="test error, %", ylim=(0, 105))
            else:
                axis.axhline(0, linestyle="--", color="grey", linewidth=0.8)
                axis.set_ylabel("test error above\nundamaged, points")
        for axis in column[4:]:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        _norms(column[4], longest, along)
        _shares(column[5], longest, along)
        column[0].set_title("along depth" if along == "depth" else "turned, along time", pad=56)
    figure.suptitle(
        f"{result['data']['name']}, {config['pixels']} x {config['pixels']} pixels, {config['images']} test images; "
        f"along depth {config['width']}, {2 * config['width']}, {4 * config['width']} filters; along time hidden size "
        f"{config['hidden_size']}{_of_dense(config)}\n{counted(result['seeds'], 'seed')}: mean; bands: the least to "
        "the greatest of the seeds and of the random choices of cells;\nin the fifth row 10% to 90% of the paths",
        fontsize=9,
    )
    return figure


def _of_dense(config: dict) -> str:
    if not config["dense"]:
        return ""
    return f";\ndense nets: {config['dense_data']}, its images whole, {config['dense_size']} units a layer"


def dense(row: dict) -> bool:
    return row["kind"].startswith("dense ")


def _faded(row: dict, rows: list[dict]) -> bool:
    """Whether it is a shorter net than another of its kind."""
    return row["size"] < max(other["size"] for other in rows if other["kind"] == row["kind"])


def _name(row: dict) -> str:
    return f"{row['kind']}, {row['size']} {'layers' if row['axis'] == 'depth' else 'steps'}"


def _shown(row: dict, errors: Any) -> np.ndarray:
    """Test errors [seeds, ...] in %; along time, where they hardly move, what they are above the undamaged net's."""
    return _risen(row, errors) if row["axis"] == "time" else 100 * np.array(errors)


def _risen(row: dict, errors: Any) -> np.ndarray:
    """Test errors [seeds, ...] above the undamaged net's, in points."""
    return 100 * (np.array(errors) - np.array(row["whole"])[:, None])


def _band(
    axis: Axes, x: Any, curves: Any, row: dict, *, low: Any = None, high: Any = None, faded: bool = False
) -> None:
    """The mean over the seeds [seeds, x], and from the least to the greatest."""
    colour, style = KINDS[row["kind"]]
    alpha = 0.4 if faded else 1.0
    curves = np.array(curves)
    low, high = (np.array(curves if each is None else each) for each in (low, high))
    axis.plot(x, curves.mean(0), style, color=colour, alpha=alpha, label=_name(row), markersize=3, linewidth=1.2)
    axis.fill_between(x, low.min(0), high.max(0), color=colour, alpha=0.2 * alpha, linewidth=0)


def _single(axis: Axes, rows: list[dict], along: str) -> None:
    for row in rows:
        rise, (colour, _) = along == "time" or dense(row), KINDS[row["kind"]]
        single = _risen(row, row["single"]) if rise else 100 * np.array(row["single"])
        places = 100 * (np.arange(single.shape[1]) + 0.5) / single.shape[1]
        faded = _faded(row, rows)
        _band(axis, places, single, row, faded=faded)
        alpha, halving = (0.4 if faded else 1.0), row["halving"]
        if not rise:
            axis.axhline(100 * np.mean(row["whole"]), linestyle="--", color=colour, linewidth=0.8, alpha=alpha)
        rings = {"markersize": 8, "fillstyle": "none", "alpha": alpha}
        axis.plot(places[halving], single.mean(0)[halving], "o", color=colour, **rings)
    gated = any(map(dense, rows))
    if gated:
        _idle(axis)
    cell = "layer" if gated else CELL[along]
    axis.set(xlabel=f"place of the one {cell} deleted, % of all")


def _idle(axis: Axes) -> None:
    """Which layers Srivastava et al. 2015 found idle."""
    first, last = (100 * (layer + end) / GATED for layer, end in zip(IDLE, (-1, 0), strict=True))
    axis.axvspan(first, last, color="#E69F00", alpha=0.15, label="nearly idle in the paper's highway net", linewidth=0)


def _at_random(axis: Axes, rows: list[dict], name: str, xlabel: str) -> None:
    for row in rows:
        series = row[name]  # [seeds][numbers of cells]
        if not series[0]:
            continue

        def curve(key: str, row: dict = row, series: list = series) -> np.ndarray:
            seeds = zip(row["whole"], series, strict=True)
            return _shown(row, [[whole, *(each[key] for each in one)] for whole, one in seeds])

        if name == "deleted":
            x = 100 * np.array([0, *(each["cells"] for each in series[0])]) / len(row["alike"])
        else:
            x = np.append(1, np.mean([[each["tau"] for each in one] for one in series], axis=0))
        faded = _faded(row, rows)
        _band(axis, x, curve("mean"), row, low=curve("least"), high=curve("greatest"), faded=faded)
    axis.set(xlabel=xlabel)


def _norms(axis: Axes, rows: list[dict], along: str) -> None:
    for row in (row for row in rows if row["paths"]):
        length = row["paths"][0]["length"]
        curves = [[each[key] for each in row["paths"]] for key in ("mean_of_log10", "log10_low", "log10_high")]
        _band(axis, length, curves[0], row, low=curves[1], high=curves[2])
    axis.set(xlabel=f"{CELL[along]}s that the path goes through, k", ylabel="log10 of the norm\nalong one path")
    axis.legend(fontsize=7, loc="lower left")


def _shares(axis: Axes, rows: list[dict], along: str) -> None:
    drawn = [(row, [shares(each) for each in row["paths"]]) for row in rows if row["paths"]]
    for row, found in drawn:
        k = np.arange(len(found[0].gradient))
        _band(axis, k, [100 * each.gradient for each in found], row)
    if drawn:
        n = len(drawn[0][1][0].paths) - 1
        axis.fill_between(
            np.arange(n + 1), 100 * drawn[0][1][0].paths, color="grey", alpha=0.3, label="number of paths", linewidth=0
        )
        low, high = (n * length / PAPER_BLOCKS for length in PAPER_LENGTHS)
        axis.axvspan(low, high, color="#E69F00", alpha=0.15, label="the paper's lengths, scaled", linewidth=0)
    axis.set(xlabel=f"{CELL[along]}s that the path goes through, k", ylabel="share, %", ylim=(0, None))
    _legend(axis, 2)


def _legend(axis: Axes, count: int, *, lines: bool = False) -> None:
    """Above the axis; `lines`: with what the lines and rings mean."""
    if lines:
        axis.plot([], [], "--", color="grey", linewidth=0.8, label="undamaged")
        axis.plot([], [], ":", color="grey", linewidth=1, label="chance")
        axis.plot([], [], "o", color="grey", markersize=8, fillstyle="none", label="halves the maps")
    axis.legend(fontsize=7, ncols=count, loc="lower center", bbox_to_anchor=(0.5, 0.98), borderaxespad=0)
