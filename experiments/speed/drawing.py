"""The figure: the speed of each contender as a share of the bound, by shape."""

import math
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.speed.contenders import CHECKPOINTED, CUDNN, HOISTED, OURS, PRODUCTS, WAVEFRONT
from experiments.speed.goals import WORDS, busy, left_out, ratio, setting, shape

# name -> colour, marker, filled. Okabe & Ito 2008; where two share a colour, their markers differ
LOOKS = {
    OURS: ("#0072B2", "D", True),
    HOISTED: ("#0072B2", "D", False),
    "ours, reference": ("#0072B2", "d", False),
    WAVEFRONT: ("#56B4E9", ">", True),
    CHECKPOINTED: ("#56B4E9", "<", False),
    "torch": ("#D55E00", "o", True),
    CUDNN: ("#D55E00", "o", False),
    "flax linen": ("#009E73", "^", True),
    "flax nnx": ("#009E73", "v", False),
    "haiku": ("#CC79A7", "s", True),
    "equinox": ("#E69F00", "P", True),
    "keras": ("#000000", "X", True),
}
TICKS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10]
ROW = 0.42  # inches a shape


def draw(result: dict) -> Figure:
    measurements = result["measurements"]
    settings: dict[str, list[dict]] = {}
    for case in measurements["cases"]:
        if case["case"]["part"] == "plain" and PRODUCTS in case["contenders"]:
            settings.setdefault(setting(case), []).append(case)
    heights = [len(cases) for cases in settings.values()] or [1]
    figure, grid = plt.subplots(
        len(heights),
        2,
        figsize=(9.2, ROW * sum(heights) + 0.7 * len(heights) + 1.3),
        height_ratios=heights,
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for axes, (name, cases) in zip(grid, settings.items(), strict=False):
        for axis, mode in zip(axes, ("forward", "both"), strict=True):
            panel(axis, cases, mode)
            axis.set_title(f"{WORDS[mode]}: {name}", fontsize=9)
        axes[0].set_ylabel("B x T x D x H")
    for axis in grid[-1]:
        axis.set_xlabel("time of the products / time (log; right is faster)")
    said = f"{result['hardware']}; medians and quartiles{busy(measurements)}"
    figure.suptitle(f"The speed of LSTMs as a share of the bound, their matrix products alone\n{said}", fontsize=9.5)
    legend(figure, grid, result)
    return figure


def panel(axis: Axes, cases: list[dict], mode: str) -> None:
    """A row a shape, the first on top; within it each contender on a height of its own, so that none hides another."""
    there = [name for name in LOOKS if any(name in case["contenders"] for case in cases)]
    for row, case in enumerate(cases):
        if row % 2:
            axis.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0, linewidth=0)
        for place, name in enumerate(there):
            share = ratio(case, mode, PRODUCTS, ours=name)
            if math.isnan(share):
                continue
            colour, marker, filled = LOOKS[name]
            times, height = case["contenders"][name][mode], row + 0.76 * ((place + 0.5) / len(there) - 0.5)
            ends = [share * times["median"] / times[end] for end in ("high", "low")]
            axis.plot(ends, [height, height], color=colour, linewidth=1)
            axis.plot(
                share,
                height,
                marker,
                color=colour,
                markerfacecolor=colour if filled else "white",
                markersize=5.5,
                linestyle="",
                label=name,
            )
    axis.axvline(1, color="0.3", linewidth=1)
    axis.tick_params(labelbottom=True)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(TICKS))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    marks = [shape(case) + " (busy)" * bool(case.get("busy")) for case in cases]
    axis.set(yticks=range(len(cases)), yticklabels=marks, ylim=(len(cases) - 0.5, -0.5))
    axis.grid(axis="y", visible=False)


def legend(figure: Figure, grid: Any, result: dict) -> None:
    """Every contender once, and who was left out of all."""
    handles = {}
    for axis in [axis for row in grid for axis in row]:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    handles = {name: handles[name] for name in LOOKS if name in handles}
    out = left_out(result["measurements"]["cases"])
    absent = [f"{name} ({why})" for (name, why), where in out.items() if not where]
    title = "left out: " + ", ".join(absent) if absent else None
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=6, title=title, title_fontsize=8)
