"""The dial: one number, the mean of keep, turned along both axes, and what becomes of the error and of the gradient.

Along depth by He et al. 2016's shortcuts of a residual net; along time by the forget bias of an LSTM, up to the LSTM of
1997, which keeps everything. A line of T steps hands its gradient back where 1 - keep is at most about 1/T.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import Progress

from experiments import cifar, nets
from experiments.dial import order, probing
from experiments.dial.drawing import draw
from experiments.dial.judging import PAPER_DEPTH, judge, sequences_until_solved
from experiments.dial.shortcuts import STEPS, start
from experiments.fit import in_parallel, spread
from experiments.harness import Experiment, Refused
from lstm_rot.models import conv_resnet


@dataclass(frozen=True)
class Config:
    """What is trained. Along depth by the recipe of He et al. 2015, 4.2; along time by Adam."""

    data: str = "digits"
    """of the nets along depth: digits, mnist or cifar10"""
    pixels: int = 8
    """per side: the images are averaged down to it"""
    depth: int = 8
    """6n + 2 layers, 3n steps of the stream"""
    width: int = 8
    """filters of the first stage"""
    shortcuts: tuple[str, ...] = ("identity", "exclusive:0")
    """of what is kept and added a factor each; or a gate and its bias at the start"""
    steps: int = 60
    """training steps along depth"""
    batch: int = 128
    """images a step"""
    cells: tuple[str, ...] = ("1997", "bias:1")
    """along time; bias: the LSTM's forget bias at the start"""
    length: int = 20
    """symbols of the shortest sequences; the longest have a tenth more"""
    hidden_size: int = 16
    stretches: int = 8
    """training along time, in stretches of 2,000 sequences"""
    sequences: int = 50
    """a training step along time; a divisor of 2,000"""
    time_rate: float = 1e-2
    """learning rate along time"""
    probes: int = 64
    """images and sequences over which keep and the gradient are measured"""
    seeds: int = 1
    mesh: str = ""
    """as in data=2; empty: all devices share the batch of images"""
    patience: float = 45.0
    """seconds that a step may take before the run gives up"""
    runs: str = "results/nets"
    """where checkpoints and logs of the nets along depth go"""


PRESETS = {
    "quick": Config(),
    "cpu": Config(
        data="cifar10",
        pixels=16,
        depth=20,
        shortcuts=(
            "identity",
            "0.5/0.5",
            "0.5/1",
            "0.9/1",
            "exclusive:0",
            "exclusive:-6",
            "shortcut:0",
            "shortcut:-6",
        ),
        steps=240,
        cells=tuple(order.KINDS),
        length=100,
        hidden_size=32,
        stretches=80,
        time_rate=3e-3,
        seeds=3,
    ),
}


def run(config: Config, progress: Progress) -> dict:
    """A row for each setting of the dial, its numbers one for each seed."""
    for field, known in (("shortcuts", STEPS), ("cells", order.KINDS)):
        unknown = [name for name in getattr(config, field) if name not in known]
        if unknown:
            raise Refused(f"--{field} {unknown[0]}: known are {', '.join(known)}")
    if order.STRETCH % config.sequences:
        raise Refused(f"--sequences {config.sequences}: give a divisor of {order.STRETCH}")
    task = progress.add_task("along depth", total=len(config.shortcuts) * config.seeds)
    deep = [along_depth(config, name, lambda: progress.advance(task)) for name in config.shortcuts]
    progress.remove_task(task)
    long = in_parallel(lambda name: along_time(config, name, progress), config.cells, progress, "along time")
    return {
        "data": nets.pictures(config.data, config.pixels).provenance,
        "rows": deep + long,
        "depth": config.depth,
        "steps": config.steps,
        "at paper size": config.depth == PAPER_DEPTH and cifar.at_paper_size(config),
    }


def along_depth(config: Config, name: str, done: Any) -> dict:
    """One shortcut: every seed's net probed before and after its training, and its errors after it."""
    there = nets.pictures(config.data, config.pixels)
    model = conv_resnet.Config(config.depth, STEPS[name], width=config.width, channels=there.train_x.shape[3])
    x = nets.normal(jnp.asarray(there.train_x[: config.probes]), there)
    row = _row("depth", name, model.blocks * conv_resnet.STAGES) | {"error": [], "train_error": []}
    for seed in range(config.seeds):
        recipe = nets.Recipe(model, config.data, config.steps, config.pixels, config.batch, seed=seed)
        net = nets.trained(recipe, config.runs, mesh=config.mesh, patience=config.patience)
        key = jax.random.key(seed)
        params = jax.device_get(net.params)
        _add(row, *(probing.of_net(model, p, x, key) for p in (start(key, model), params)))
        row["error"].append(net.curve["test_error"][-1])
        row["train_error"].append(net.curve["train_error"][-1])
        done()
    return row


def along_time(config: Config, name: str, progress: Progress) -> dict:
    """One cell: every seed's probed before and after its training, and its errors in each stretch of it."""
    kind = order.KINDS[name]
    learnt = order.learn(
        kind,
        length=config.length,
        hidden_size=config.hidden_size,
        stretches=config.stretches,
        batch=config.sequences,
        learning_rate=config.time_rate,
        seeds=config.seeds,
        progress=progress,
        label=name,
    )
    longest = config.length + config.length // 10
    xs = order.sequences(jax.random.key(config.seeds), config.probes, longest, longest=longest).xs
    row = _row("time", name, longest) | {
        "error": learnt.errors[:, -1].tolist(),
        "errors": learnt.errors.tolist(),
    }
    for seed in range(config.seeds):
        key = jax.random.key(seed)
        start = order.init(key, kind, config.hidden_size)
        params = jax.tree.map(lambda leaf, seed=seed: leaf[seed], learnt.params)
        _add(row, *(probing.of_cell(kind.branch, p, xs, key) for p in (start, params)))
    return row


def _row(axis: str, setting: str, steps: int) -> dict:
    return {"axis": axis, "setting": setting, "steps": steps, "start": [], "trained": []}


def _add(row: dict, start: dict, trained: dict) -> None:
    row["start"].append(start)
    row["trained"].append(trained)


def table(measurements: dict) -> dict:
    until = sequences_until_solved(measurements)

    def mean(row: dict, when: str, name: str) -> np.ndarray:
        return np.array([each[name] for each in row[when]])

    rows = [
        [
            row["axis"],
            row["setting"],
            row["steps"],
            *(spread(1 - mean(row, when, "keep")) for when in ("start", "trained")),
            spread(mean(row, "start", "log10_gain")),
            spread(100 * np.array(row["error"])),
            ", ".join(f"{n:,.0f}" for n in until[row["setting"]]) if row["axis"] == "time" else "-",
        ]
        for row in measurements["rows"]
    ]
    columns = ["along", "setting", "steps T", "1 - mean keep", "after training", "log10 gain at the start"]
    return {"columns": [*columns, "test error, %", "sequences until solved"], "rows": rows}


EXPERIMENT = Experiment(
    name="dial",
    title="The dial: the mean of keep, turned along depth and along time",
    claims=("HE16-t1", "GERS00-bias", "JOZ15-bias"),
    presets=PRESETS,
    run=run,
    judge=judge,
    draw=draw,
    caption="Each point is a setting of the dial. Top left: the test error at the end, less that of the identity, with "
    "the paper's (grey crosses; arrows where its net fails). All others: against the mean keep before training. Top "
    "right: the error at the end, with lines to the mean keep after training. Middle: the gain of the gradient over "
    "the line before training, with the product of the mean keeps, the direct path, as a curve: it falls off where "
    "1 - keep passes 1/T. Bottom: sequences until the task along time is solved, crosses where they would be by the "
    "paper's ratios.",
    table=table,
)
