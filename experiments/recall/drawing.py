"""The figure, from the published numbers alone."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.fit import counted
from experiments.recall.tasks import unbound

LOOKS = {  # colour, marker, name
    "lstm": ("#0072B2", "o", "LSTM"),
    "minlstm": ("#56B4E9", "v", "minLSTM"),
    "mlstm": ("#D55E00", "s", "mLSTM"),
    "attention": ("#009E73", "D", "attention"),
}
APART = 1.03  # factor by which the kinds' points stand beside each other, so that bars do not hide one another


def draw(result: dict) -> Figure:
    measurements, config = result["measurements"], result["config"]
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.6), sharey=True, layout="constrained")
    for axis, task, places in zip(axes, measurements["tasks"], (config["pairs"], config["string"]), strict=True):
        errors(axis, [row for row in measurements["rows"] if row["task"] == task], measurements)
        levels(axis, measurements, task, unbound(places, config["symbols"]))
    axes[0].set_title(f"associative recall: {config['pairs']} pairs of {config['symbols']} keys and values", fontsize=9)
    axes[1].set_title(f"copying: {config['string']} symbols of {config['symbols']}, each counted", fontsize=9)
    axes[0].set(xlabel="from key to question, symbols", ylabel="wrong answers, %")
    axes[1].set_xlabel("blanks between string and copy, symbols")
    figure.suptitle(
        f"{config['layers']} layers, about {config['parameters']:,} parameters each, {config['steps']:,} steps of "
        f"{config['batch']} sequences; {counted(result['seeds'], 'seed')}: mean, least and greatest",
        fontsize=9,
    )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def errors(axis: Axes, rows: list[dict], measurements: dict) -> None:
    """Of each kind the error against distance."""
    distances = np.array(measurements["distances"])
    for place, row in enumerate(rows):
        colour, marker, name = LOOKS[row["kind"]]
        error = 100 * np.array(row["error"])
        mean = error.mean(0)
        axis.errorbar(
            distances * APART ** (place - (len(rows) - 1) / 2),
            mean,
            [mean - error.min(0), error.max(0) - mean],
            fmt=f"{marker}-",
            color=colour,
            markersize=4.5,
            linewidth=1.3,
            elinewidth=0.9,
            label=f"{name}: {carried(row)}",
        )
    axis.set_xscale("log", base=2)
    axis.set(xlim=(min(distances) / 1.2, max(distances) * 1.2), ylim=(-3, 100))
    axis.set_xticks(distances, [str(distance) for distance in distances])
    axis.minorticks_off()


def levels(axis: Axes, measurements: dict, task: str, known: float) -> None:
    """The distances of training, and what is wrong by chance, or by knowing what was there and not where."""
    about = measurements["tasks"][task]
    start = max(about["least"], axis.get_xlim()[0])
    axis.axvspan(start, measurements["trained"], color="0.93", label="distances of training")
    axis.axhline(100 * about["chance"], color="grey", linestyle=":", linewidth=1.2, label="chance")
    label = "what was there is known, not where"
    axis.axhline(100 * known, color="grey", linestyle="--", linewidth=1, label=label)


def carried(row: dict) -> str:
    """What a net hands on from step to step, of one sequence; attention so much for each symbol that it has read."""
    if row["bytes_a_symbol"]:
        return f"{row['bytes_a_symbol']:,} bytes a symbol"
    return f"{row['bytes']:,} bytes"
