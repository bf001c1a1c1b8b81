"""Training error against depth, and, turned, against the length of a sequence: the same images, the same recipe.

Along depth a dense net of plain, residual or highway steps; along time the same image read in ever smaller pieces, down
to pixel by pixel, by a plain RNN, the same RNN with its keep at 1, the residual net's very step turned, and an LSTM.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from rich.progress import Progress

from experiments import data
from experiments.fit import counted, error_rates, fit, in_parallel, per_seed, spread
from experiments.harness import CONTRADICTED, INCONCLUSIVE, REPRODUCED, Experiment, Finding
from lstm_rot import TIME, residual, scan
from lstm_rot.branches import highway, lstm, rnn, with_keep
from lstm_rot.branches.common import layer_norm
from lstm_rot.models import classifier, resnet


@dataclass(frozen=True)
class Config:
    """`steps` training steps of Adam; the best of `learning_rates` by training loss counts, for each net its own."""

    depths: tuple[int, ...] = (5, 20, 100)
    pieces: tuple[int, ...] = (8, 1)
    """pixels that enter at a time step: an image of P x P pixels is a sequence of P * P / piece"""
    hidden_size: int = 32
    steps: int = 150
    batch: int = 32
    learning_rates: tuple[float, ...] = (3e-3,)
    seeds: int = 3
    data: str = "digits"


PRESETS = {
    "quick": Config(),
    "cpu": Config(
        depths=(5, 10, 20, 50, 100),
        pieces=(8, 4, 2, 1),
        hidden_size=64,
        steps=1000,
        batch=64,
        learning_rates=(1e-3, 3e-3),
        seeds=5,
    ),
}
CARRIED = partial(highway.init, gate_bias=-4.0)
NETS = {  # the best of its steps counts; Srivastava et al. searched the gate's bias too
    "plain": (resnet.PLAIN,),
    "residual": (resnet.RESIDUAL,),
    "highway": (resnet.HIGHWAY, resnet.Step(highway.highway, CARRIED)),
}
READERS = {
    "plain RNN": resnet.Step(rnn.rnn, rnn.init),
    "residual RNN": resnet.Step(with_keep(rnn.rnn, 1), rnn.init),
    "residual net's step": resnet.RESIDUAL,
    "LSTM": resnet.Step(lstm.lstm, lstm.init),
}


class Reader(NamedTuple):
    """Weights of a line along TIME, and of the head that reads its last output."""

    cell: Any
    scale: jax.Array
    w: jax.Array
    b: jax.Array


class Net(NamedTuple):
    """What `fit` trains: init(key) -> params, logits(params, images [B, P, P]) -> [B, 10]."""

    init: Any
    logits: Any


CLASSES = 10
TRAINED = 0.2  # a training error below which a net has learnt


def deep(config: Config, pixels: int, step: resnet.Step, depth: int) -> Net:
    """A net of `depth` steps; the whole image enters below."""
    body = resnet.Config(pixels * pixels, config.hidden_size, depth, step)
    model = classifier.Config(body, CLASSES)
    return Net(partial(classifier.init, config=model), partial(classifier.apply, config=model))


def long(config: Config, pixels: int, step: resnet.Step, length: int) -> Net:
    """The image as a sequence of `length` pieces, row by row."""
    piece, hidden = pixels * pixels // length, config.hidden_size
    line = scan(residual(step.branch), TIME)

    def init_reader(key: jax.Array) -> Reader:
        return Reader(step.init(key, piece, hidden), jnp.ones(hidden), jnp.zeros((hidden, CLASSES)), jnp.zeros(CLASSES))

    def logits(p: Reader, images: jax.Array) -> jax.Array:
        zeros = jnp.zeros((len(images), hidden))
        _, outputs = line(p.cell, (zeros, zeros), images.reshape(len(images), length, piece).swapaxes(0, 1))
        return layer_norm(outputs[-1], p.scale) @ p.w + p.b

    return Net(init_reader, logits)


def run(config: Config, progress: Progress) -> dict:
    images = data.images(config.data)
    pixels = images.train_x.shape[-1]
    if any(pixels * pixels % piece for piece in config.pieces):
        raise data.DataError(f"pieces={config.pieces}: each must divide the {pixels * pixels} pixels of {config.data}")
    lengths = sorted(pixels * pixels // piece for piece in config.pieces)
    nets = [
        ("depth", kind, size, [deep(config, pixels, step, size) for step in steps])
        for kind, steps in NETS.items()
        for size in config.depths
    ]
    nets += [
        ("time", kind, size, [long(config, pixels, step, size)]) for kind, step in READERS.items() for size in lengths
    ]

    def train(task: tuple[str, str, int, list[Net]]) -> dict:
        axis, kind, size, variants = task
        tries = []
        for net, rate in product(variants, config.learning_rates):
            params, losses = fit(
                per_seed(net.init, config.seeds),
                net.logits,
                images,
                steps=config.steps,
                batch=config.batch,
                learning_rate=rate,
                progress=progress,
                label=f"{kind}, {axis} {size}",
            )
            tries.append((losses[:, -50:].mean(1), rate, params, net))
        loss, rate, params, net = min(tries, key=lambda each: np.nan_to_num(each[0].mean(), nan=np.inf))
        row = {"axis": axis, "kind": kind, "size": size, "learning_rate": rate, "loss": loss.tolist()}
        row["train_error"], row["test_error"] = error_rates(net.logits, params, images)
        return row

    rows = in_parallel(train, nets, progress, "degradation")
    return {"rows": rows, "data": images.provenance}


def ends(measurements: dict, axis: str, kind: str) -> tuple[Any, Any, dict, dict]:
    """Training errors at the least and the greatest size, and their rows."""
    rows = [row for row in measurements["rows"] if (row["axis"], row["kind"]) == (axis, kind)]
    rows.sort(key=lambda row: row["size"])
    return np.array(rows[0]["train_error"]), np.array(rows[-1]["train_error"]), rows[0], rows[-1]


def rises(short: np.ndarray, long: np.ndarray) -> bool:
    """Whether the second error is the higher, by more than the two standard deviations together; 3 seeds tell."""
    return len(short) > 2 and bool(long.mean() - short.mean() > long.std(ddof=1) + short.std(ddof=1))


def judge(measurements: dict) -> list[Finding]:
    plain, highway = (ends(measurements, "depth", kind) for kind in ("plain", "highway"))

    def said(kind: str, end: tuple[Any, Any, dict, dict]) -> str:
        short, long, first, last = 100 * end[0], 100 * end[1], end[2]["size"], end[3]["size"]
        return f"{kind} {spread(short)}% at {first} layers, {spread(long)}% at {last}"

    trained = highway[3]["size"] >= 100 and rises(highway[1], plain[1]) and highway[1].mean() < TRAINED
    verdict = INCONCLUSIVE
    if rises(plain[1], plain[0]) or rises(*highway[:2]):
        verdict = CONTRADICTED
    elif rises(*plain[:2]) and trained:
        verdict = REPRODUCED
    return [
        Finding(
            "SRI15",
            f"training error of dense nets: {said('plain', plain)}; {said('highway', highway)}",
            verdict,
            "to rise is to be higher at the greatest depth than at the least by more than the two standard deviations "
            "together, of 3 seeds or more; reproduced if plain's training error rises and highway's, at 100 layers or "
            f"more, does not and is clearly below plain's, to below {TRAINED:.0%} at the greatest depth; contradicted "
            "if plain's falls or highway's rises; else inconclusive",
        )
    ]


def draw(result: dict) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    looks = {"plain": ("#D55E00", "--o"), "residual": ("black", "-s"), "highway": ("#CC79A7", "-.^")}
    looks |= {"plain RNN": ("#D55E00", "--o"), "residual RNN": ("#E69F00", "-v")}
    looks |= {"residual net's step": ("black", "-s"), "LSTM": ("#0072B2", "-D")}
    for axis, name in zip(axes, ("depth", "time"), strict=True):
        rows = [row for row in result["measurements"]["rows"] if row["axis"] == name]
        for kind in dict.fromkeys(row["kind"] for row in rows):
            mine = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["size"])
            errors = 100 * np.array([row["train_error"] for row in mine])
            sizes, (colour, style) = [row["size"] for row in mine], looks[kind]
            axis.plot(sizes, errors.mean(1), style, color=colour, label=kind, markersize=4)
            axis.fill_between(sizes, errors.min(1), errors.max(1), color=colour, alpha=0.2, linewidth=0)
        ticks = sorted({row["size"] for row in rows})
        axis.set_xscale("log")
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.axhspan(-0.03, 0.1, color="0.93", linewidth=0, zorder=0)
        axis.legend()
    axes[0].set(title="along depth: the whole image below", xlabel="layers")
    axes[0].set_ylabel("training error, %; below 0.1 (grey) linear")
    axes[0].set_yscale("symlog", linthresh=0.1, linscale=0.5)
    axes[0].set_ylim(-0.03, 130)
    axes[0].set_yticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    axes[1].set(title="turned, along time: the image in pieces", xlabel="time steps (longer: fewer pixels a step)")
    config = result["config"]
    figure.suptitle(
        f"Dense nets of hidden size {config['hidden_size']} after {config['steps']} steps "
        f"({result['data']['name']}, {counted(result['seeds'], 'seed')}: mean, least and greatest)",
        fontsize=9,
    )
    return figure


def table(measurements: dict) -> dict:
    columns = ["along", "net", "steps", "training error, %", "test error, %", "learning rate"]
    rows = [
        [
            row["axis"],
            row["kind"],
            row["size"],
            spread(100 * np.array(row["train_error"])),
            spread(100 * np.array(row["test_error"])),
            f"{row['learning_rate']:g}",
        ]
        for row in measurements["rows"]
    ]
    return {"columns": columns, "rows": rows}


EXPERIMENT = Experiment(
    name="degradation",
    title="Training error against depth, and turned, against the length of a sequence",
    claims=("SRI15",),
    presets=PRESETS,
    run=run,
    judge=judge,
    draw=draw,
    caption="Training error after the same number of steps: dense nets against depth, and recurrent nets against the "
    "number of pieces that the same images are read in. Lines: mean over the seeds; bands: least and greatest. The "
    "papers' nets are convolutional, or larger, and trained longer: at this size only the order can be compared.",
    table=table,
)
