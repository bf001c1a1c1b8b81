"""What mixes what came before, along depth and along time: all ones, products of gates, or attention.

A stream is a sum of what was proposed before it, stream_l = sum_k M[l, k] add_k. M is measured in trained nets: of keep
1, gated, and of attention, whose cell, a cache of proposals, is the same along time and, turned, along depth.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import Progress

from experiments import data
from experiments.fit import error_rates, fit, in_parallel, per_seed, spread
from experiments.harness import Experiment, Refused
from experiments.mixing.drawing import draw
from experiments.mixing.judging import judge
from experiments.mixing.measuring import Mixing, entropy, from_ones, mixing, reach, rebuilt, second_value
from experiments.mixing.nets import KINDS, Net, init, logits

SHOWN = 32  # positions of a published matrix; of a longer line evenly spaced ones, the first and the last among them


@dataclass(frozen=True)
class Config:
    """`steps` training steps of Adam, for every net the same recipe."""

    depth: tuple[str, ...] = tuple(KINDS["depth"])
    """nets along depth"""
    time: tuple[str, ...] = tuple(KINDS["time"])
    """nets along time"""
    layers: int = 16
    """along depth"""
    piece: int = 4
    """pixels that enter at a time step: an image of P x P pixels is a sequence of P * P / piece"""
    hidden_size: int = 32
    steps: int = 400
    batch: int = 32
    learning_rate: float = 3e-3
    images: int = 16
    """test images, the first ones, on which the matrices are measured"""
    seeds: int = 1
    data: str = "digits"


PRESETS = {
    "quick": Config(depth=("residual", "highway", "attention"), time=("LSTM 1997", "LSTM", "attention")),
    "cpu": Config(layers=20, piece=28, hidden_size=64, steps=1000, batch=64, images=32, seeds=3, data="mnist"),
}


def run(config: Config, progress: Progress) -> dict:
    """A row for each net, its numbers one for each seed; its matrix is the first seed's."""
    images = data.images(config.data)
    check(config, images)
    pixels = images.train_x.shape[-1]
    sizes = {"depth": config.layers, "time": pixels**2 // config.piece}
    nets = [
        (name, Net(axis, KINDS[axis][name], size, pixels, config.hidden_size))
        for axis, size in sizes.items()
        for name in getattr(config, axis)
    ]

    def measure(task: tuple[str, Net]) -> dict:
        name, net = task
        params, losses = fit(
            per_seed(partial(init, net=net), config.seeds),
            partial(logits, net=net),
            images,
            steps=config.steps,
            batch=config.batch,
            learning_rate=config.learning_rate,
            progress=progress,
            label=f"{name}, along {net.axis}",
        )
        row = {"axis": net.axis, "kind": name, "form": net.kind.form, "loss": losses[:, -50:].mean(1).tolist()}
        row["train_error"], row["test_error"] = error_rates(partial(logits, net=net), params, images)
        x = jnp.asarray(images.test_x[: config.images])
        return row | looked_into([mixing(of_seed(params, seed), x, net=net) for seed in range(config.seeds)])

    return {"data": images.provenance, "rows": in_parallel(measure, nets, progress, "mixing")}


def check(config: Config, images: data.Images) -> None:
    """Raises Refused for what cannot be run."""
    for axis, known in KINDS.items():
        unknown = [name for name in getattr(config, axis) if name not in known]
        if unknown:
            raise Refused(f"--{axis} {unknown[0]!r}: known are {', '.join(map(repr, known))}")
    size = images.train_x[0].size
    if size % config.piece or size // config.piece < 3:
        raise Refused(f"--piece {config.piece}: give a divisor of the {size} pixels of {config.data}, up to a third")
    if config.layers < 2:
        raise Refused(f"--layers {config.layers}: give 2 or more: the matrix of fewer has no block of rank 2")
    if config.images > len(images.test_x):
        raise Refused(f"--images {config.images}: {config.data} has {len(images.test_x)} test images")


def of_seed(params: Any, seed: int) -> Any:
    """That seed's slice."""
    return jax.tree.map(lambda leaf: leaf[seed], params)


def looked_into(seeds: list[Mixing]) -> dict:
    """The numbers of each seed."""
    matrices = [np.asarray(found.matrix) for found in seeds]
    seconds = [second_value(matrix) for matrix in matrices]
    together = [second_value(matrix.mean((2, 3), keepdims=True)).item() for matrix in matrices]
    mean = matrices[0].mean((2, 3))
    shown = np.unique(np.linspace(0, len(mean) - 1, min(SHOWN, len(mean))).round().astype(int))
    return {
        "rebuilt": [rebuilt(found) for found in seeds],
        "from_ones": [from_ones(matrix) for matrix in matrices],
        "second": [float(each.max()) for each in seconds],
        "second_mean": [float(each.mean()) for each in seconds],
        "second_of_mean": together,
        "reach": [reach(matrix).tolist() for matrix in matrices],
        "entropy": [entropy(matrix).tolist() for matrix in matrices],
        "positions": len(mean),
        "shown": shown.tolist(),
        "matrix": [mean[row, shown[:count]].tolist() for count, row in enumerate(shown, start=1)],  # its lower triangle
    }


def table(measurements: dict) -> dict:
    columns = ["along", "net", "mixes by", "test error, %", "|M - 1|", "σ2/σ1 of a unit", "σ2/σ1 of the mean"]
    columns += ["reach of the last", "exp(entropy)", "M add - stream"]
    rows = [
        [
            row["axis"],
            row["kind"],
            row["form"],
            spread(100 * np.array(row["test_error"])),
            f"{max(row['from_ones']):.1e}",
            f"{max(row['second']):.1e}",
            spread(row["second_of_mean"]),
            f"{spread([curve[-1] for curve in row['reach']])} of {row['positions'] - 1}",
            f"{spread(np.exp([curve[-1] for curve in row['entropy']]))} of {row['positions']}",
            f"{max(row['rebuilt']):.1e}",
        ]
        for row in measurements["rows"]
    ]
    return {"columns": columns, "rows": rows}


EXPERIMENT = Experiment(
    name="mixing",
    title="Depth mixing: with what weight each stream holds what was proposed before it, along depth and along time",
    claims=("ATTNRES26",),
    presets=PRESETS,
    run=run,
    judge=judge,
    draw=draw,
    caption="The mixing matrix of trained nets, stream_l = sum over k of M[l, k] add_k: the mean over units and "
    "images, of the first seed. From the left: nets that keep everything; gated ones, of which the matrix of one unit "
    "is 1-semiseparable, the mean over units need not be; attention over what was proposed, one cell for both axes, "
    "turned. Right: how far a stream reaches back on average, sum_k M[l, k] (l - k) / sum_k M[l, k] (mean over seeds; "
    "bands: least and greatest). Along depth what is at position 0 is the embedding.",
    table=table,
)
