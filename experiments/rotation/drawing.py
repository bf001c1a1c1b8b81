"""The figure: the grid turned from LSTM to ResNet, and the ladder between them."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Affine2D

from experiments.fit import counted

INK = "#222222"


def draw(result: dict) -> Figure:
    figure = plt.figure(figsize=(10, 8), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    stops = result["grid"]["stops"]
    values = np.array([stop["values"] for stop in stops])
    drawn = values[np.isfinite(values) & (values > 0)]
    norm = LogNorm(drawn.min(), drawn.max()) if drawn.size else LogNorm(0.1, 1)
    axes = above.subplots(1, 3)
    for axis, stop in zip(axes, stops, strict=True):
        draw_grid(axis, stop, norm)
    scale = plt.cm.ScalarMappable(norm, "viridis")
    above.colorbar(scale, ax=axes, shrink=0.7, label="gradient of the loss with\nrespect to the stream, norm")
    draw_ladder(below, result)
    return figure


def draw_grid(axis: Axes, stop: dict, norm: LogNorm) -> None:
    """Cells in lines along the stream, turned counter-clockwise by the stop's angle."""
    values = np.array(stop["values"])
    lines, steps = values.shape
    turn = Affine2D().rotate_deg_around((steps - 1) / 2, (lines - 1) / 2, stop["angle"])

    def shade(value: float) -> Any:
        return plt.get_cmap("viridis")(norm(value)) if np.isfinite(value) and value > 0 else "lightgrey"

    for line in range(lines):
        for step in range(steps):
            cell = Rectangle((step - 0.44, line - 0.44), 0.88, 0.88, facecolor=shade(values[line, step]))
            cell.set_transform(turn + axis.transData)
            axis.add_patch(cell)
        tail, tip = turn.transform([(-0.75, line), (steps - 0.05, line)])
        axis.annotate(
            "", tip, tail, arrowprops={"arrowstyle": "->", "color": INK, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
        )
    reach = 0.75 * max(lines, steps)
    axis.set(
        xlim=((steps - 1) / 2 - reach, (steps - 1) / 2 + reach),
        ylim=((lines - 1) / 2 - reach, (lines - 1) / 2 + reach),
        aspect="equal",
        xticks=[],
        yticks=[],
        xlabel="time →" if stop["angle"] < 90 else "time → (here: one digit a column)",
        ylabel="depth →",
    )
    axis.grid(False)
    axis.set_title(f"{stop['angle']}°  {stop['name']}\n", fontweight="bold")
    axis.text(0.5, 1.01, stop["code"], transform=axis.transAxes, ha="center", family="monospace", fontsize=7.5)


def draw_ladder(figure: Any, result: dict) -> None:
    rungs = result["measurements"]["ladder"]
    left, middle, right = figure.subplots(1, 3, sharey=True)
    names, at = [rung["rung"] for rung in rungs], np.arange(len(rungs))
    for axis, values, colour in (
        (left, [rung["moved"] for rung in rungs], "#009E73"),
        (middle, [100 * np.array(rung["accuracy"]) for rung in rungs], "#0072B2"),
        (right, [rung["arrives"] for rung in rungs], "#D55E00"),
    ):
        for y, seeds in zip(at, values, strict=True):
            axis.plot(seeds, [y] * len(seeds), "o", color=colour, markersize=5, alpha=0.4, markeredgewidth=0)
            if len(seeds):
                axis.plot(np.mean(seeds), y, "|", color="black", markersize=14)
    left.set(
        yticks=at, yticklabels=names, title="what the change does", xlabel="largest change of the output, same weights"
    )
    left.set_xscale("symlog", linthresh=0.1, linscale=0.5)
    left.set_xlim(-0.03, 2 * np.nanmax([1.0, *(x for rung in rungs for x in rung["moved"])]) + 1)
    left.set_xticks([0, 0.1, 1, 10], ["0", "0.1", "1", "10"])
    left.invert_yaxis()
    middle.set(
        title="trained: test accuracy",
        xlabel=f"% ({result['data']['name']}; {counted(result['seeds'], 'seed')}; bar: mean)",
    )
    right.set(title="trained: gradient at the first step", xlabel="relative to the last step's", xscale="log")
    low, high = right.get_xlim()
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high]
    right.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    right.minorticks_off()
