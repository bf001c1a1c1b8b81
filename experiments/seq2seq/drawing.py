"""The figures, from the published numbers alone."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.fit import counted

LOOKS = {  # colour, line, marker
    "lstm": ("#0072B2", "o", "LSTM"),
    "rnn": ("#D55E00", "s", "plain RNN"),
    "residual_rnn": ("black", "^", "residual RNN"),
    "gru": ("#56B4E9", "v", "GRU"),
    "luong": ("#009E73", "D", "LSTM, attention (Luong)"),
    "bahdanau": ("#E69F00", "P", "LSTM, attention (Bahdanau)"),
    "transformer": ("#CC79A7", "X", "Transformer"),
}


def draw(result: dict) -> Figure:
    panels: Any = [["learning", "perplexity", "greedy", "table", "table"], ["length", "rank", "depth", "pca", "pca"]]
    figure, axes = plt.subplot_mosaic(panels, figsize=(18, 7.4), dpi=100, layout="constrained")
    measurements = result["measurements"]
    learning(axes["learning"], measurements["nets"])
    conjecture(axes["perplexity"], measurements["nets"], "perplexity", "perplexity of a token, test")
    conjecture(axes["greedy"], measurements["nets"], "greedy", "BLEU, greedy, test")
    table(axes["table"], measurements["rows"])
    against(axes["length"], measurements["by_length"], "words and marks in the source", log=False)
    against(axes["rank"], measurements["by_rank"], "mean rank of the source's words, by frequency", log=True)
    depth(axes["depth"], measurements["nets"])
    pca(axes["pca"], measurements["vectors"])
    figure.suptitle(
        f"{measurements['test']}, {measurements['sentences']:,} sentences; hidden size "
        f"{result['config']['hidden']}; {counted(result['seeds'], 'seed')}",
        fontsize=10,
    )
    return figure


def learning(axis: Axes, nets: list[dict]) -> None:
    groups: dict[tuple, list[dict]] = {}
    for net in nets:
        groups.setdefault((net["cell"], net["reversed"], net["layers"]), []).append(net)
    least = min(net["layers"] for net in nets)
    for (cell, reversed, layers), mine in groups.items():
        if layers != least and cell == "lstm":
            continue
        colour, marker, label = LOOKS[cell]
        curves = np.array([net["valid"] for net in mine])
        way = ("reversed" if reversed else "forward") if (cell, not reversed, layers) in groups else ""
        style = "-" if reversed or not way else "--"
        x = np.array(mine[0]["pairs"]) / 1000
        axis.plot(x, curves.mean(0), style, color=colour, label=f"{label} {way}".strip(), marker=marker, markersize=3.5)
        axis.fill_between(x, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)
    axis.set(xlabel="thousand sentence pairs read", ylabel="perplexity of a token, validation", yscale="log")
    axis.set_title("learning: mean, least and greatest of the seeds", fontsize=9)
    after = [value for net in nets for value in net["valid"][1:] or net["valid"]]
    axis.set_ylim(top=6 * max(after))  # room for the legend; what is above at the first point is soon within
    axis.legend(
        fontsize=6, loc="upper right", ncols=2, handlelength=1.2, columnspacing=0.6, borderpad=0, handletextpad=0.3
    )
    plain_ticks(axis)


def plain_ticks(axis: Axes) -> None:
    low, high = axis.get_ylim()
    ticks = [tick for tick in (2, 3, 5, 7, 10, 20, 30, 50, 100, 200, 500, 1000) if low <= tick <= high]
    axis.set_yticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()


def conjecture(axis: Axes, nets: list[dict], name: str, ylabel: str) -> None:
    """Forward against reversed, a pair of columns a cell."""
    cells = [c for c in LOOKS if {n["reversed"] for n in nets if n["cell"] == c} == {True, False}]
    least = min(net["layers"] for net in nets)
    for at, cell in enumerate(cells):
        colour, marker, _ = LOOKS[cell]
        for reversed in (False, True):
            values = [n[name] for n in nets if (n["cell"], n["reversed"], n["layers"]) == (cell, reversed, least)]
            x = np.full(len(values), at + (0.15 if reversed else -0.15))
            axis.plot(x, values, marker, color=colour, markerfacecolor=colour if reversed else "white", markersize=7)
    axis.plot([], [], "o", color="grey", markerfacecolor="white", label="source forward")
    axis.plot([], [], "o", color="grey", label="source reversed")
    axis.set_xticks(range(len(cells)), [LOOKS[cell][2] for cell in cells])
    axis.set_xlim(-0.5, max(len(cells), 1) - 0.5)
    axis.set(ylabel=ylabel)
    axis.set_title("forward and reversed, each seed a point", fontsize=9)
    axis.legend(fontsize=7)


def depth(axis: Axes, nets: list[dict]) -> None:
    """Perplexity against the layers of reversed LSTMs, and what the paper says of a further layer."""
    mine = [net for net in nets if (net["cell"], net["reversed"]) == ("lstm", True)]
    layers = sorted({net["layers"] for net in mine})
    if len(layers) < 2:
        axis.text(0.5, 0.5, "depth: one number of layers alone", ha="center", va="center", transform=axis.transAxes)
        axis.set_axis_off()
        return
    means = [np.mean([net["perplexity"] for net in mine if net["layers"] == count]) for count in layers]
    colour, marker, _ = LOOKS["lstm"]
    axis.plot(
        [net["layers"] for net in mine], [net["perplexity"] for net in mine], marker, color=colour, label="a seed"
    )
    axis.plot(layers, means, "-", color=colour, label="mean of the seeds")
    claimed = means[0] * 0.9 ** (np.array(layers) - layers[0])
    axis.plot(layers, claimed, "x--", color="#D55E00", label="the paper: a tenth less a layer")
    axis.set_xticks(layers)
    axis.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    axis.set(xlabel="layers of the reversed LSTM", ylabel="perplexity of a token, test")
    axis.set_title("depth", fontsize=9)
    axis.legend(fontsize=7, loc="lower left")


def table(axis: Axes, rows: list[dict]) -> None:
    """BLEU of each row that there is; the paper's as a cross."""
    there = [row for row in rows if row["bleu"]]
    for at, row in enumerate(there):
        bleu = np.array(row["bleu"])
        colour = LOOKS[row["cell"]][0]
        axis.barh(at, bleu[:, 0].mean(), color=colour, alpha=1.0 if row["reversed"] or row["cell"] != "lstm" else 0.5)
        axis.plot([bleu[0, 1], bleu[0, 2]], [at, at], color="black", linewidth=1.2)
        if "paper" in row:
            axis.plot(row["paper"], at, "x", color="#D55E00", markersize=6)
    named = {"luong": "Luong", "bahdanau": "Bahdanau", "transformer": "Transformer"}
    several = [f" x {row['nets']}" if row["nets"] > 1 else "" for row in there]
    labels = [
        f"{named.get(row['name'], row['name'])}{more}, beam {row['width']}"
        for row, more in zip(there, several, strict=True)
    ]
    axis.plot([], [], "x", color="#D55E00", label="the papers', WMT'14 En-Fr: other data and size")
    axis.plot([], [], color="black", linewidth=1.2, label="95% of resampled sentences, first seed")
    axis.set_yticks(range(len(there)), labels, fontsize=7)
    axis.set_ylim(len(there) + 1.6, -0.6)
    axis.set(xlabel="BLEU, test")
    axis.legend(fontsize=6.5, loc="lower right")
    axis.set_title("translation", fontsize=9)


def against(axis: Axes, bins: dict[str, list[dict]], xlabel: str, *, log: bool) -> None:
    looks = {"forward": ("#0072B2", "--", "o", "LSTM, forward"), "reversed": ("#0072B2", "-", "s", "LSTM, reversed")}
    looks |= {
        cell: (LOOKS[cell][0], "-", LOOKS[cell][1], LOOKS[cell][2]) for cell in ("luong", "bahdanau", "transformer")
    }
    for place, (name, mine) in enumerate(bins.items()):
        colour, style, marker, label = looks[name]
        x = np.array([one["mean"] for one in mine]) * (1 + 0.012 * (place - len(bins) / 2))
        y = np.array([one["bleu"] for one in mine]).T
        error = np.maximum([y[0] - y[1], y[2] - y[0]], 0)
        axis.errorbar(x, y[0], error, fmt=style, marker=marker, color=colour, label=label, capsize=2, markersize=4)
    axis.set_title("first seed", fontsize=9)
    axis.set(xlabel=xlabel, ylabel="BLEU, 95%", ylim=(0, 1.25 * axis.get_ylim()[1]))  # room for the legend
    if log:
        axis.set_xscale("log")
    axis.legend(fontsize=7, loc="upper center", ncols=2)


def pca(axis: Axes, vectors: list[dict]) -> None:
    """The sentence vectors; the two voices of one meaning are joined."""
    axis.set_title("sentence vectors: the same meaning joined", fontsize=9)
    for at, (one, other) in enumerate(zip(vectors[::2], vectors[1::2], strict=True)):
        colour = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")[at % 4]
        axis.plot([one["x"], other["x"]], [one["y"], other["y"]], "-", color=colour, linewidth=1, alpha=0.6)
        for point, marker, size in ((one, "o", 9), (other, "s", 5)):
            axis.plot(point["x"], point["y"], marker, color=colour, markersize=size, markerfacecolor="none")
    axis.margins(0.1, 0.2)
    if not vectors:
        axis.text(0.5, 0.5, "no sentences for this data", ha="center", va="center", transform=axis.transAxes)
        axis.set_axis_off()
    else:
        axis.set(xlabel="first principal component", ylabel="second")
        name(axis, vectors)


def name(axis: Axes, points: list[dict]) -> None:
    """The sentences, towards the middle from their points, one below the other, each joined to its own."""
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    apart, y = 0.085 * (high - low), high
    for point in sorted(points, key=lambda point: -point["y"]):
        y = min(point["y"] + apart / 2, y - apart)
        inwards = 0.1 * (right - left) * (1 if point["x"] < 0 else -1)
        axis.annotate(
            point["text"],
            (point["x"], point["y"]),
            (point["x"] + inwards, y),
            fontsize=8,
            ha="left" if point["x"] < 0 else "right",
            va="center",
            arrowprops={"arrowstyle": "-", "color": "grey", "linewidth": 0.6, "shrinkB": 3},
        )
