"""The sequential bottleneck: Vaswani et al. 2017's Table 1, read from compiled programs and timed, and the ways out.

Layers of one width over lines of growing length: LSTMs step by step, the same solved at once by Newton's method, LSTMs
affine in their state, attention, convolution. The argument that the bottleneck made LSTMs lose is Vaswani et al.'s and
Kaplan et al.'s; here stands what a clock says of it.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
from rich.progress import Progress

from experiments.bottleneck.drawing import draw
from experiments.bottleneck.judging import crossings, fits, judge, speed_ups
from experiments.bottleneck.layers import LAYERS
from experiments.bottleneck.measuring import case, long_line
from experiments.harness import Experiment, Refused, hardware


@dataclass(frozen=True)
class Config:
    """What is measured."""

    layers: tuple[str, ...] = ("LSTM", "minLSTM", "minLSTM, at once", "attention", "convolution")
    """cuDNN's are left out where there is no GPU"""
    widths: tuple[int, ...] = (16,)
    steps: tuple[int, ...] = (16, 128)
    """positions in a line"""
    unit_steps: tuple[int, ...] = ()
    """positions of the GRU of one unit"""
    batch: int = 1
    """sequences"""
    seconds: float = 0.5
    """for the training steps of all layers at one width and length, in turn"""
    long: int = 1000
    """steps of a diagonal LSTM in a process of its own, whose memory is told"""
    long_width: int = 16
    seeds: ClassVar[int] = 1  # weights and inputs are drawn once: the times spread over calls


PRESETS = {
    "quick": Config(),
    "cpu": Config(
        layers=tuple(LAYERS),
        widths=(16, 128),
        steps=(64, 256, 1024, 2048),
        unit_steps=(1000, 10_000),
        seconds=8.0,
        long=1_000_000,
    ),
    "paper": Config(
        layers=tuple(LAYERS),
        widths=(16, 512),
        steps=(128, 1024, 8192),
        unit_steps=(1000, 10_000, 100_000),
        batch=8,
        seconds=8.0,
        long=1_000_000,
    ),
}


def run(config: Config, progress: Progress) -> dict:
    """The rows of every width and length, those of the GRU of one unit, and the long line."""
    for name in config.layers:
        if name not in LAYERS:
            raise Refused(f"--layers {name!r}: known are {', '.join(LAYERS)}")
    if missing := {"LSTM", "attention", "convolution"} - set(config.layers):
        raise Refused(f"--layers: {', '.join(sorted(missing))} is what the table compares: name it too")
    gpu = jax.default_backend() == "gpu"
    there = [name for name in config.layers if gpu or not LAYERS[name].cudnn]
    cases = [
        ([name for name in there if width <= LAYERS[name].widest], steps, width)
        for width in config.widths
        for steps in config.steps
    ]
    cases += [(["GRU", "GRU, Newton"], steps, 1) for steps in config.unit_steps]
    task = progress.add_task("bottleneck", total=sum(len(names) for names, *_ in cases))
    rows = []
    for names, steps, width in cases:
        rows += case(names, steps, width, config.batch, config.seconds, lambda: progress.advance(task))
        jax.clear_caches()
    progress.remove_task(task)
    long = [long_line(name, config.long, config.long_width) for name in ("diagonal LSTM", "diagonal LSTM, Newton")]
    return {"rows": rows, "long": long, "device": hardware(), "platform": jax.devices()[0].platform}


def table(measurements: dict) -> dict:
    faster = {
        (name, width, steps): ratio
        for name, layer in LAYERS.items()
        if layer.same
        for width, steps, ratio in speed_ups(measurements, name)
    }
    rows = []
    for row in sorted(measurements["rows"], key=lambda row: (row["width"], row["steps"])):
        path, where = LAYERS[row["layer"]].path, (row["layer"], row["width"], row["steps"])
        told = _failed(row) if "failed" in row else _numbers(row, faster.get(where))
        rows.append(
            [row["width"], f"{row['steps']:,}", row["layer"], f"{path(row['steps']):,}" if path else "-", *told]
        )
    for row in measurements["long"]:
        told = _failed(row) if "failed" in row else _long_numbers(row)
        rows.append([row["width"], f"{row['steps']:,}", f"{row['layer']}, forward, CPU", "", *told])
    for width, layer, other, from_where in crossings(measurements):
        rows.append([width, from_where, f"{layer}: faster than {other}", *[""] * 7])
    columns = [
        "width",
        "T",
        "layer",
        "longest path",
        "operations in a row",
        "iterations",
        "ms a training step",
        "times step by step",
        "MB",
        "MFLOP forward",
    ]
    return {"columns": columns, "rows": rows}


def _failed(row: dict) -> list[str]:
    return [f"failed: {row['failed']}", *[""] * 5]


def _long_numbers(row: dict) -> list[str]:
    memory = f"{1e-6 * row['peak']:,.0f} in all, {fits(row)}"
    return ["", _number(row["iterations"], "{:.0f}"), f"{1e3 * row['seconds']:.3g}", "", memory, ""]


def _numbers(row: dict, faster: float | None) -> list[str]:
    return [
        _number(row["depth"], "{:,.0f}"),
        _number(row["iterations"], "{:.0f}"),
        f"{1e3 * row['seconds']:.3g}",
        _number(faster, "{:.2g}"),
        f"{1e-6 * row['bytes']:.3g}",
        _number(row["flops"], "{:.3g}", 1e-6),
    ]


def _number(value: float | None, form: str, unit: float = 1.0) -> str:
    return "-" if value is None or value != value else form.format(unit * value)


EXPERIMENT = Experiment(
    name="bottleneck",
    title="The sequential bottleneck, and the ways out of it",
    claims=("VAS17-t1", "NOTE-bottleneck", "MIN24", "DEER23", "PARA25", "FLASH24"),
    presets=PRESETS,
    run=run,
    judge=judge,
    draw=draw,
    caption="One layer each, against the positions T of a line. Operations in a row: the longest chain of the compiled "
    "forward program, loops counted in full, Newton's by the iterations it took; thin, how a number grows as T, as "
    "log T and not at all. Seconds: medians of training steps called in turn, with quartiles where they were kept. "
    "Dashed: the same function as the line of its colour, solved at once, dash-dotted: by cuDNN; right, its speed over "
    "step by step, with the papers' own (Lim et al. 2023, a GRU of one unit; Feng et al. 2024, minLSTM) as stars.",
    table=table,
)
