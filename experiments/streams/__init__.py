"""What each layer, and each time step, adds to its stream, and how far the stream then is from its end.

The trained nets of `experiments.cifar`, looked into along depth and turned onto time by the same functions: the spread
of responses (He et al. 2015, Fig. 7), and the view that a stage's blocks refine one estimate (Greff et al. 2016).
"""

from dataclasses import asdict, dataclass

import jax.numpy as jnp
import numpy as np
from rich.progress import Progress

from experiments import cifar, lines, nets
from experiments.fit import spread
from experiments.harness import Experiment
from experiments.streams.drawing import draw
from experiments.streams.judging import judge
from experiments.streams.measuring import measure

POINTS = 33  # of a line longer than this so many cells are published, the first and the last among them


@dataclass(frozen=True)
class Config(cifar.Config):
    """The nets are those of `experiments.cifar` with the same options: a run that has ended is restored."""

    images: int = 360
    """test images that are looked at"""


PRESETS = {
    "quick": Config(depths=(20,)),  # at 8 a stage is one block, which has no estimate before its last
    "cpu": Config(**asdict(cifar.PRESETS["cpu"]), images=1000),
    "paper": Config(**asdict(cifar.PRESETS["paper"]), images=1000),
}


def run(config: Config, progress: Progress) -> dict:
    """A row for each net: of each name of `measure`, a curve for each seed."""
    pictures = nets.pictures(config.data, config.pixels)
    x = jnp.asarray(pictures.test_x[: config.images])
    rows: dict[tuple, dict] = {}
    for axis, kind, size, net in cifar.trained(config, cifar.recipes(config), progress):
        count = lines.length(net.recipe)
        cells = np.unique(np.linspace(0, count - 1, POINTS).round().astype(int)) if axis == "time" else np.arange(count)
        row = rows.setdefault(
            (axis, kind, size),
            {"axis": axis, "kind": kind, "size": size, "cells": (cells + 1).tolist()}
            | {"stages": len(lines.stages(net.recipe))},
        )
        for name, curve in measure(net, x).items():
            shown = np.asarray(curve) if name == "layers" else np.asarray(curve)[cells]
            row.setdefault(name, []).append(shown.tolist())
    return {
        "data": pictures.provenance,
        "images": len(x),
        "rows": list(rows.values()),
        "at paper size": cifar.at_paper_size(config),
    }


def table(measurements: dict) -> dict:
    columns = ["along", "net", "layers or steps", "mean response of adds", "of all 3x3 layers"]
    columns += ["largest |E(x_l - x_end)|", "unit by unit", "greatest distance"]
    rows = []
    for row in measurements["rows"]:
        means = [spread(np.mean(row[name], axis=1)) if name in row else "-" for name in ("response", "layers")]
        largest = [spread(np.abs(row[name]).max(1)) for name in ("difference", "by_unit", "distance")]
        rows.append([row["axis"], row["kind"], row["size"], *means, *largest])
    return {"columns": columns, "rows": rows}


EXPERIMENT = Experiment(
    name="streams",
    title="What each layer adds to its stream, how far it then is from the stage's end, and both turned onto time",
    claims=("HE15-fig7", "GREFF16"),
    presets=PRESETS,
    run=run,
    judge=judge,
    draw=draw,
    caption="Trained nets looked into, along depth (left) and turned onto time (right), by the same functions. First "
    "the spread of what is added, in order and sorted: along depth of every 3x3 layer after its batch norm and before "
    "addition and rectifier, as Fig. 7 of He et al. 2015; along time of what a step adds, an LSTM's i g. Then how far "
    "each state is from the last of its stage: along depth what the blocks of a stage hand on after the rectifier, "
    "along time the stream after each step, an LSTM's c. Sizes are overlaid: the position is the share of the line. Of "
    f"lines of more than {POINTS} steps {POINTS} are shown, evenly spaced.",
    table=table,
)
