"""Residual and plain convolutional nets of growing depth, and turned, recurrent nets on growing sequences.

Along depth the nets of He et al. 2015, Fig. 6; along time the same images read in ever smaller pieces, by a plain RNN,
the same with its keep at 1, and an LSTM. All are trained by one function, through `lstm_rot.training`: sharded, and
going on where they were when the same command is given again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from rich.progress import Progress

from experiments import nets
from experiments.cifar.drawing import draw
from experiments.cifar.judging import judge
from experiments.fit import spread
from experiments.harness import Experiment
from lstm_rot.models import classifier, conv_resnet, lstm, residual_rnn, rnn

Kind = Literal["plain", "residual", "pre-activated", "highway"]
STEPS: dict[str, conv_resnet.Step] = {
    "plain": conv_resnet.PLAIN,
    "residual": conv_resnet.RESIDUAL,
    "pre-activated": conv_resnet.PRE_ACTIVATED,
    "highway": conv_resnet.HIGHWAY,
}
READERS = {"plain RNN": rnn, "residual RNN": residual_rnn, "LSTM": lstm}
CLASSES = 10
WARMED = 110  # from this depth on He et al. begin at a tenth of the learning rate
WARM_STEPS = 400


@dataclass(frozen=True)
class Config:
    """What is trained. Along depth by the recipe of He et al. 2015, 4.2; along time by Adam, whose cosine ends at 0."""

    data: str = "digits"
    """digits, mnist or cifar10"""
    pixels: int = 8
    """per side: the images are averaged down to it"""
    width: int = 8
    """filters of the first stage"""
    depths: tuple[int, ...] = (8, 20)
    """6n + 2 layers"""
    kinds: tuple[Kind, ...] = ("plain", "residual")
    steps: int = 120
    batch: int = 128
    values: tuple[int, ...] = (16, 4)
    """values that a recurrent net reads at a step: an image of P x P x C is a sequence of P * P * C / values"""
    hidden_size: int = 32
    time_steps: int = 150
    """training steps of the recurrent nets"""
    time_rate: float = 3e-3
    """their learning rate"""
    points: int = 4
    """evaluations on the way"""
    seeds: int = 1
    mesh: str = ""
    """as in data=2; empty: all devices share the batch"""
    save_every: int = 500
    """steps between two checkpoints"""
    patience: float = 45.0
    """seconds that a step may take before the run gives up"""
    runs: str = "results/nets"
    """where checkpoints and logs go"""


PRESETS = {
    "quick": Config(),
    "cpu": Config(
        data="cifar10",
        pixels=16,
        depths=(8, 20, 56),
        steps=1000,
        values=(48, 12, 3),
        hidden_size=64,
        time_steps=600,
        points=4,
        seeds=3,
    ),
    "paper": Config(
        data="cifar10",
        pixels=32,
        width=16,
        depths=(20, 56, 32, 44, 110),
        steps=64_000,
        values=(96, 24, 6),
        hidden_size=128,
        time_steps=8000,
        points=64,
        save_every=1000,
    ),
}


def at_paper_size(config: Any) -> bool:
    """Whether nets along depth are trained on what the paper's are, with as many filters and for as many steps."""
    return all(
        getattr(config, name) == getattr(PRESETS["paper"], name)
        for name in ("data", "pixels", "width", "steps", "batch")
    )


def recipes(config: Config) -> list[tuple[str, str, int, nets.Recipe]]:
    """(axis, kind, size, recipe) of every run: all of a seed before the next, the first depths first."""
    shape = nets.pictures(config.data, config.pixels).train_x.shape
    values, channels = int(np.prod(shape[1:])), shape[3]
    runs = []
    for seed in range(config.seeds):
        for depth in config.depths:
            for kind in config.kinds:
                model = conv_resnet.Config(depth, STEPS[kind], width=config.width, channels=channels)
                warm = WARM_STEPS * config.steps // 64_000 if depth >= WARMED else 0
                recipe = nets.Recipe(
                    model, config.data, config.steps, config.pixels, config.batch, warm=warm, seed=seed
                )
                runs.append(("depth", kind, depth, recipe))
        for piece in config.values:
            for kind, body in READERS.items():
                model = classifier.Config(body.Config(piece, config.hidden_size), CLASSES)
                recipe = nets.Recipe(
                    model,
                    config.data,
                    config.time_steps,
                    config.pixels,
                    config.batch,
                    config.time_rate,
                    optimizer=nets.adam,
                    augment=False,
                    seed=seed,
                )
                runs.append(("time", kind, values // piece, recipe))
    return runs


def trained(
    config: Config, runs: list[tuple[str, str, int, nets.Recipe]], progress: Progress
) -> Iterator[tuple[str, str, int, nets.Net]]:
    """(axis, kind, size, net) of these runs, all or some of `recipes`, in their order."""
    task = progress.add_task("nets", total=len(runs))
    for axis, kind, size, recipe in runs:
        net = nets.trained(
            recipe,
            config.runs,
            points=config.points,
            mesh=config.mesh,
            save_every=config.save_every,
            patience=config.patience,
        )
        yield axis, kind, size, net
        progress.advance(task)
    progress.remove_task(task)


def run(config: Config, progress: Progress) -> dict:
    """A row for each net, its numbers one for each seed."""
    rows: dict[tuple, dict] = {}
    for axis, kind, size, net in trained(config, recipes(config), progress):
        row = rows.setdefault(
            (axis, kind, size),
            {"axis": axis, "kind": kind, "size": size, "parameters": nets.count(net.params), "images_per_second": []}
            | {"step": net.curve["step"], "loss": [], "train_error": [], "test_error": []},
        )
        for name in ("loss", "train_error", "test_error"):
            row[name].append(net.curve[name])
        row["images_per_second"].append(net.images_per_second)
    return {
        "data": nets.pictures(config.data, config.pixels).provenance,
        "rows": list(rows.values()),
        "at paper size": at_paper_size(config),
    }


def table(measurements: dict) -> dict:
    columns = ["along", "net", "layers or steps", "parameters", "training error, %", "test error, %", "images/s"]
    rows = [
        [
            row["axis"],
            row["kind"],
            row["size"],
            f"{row['parameters']:,}",
            *(spread([100 * curve[-1] for curve in row[name]]) for name in ("train_error", "test_error")),
            f"{np.median(row['images_per_second']):,.0f}",
        ]
        for row in measurements["rows"]
    ]
    return {"columns": columns, "rows": rows}


EXPERIMENT = Experiment(
    name="cifar",
    title="Plain and residual convolutional nets against depth, and turned, recurrent nets against length",
    claims=("HE15-degrade", "HE15-t6"),
    presets=PRESETS,
    run=run,
    judge=judge,
    draw=draw,
    caption="Top: training error while training, plain nets left and residual nets right, as Fig. 6 of He et al. 2015. "
    "It is that of the first training images, as many as there are test images, as they are. Bottom: errors at the "
    "end against depth, with the paper's test errors, of whole images, all filters and 64,000 steps, and, turned, of "
    "recurrent nets that read the same images in ever smaller pieces, against the number of steps. Lines: mean over "
    "the seeds; bands: least and greatest.",
    table=table,
)
