"""The figure: the wavefront of each stack as its devices told of it, and the speed-ups."""

from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.pipeline.numbers import PAPER, ideal, speedup

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]  # Okabe & Ito 2008, by number of stages
MARKERS = {"LSTM": "D", "residual net": "o"}
SHOWN = 8  # chunks, or as near as there is


def draw(result: dict) -> Figure:
    rows = [row for row in result["measurements"]["rows"] if not row["plain"]]
    figure = plt.figure(figsize=(9.6, 4.3), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.3, 1))
    for place, (stack, cut) in enumerate((("LSTM", "chunks of time"), ("residual net", "microbatches"))):
        there = [row for row in rows if row["stack"] == stack]
        row = min(there, key=lambda row: (-row["stages"], abs(row["chunks"] - SHOWN)))
        wavefront(figure.add_subplot(grid[place, 0]), row, f"{stack}, {row['chunks']} {cut}")
    speedups(figure.add_subplot(grid[:, 1]), result["measurements"])
    config = result["config"]
    figure.suptitle(
        f"{config['layers']} layers of {config['hidden_size']} on {result['hardware']}: forward and backward",
        fontsize=9,
    )
    return figure


def wavefront(axis: Axes, row: dict, title: str) -> None:
    """Device against tick, forward and then in reverse; a square is a chunk, its colour and number which."""
    colours, offset = colormaps["viridis"], 0
    for way, ticks in row["ticks"].items():
        for device, count in enumerate(ticks):
            axis.add_patch(Rectangle((offset, device), count, 1, facecolor="0.92", edgecolor="none"))
        for device, tick, chunk in row["cells"][way]:
            shade = chunk / max(row["chunks"] - 1, 1)
            axis.add_patch(
                Rectangle((offset + tick, device), 1, 1, facecolor=colours(0.15 + 0.8 * shade), edgecolor="white")
            )
            if row["chunks"] <= 2 * SHOWN:
                colour = "black" if shade > 0.6 else "white"
                place = offset + tick + 0.5, device + 0.5
                axis.text(*place, str(chunk), color=colour, ha="center", va="center", fontsize=6.5)
        if way == "forward":
            offset = max(ticks)
            axis.axvline(offset, color="black", linewidth=1)
    forward, reverse = (max(row["ticks"][way]) for way in ("forward", "reverse"))
    axis.set(xlim=(0, forward + reverse), ylim=(row["stages"], 0), ylabel="device")
    step = max(1, forward // 8)
    shown = [*range(0, forward, step)], [*range(0, reverse, step)]
    axis.set_xticks([tick + 0.5 for tick in shown[0]] + [forward + tick + 0.5 for tick in shown[1]])
    axis.set_xticklabels([str(tick) for ticks in shown for tick in ticks], fontsize=7)
    axis.set_yticks([device + 0.5 for device in range(row["stages"])], [str(k) for k in range(row["stages"])])
    axis.set_xlabel("tick, forward | in reverse")
    axis.set_title(f"{title}: {forward} + {reverse} ticks", fontsize=9)
    axis.grid(visible=False)


def speedups(axis: Axes, measurements: dict) -> None:
    """Against the number of chunks: lines ideal, markers measured; hollow where devices outnumber the cores."""
    rows = [row for row in measurements["rows"] if not row["plain"]]
    chunks = sorted({row["chunks"] for row in rows})
    line = sorted({*chunks, *(2**k for k in range(8) if 2**k <= max(chunks))})
    numbers = sorted({row["stages"] for row in rows})
    for stages, colour in zip(numbers, COLOURS, strict=False):
        axis.plot(
            line,
            [ideal({"stages": stages, "chunks": chunk}) for chunk in line],
            color=colour,
            label=f"ideal, {stages} stages",
        )
        for stack, marker in MARKERS.items():
            mine = [row for row in rows if (row["stack"], row["stages"]) == (stack, stages)]
            enough = stages <= measurements["processors"]
            axis.plot(
                [row["chunks"] for row in mine],
                [speedup(row, measurements["rows"]) for row in mine],
                marker,
                color=colour,
                markerfacecolor=colour if enough else "white",
                markersize=5,
                linestyle=":",
                linewidth=0.8,
                label=f"{stack}, {stages} stages" + " (more than cores)" * (not enough),
            )
    axis.axhline(PAPER, color="black", linestyle="--", linewidth=1)
    axis.annotate(
        f"Sutskever et al. 2014: {PAPER} on 8 GPUs",
        (1, PAPER),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=7.5,
    )
    axis.axhline(1, color="0.5", linewidth=0.8)
    axis.set_xscale("log", base=2)
    axis.set_xticks(chunks, [str(chunk) for chunk in chunks])
    axis.minorticks_off()
    axis.set(ylim=(0, 4.2), xlabel="chunks M", ylabel="times as fast as one device")
    axis.set_title("speed-up of a training step", fontsize=9)
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
