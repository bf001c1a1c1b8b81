"""The figure: compiling, memory and step time against depth, and images per second."""

import math

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.speed.goals import busy
from experiments.very_deep.contenders import CHECKPOINTED, FLAX, FLAX_CORES, OURS, OURS_CORES, TORCH, TORCH_LAST
from experiments.very_deep.goals import COMPILING, MEMORY, STEPPING, UNITS, deep, figure, rated
from experiments.very_deep.worker import STEP

# name -> colour (Okabe & Ito 2008), marker
LOOKS = {OURS: ("#0072B2", "D"), CHECKPOINTED: ("#56B4E9", "<"), FLAX: ("#009E73", "^")}
COLOURS = {OURS: "#0072B2", OURS_CORES: "#0072B2", FLAX: "#009E73", FLAX_CORES: "#009E73"}
COLOURS |= {TORCH: "#D55E00", TORCH_LAST: "#D55E00"}


def draw(result: dict) -> Figure:
    measurements = result["measurements"]
    figures, grid = plt.subplots(2, 2, figsize=(9.2, 6.8), layout="constrained")
    cases = deep(measurements)
    of = next(iter(cases.values()))[0]["case"]
    titles = {
        COMPILING: ("Compiling a training step", "seconds"),
        MEMORY: (f"Temporary memory of a step, batch {of['analysed']}", "MB"),
        STEPPING: (f"A step, batch {of['batch']}", "milliseconds"),
    }
    for axis, (what, (title, unit)) in zip(grid.flat, titles.items(), strict=False):
        against_depth(axis, cases, what)
        axis.set(title=title, xlabel="layers (log)", ylabel=f"{unit} (log)")
    bars(grid[1, 1], rated(measurements))
    grid[0, 0].legend(fontsize=8)
    said = f"{of['pixels']} x {of['pixels']} pixels, float32; {result['hardware']}"
    marked = busy({"busy": False} | measurements)
    figures.suptitle(
        f"The CIFAR ResNet of He et al. 2015: a line of layers, and a Python loop over them\n{said}{marked}"
    )
    return figures


def against_depth(axis: Axes, cases: dict[int, list[dict]], what: str) -> None:
    """A line a contender; what is only known to be more is an arrow."""
    scale = UNITS[what][1]
    points = {name: {depth: figure(of, what, name) for depth, of in cases.items()} for name in LOOKS}
    for name, (colour, marker) in LOOKS.items():
        there = {depth: value * scale for depth, (value, _) in points[name].items() if not math.isnan(value)}
        axis.plot(list(there), list(there.values()), marker=marker, color=colour, label=name)
        for depth, value in there.items():
            more = points[name][depth][1]
            below = sum(other[depth][0] < points[name][depth][0] for other in points.values())
            above = sum(other[depth][0] > points[name][depth][0] for other in points.values())
            axis.annotate(
                "> " * more + (f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"),
                (depth, value),
                textcoords="offset points",
                fontsize=7.5,
                color=colour,
                bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
                **_beside(more, above, below),
            )
            if more:
                axis.annotate("", (depth, 2 * value), (depth, value), arrowprops={"arrowstyle": "->", "color": colour})
    axis.set(xscale="log", yscale="log")
    axis.xaxis.set_major_locator(FixedLocator(list(cases)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.margins(x=0.16, y=0.18)


def _beside(more: bool, above: int, below: int) -> dict:
    """Where a number stands: the greatest above its mark, the least below, what lies between on the right."""
    if more:
        return {"xytext": (-6, 0), "ha": "right", "va": "center"}
    if not above:
        return {"xytext": (0, 6), "ha": "center", "va": "bottom"}
    if not below:
        return {"xytext": (0, -6), "ha": "center", "va": "top"}
    return {"xytext": (7, 0), "ha": "left", "va": "center"}


def bars(axis: Axes, case: dict) -> None:
    """Images per second, median and quartiles."""
    names = [name for name in COLOURS if STEP in case["contenders"].get(name, {})][::-1]
    for row, name in enumerate(names):
        rates = {key: case["case"]["batch"] / case["contenders"][name][STEP][key] for key in ("median", "low", "high")}
        spread = [[rates["median"] - rates["high"]], [rates["low"] - rates["median"]]]
        axis.barh(row, rates["median"], color=COLOURS[name], xerr=spread, error_kw={"elinewidth": 1, "capsize": 2})
        axis.annotate(
            f"{rates['median']:.0f}",
            (rates["low"], row),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel="images/s, median and quartiles (right is faster)")
    axis.set_title(f"Training, {case['case']['depth']} layers, batch {case['case']['batch']}")
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.12)
