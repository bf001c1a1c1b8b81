"""The figure: compiling, memory and step time against depth, and images per second."""

import math

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.speed.goals import busy
from experiments.very_deep.contenders import CHECKPOINTED, FLAX, FLAX_CORES, OURS, OURS_CORES, TORCH, TORCH_LAST
from experiments.very_deep.goals import (
    COMPILING,
    FASTER,
    LONGER,
    MEMORY,
    SMALLER,
    STEPPING,
    UNITS,
    deep,
    figure,
    rated,
    share_of_peak,
)
from experiments.very_deep.worker import STEP

# name -> colour (Okabe & Ito 2008), marker
LOOKS = {OURS: ("#0072B2", "D"), CHECKPOINTED: ("black", "<"), FLAX: ("#009E73", "^")}
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
        mark_goals(axis, cases, what)
        axis.set(title=title, xlabel="layers (log)", ylabel=f"{unit} (log)")
    bars(grid[1, 1], rated(measurements))
    grid[0, 0].legend(fontsize=8)
    said = f"{of['pixels']} x {of['pixels']} pixels, float32; {result['hardware']}"
    marked = busy({"busy": False} | measurements)
    figures.suptitle(
        "The CIFAR ResNet of He et al. 2015: a line of layers, and a Python loop over them\n"
        f"{said}{marked}; {repeats(measurements)}",
        fontsize=9.5,
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
            others = [points[other][depth][0] * scale for other in points if other != name]
            axis.annotate(
                "> " * more + (f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"),
                (depth, value),
                textcoords="offset points",
                fontsize=7.5,
                color=colour,
                bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
                **_beside(value, others, more, depth == min(cases), depth == max(cases)),
            )
            if more:
                axis.annotate("", (depth, 2 * value), (depth, value), arrowprops={"arrowstyle": "->", "color": colour})
    axis.set(xscale="log", yscale="log")
    axis.xaxis.set_major_locator(FixedLocator(list(cases)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.margins(x=0.16, y=0.18)


def _beside(value: float, others: list[float], more: bool, first: bool, last: bool) -> dict:
    """Where a number stands: the greatest above its mark, the least below; one between where no line is, or it is far
    from the next.
    """
    above, below = ([other for other in others if sign * (other - value) > 0] for sign in (1, -1))
    if more or (above and below and first):
        return {"xytext": (-7, 0), "ha": "right", "va": "center"}
    if above and below and last:
        return {"xytext": (7, 0), "ha": "left", "va": "center"}
    if not above or (below and min(above) / value > value / max(below)):
        return {"xytext": (0, 6), "ha": "center", "va": "bottom"}
    return {"xytext": (0, -6), "ha": "center", "va": "top"}


def mark_goals(axis: Axes, cases: dict[int, list[dict]], what: str) -> None:
    """At the greatest depth, where ours is wanted to be below."""
    deepest, shallow = cases[max(cases)], cases[min(cases)]
    wanted = {
        COMPILING: {
            f"{LONGER} x {min(cases)} layers'": LONGER * figure(shallow, COMPILING, OURS)[0],
            f"1/{FASTER} of flax's": figure(deepest, COMPILING, FLAX)[0] / FASTER,
        },
        MEMORY: {f"1/{SMALLER} of ours": figure(deepest, MEMORY, OURS)[0] / SMALLER},
        STEPPING: {},
    }
    for label, value in wanted[what].items():
        if not math.isnan(value):
            at = max(cases), value * UNITS[what][1]
            axis.plot(*at, "_", color="0.35", markersize=20)
            words = {"fontsize": 6.5, "color": "0.35", "ha": "right", "va": "center"}
            axis.annotate(f"goal: {label}", at, (-11, 0), textcoords="offset points", **words)


def repeats(measurements: dict) -> str:
    """How often what is drawn was measured, in words."""
    calls = [
        numbers[STEP]["calls"]
        for case in measurements["cases"]
        for numbers in case["contenders"].values()
        if STEP in numbers
    ]
    times = max(case["case"]["compiles"] for case in measurements["cases"])
    compiling = f"of compiling up to {times} times, of" if times > 1 else "of"
    return f"medians: {compiling} {min(calls)} to {max(calls)} steps; weights drawn once"


def bars(axis: Axes, case: dict) -> None:
    """Images per second, median and quartiles."""
    names = [name for name in COLOURS if STEP in case["contenders"].get(name, {})][::-1]
    for row, name in enumerate(names):
        rates = {key: case["case"]["batch"] / case["contenders"][name][STEP][key] for key in ("median", "low", "high")}
        share = share_of_peak(case, name)
        spread = [[rates["median"] - rates["high"]], [rates["low"] - rates["median"]]]
        axis.barh(row, rates["median"], color=COLOURS[name], xerr=spread, error_kw={"elinewidth": 1, "capsize": 2})
        axis.annotate(
            f"{rates['median']:.0f}" + ("" if math.isnan(share) else f" ({100 * share:.2g} % of peak)"),
            (rates["low"], row),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    labels = [name.replace(", ", ",\n") for name in names]
    axis.set(yticks=range(len(names)), yticklabels=labels, xlabel="images/s, median and quartiles (right is faster)")
    axis.set_title(f"Training, {case['case']['depth']} layers, batch {case['case']['batch']}")
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.12)
