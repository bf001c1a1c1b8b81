"""Newton's iterations: against a line's length, against how it amplifies, and against the dial, the mean of keep.

What a line along time or along depth costs to be solved at once, where its Lyapunov exponent is below 0 and above; and
one dial's two prices: turned until a net can be trained, what is it to be solved in parallel?
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import Progress
from scipy.stats import rankdata

from experiments import data
from experiments.bottleneck.measuring import in_turn
from experiments.fit import error_rates, fit, spread
from experiments.harness import Experiment, Refused, hardware
from experiments.mixing import nets
from experiments.mixing.nets import Net
from experiments.newton import lines
from experiments.newton.drawing import draw
from experiments.newton.judging import judge
from lstm_rot import Newton, Schedule, Sequential


@dataclass(frozen=True)
class Config:
    """What is solved, and what is trained: digits, read along time in pieces or classified along depth."""

    data: str = "digits"
    lengths: tuple[int, ...] = (8, 64)
    """cells of the untrained lines"""
    gains: tuple[float, ...] = (0.5, 3.0)
    """by which their weights on the state are multiplied"""
    kinds: tuple[str, ...] = ("plain RNN",)
    hidden_size: int = 8
    batch: int = 2
    """sequences, or images, in a line that is solved"""
    leaks: tuple[float, ...] = (0.7, 0.3, 0.02)
    """the dial: 1 - keep at the start, as the gate's bias sets it"""
    steps: int = 8
    """cells of the trained lines: pieces of an image, or layers"""
    training: int = 60
    """steps of Adam"""
    images: int = 32
    """a training step"""
    learning_rate: float = 1e-2
    seeds: int = 1


PRESETS = {
    "quick": Config(),
    "cpu": Config(
        lengths=(16, 64, 256),
        gains=(0.25, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0),
        kinds=tuple(lines.UNTRAINED),
        hidden_size=16,
        leaks=(0.95, 0.85, 0.7, 0.5, 0.3, 0.12, 0.05, 0.02, 0.003),
        steps=64,
        training=1500,
        learning_rate=3e-3,
        seeds=3,
    ),
}


def run(config: Config, progress: Progress) -> dict:
    """Rows of the untrained lines, of the dial's settings before and after training, and of the depths' seconds."""
    if wrong := [leak for leak in config.leaks if not 0 < leak < 1]:
        raise Refused(f"--leaks {wrong[0]}: 1 - keep lies between 0 and 1")
    if unknown := [name for name in config.kinds if name not in lines.UNTRAINED]:
        raise Refused(f"--kinds {unknown[0]!r}: known are {', '.join(lines.UNTRAINED)}")
    images = data.images(config.data)
    pixels = images.train_x[0].size
    if pixels % config.steps:
        raise Refused(f"--steps {config.steps}: give a divisor of the {pixels} pixels of {config.data}")
    task = progress.add_task("untrained", total=len(config.kinds) * len(config.lengths))
    rows = []
    for name in config.kinds:
        for length in config.lengths:
            rows += untrained(config, name, length)
            progress.advance(task)
    progress.remove_task(task)
    dial = [row for axis in lines.DIAL for row in turned(config, axis, images, progress)]
    return {
        "data": images.provenance,
        "untrained": rows,
        "dial": dial,
        "seconds": at_once(config),
        "platform": jax.devices()[0].platform,
        "device": hardware(),
    }


def untrained(config: Config, name: str, length: int) -> list[dict]:
    """Of every gain, its seeds in lists."""
    (axis, kind), rows = lines.UNTRAINED[name], []
    for gain in config.gains:
        row: dict[str, Any] = {"kind": name, "axis": axis, "length": length, "gain": gain}
        for seed in range(config.seeds):
            p, *entering = lines.untrained(name, jax.random.key(seed), length, config.hidden_size, config.batch)
            told = lines.measured(kind, axis, p._replace(wh=gain * p.wh), *entering)
            for key, value in told.items():
                row.setdefault(key, []).append(float(value))
        rows.append(row)
    return rows


def turned(config: Config, axis: str, images: data.Images, progress: Progress) -> list[dict]:
    """Every setting of the dial along that axis: all of them and all seeds are trained together."""
    net = Net(axis, lines.DIAL[axis], config.steps, images.train_x.shape[-1], config.hidden_size)
    settings = np.repeat(np.array(config.leaks), config.seeds)
    seeds = np.tile(np.arange(config.seeds), len(config.leaks))
    start = jax.jit(jax.vmap(lambda seed, leak: lines.opened(jax.random.key(seed), net, leak)))(seeds, settings)
    logits = partial(nets.logits, net=net)
    trained, losses = fit(
        start,
        logits,
        images,
        steps=config.training,
        batch=config.images,
        learning_rate=config.learning_rate,
        progress=progress,
        label=f"along {axis}",
    )
    train_error, test_error = error_rates(logits, trained, images)
    some = jnp.asarray(images.test_x[: config.batch])

    @jax.jit
    def probe(params: Any) -> dict:
        """One after another: iterations differ."""
        return jax.lax.map(lambda p: lines.measured(net.kind, axis, p.line, *nets.flows(p, some, net)), params)

    told = {when: jax.device_get(probe(params)) for when, params in (("start", start), ("trained", trained))}
    rows = []
    for setting in config.leaks:
        these = np.flatnonzero(settings == setting)
        row = {"axis": axis, "setting": setting, "length": config.steps}
        row |= {"train_error": [train_error[k] for k in these], "test_error": [test_error[k] for k in these]}
        row["loss"] = losses[these, -50:].mean(1).tolist()
        for when, numbers in told.items():
            row[when] = {name: [float(values[k]) for k in these] for name, values in numbers.items()}
        rows.append(row)
    return rows


def at_once(config: Config) -> dict:
    """Seconds of the longest untrained residual net, layer by layer and at once: medians of calls in turn."""
    length, (axis, kind) = max(config.lengths), lines.UNTRAINED["residual net"]
    given = lines.untrained("residual net", jax.random.key(0), length, config.hidden_size, config.batch)

    def way(schedule: Schedule) -> Callable[[], Any]:
        run = jax.jit(partial(nets.run, kind.branch, nets.AXES[axis], schedule=schedule))
        return lambda: jax.block_until_ready(run(*given))

    calls = {"layer by layer": way(Sequential()), "at once": way(Newton())}
    for call in calls.values():
        call()
    times = in_turn(calls, 0.0, least=10)
    return {"length": length, **{name: float(np.median(each)) for name, each in times.items()}}


def correlations(measurements: dict, axis: str) -> dict[str, float]:
    """Spearman's rank correlation of the iterations with what else the dial sets, over its settings, after training."""
    rows = [row for row in measurements["dial"] if row["axis"] == axis]
    names = {"gain of the gradient": "log10_gain", "exponent": "exponent", "mean keep": "keep"}
    others = {"test error": [np.mean(row["test_error"]) for row in rows]}
    others |= {name: [np.mean(row["trained"][key]) for row in rows] for name, key in names.items()}
    iterations = [np.mean(row["trained"]["iterations"]) for row in rows]
    return {name: rank_correlation(iterations, values) for name, values in others.items()}


def rank_correlation(a: Any, b: Any) -> float:
    """Spearman's; nan where one does not vary."""
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1]) if np.ptp(a) and np.ptp(b) else float("nan")


def table(measurements: dict) -> dict:
    rows: list[list[Any]] = []
    untrained = measurements["untrained"]
    lengths = sorted({row["length"] for row in untrained})
    for kind, gain in dict.fromkeys((row["kind"], row["gain"]) for row in untrained):
        line = {row["length"]: row for row in untrained if (row["kind"], row["gain"]) == (kind, gain)}
        counts = ", ".join(f"{np.mean(line[length]['iterations']):.3g}" for length in lengths)
        longest = line[lengths[-1]]
        told = [spread(longest["exponent"]), counts, spread(longest["log10_gain"])]
        cells = ", ".join(map(str, lengths))
        rows.append([longest["axis"], f"{kind}, gain {gain:g}", cells, "-", *told, "-"])
    for row in measurements["dial"]:
        for when in ("start", "trained"):
            now = row[when]
            told = [spread(now[name]) for name in ("exponent", "iterations", "log10_gain")]
            error = spread(100 * np.array(row["test_error"])) if when == "trained" else "-"
            what = f"dial {row['setting']:g}, {'after training' if when == 'trained' else 'at the start'}"
            rows.append([row["axis"], what, row["length"], spread(1 - np.array(now["keep"])), *told, error])
    for axis in lines.DIAL:
        for name, value in correlations(measurements, axis).items():
            rows.append([axis, f"iterations' rank correlation with the {name}", "", "", "", f"{value:+.2f}", "", ""])
    columns = [
        "along",
        "line",
        "cells",
        "1 - mean keep",
        "exponent a step",
        "iterations",
        "log10 gain",
        "test error, %",
    ]
    return {"columns": columns, "rows": rows}


EXPERIMENT = Experiment(
    name="newton",
    title="Solved at once: Newton's iterations, the Lyapunov exponent and the dial, along time and along depth",
    claims=("PRED25", "PCR23"),
    presets=PRESETS,
    run=run,
    judge=judge,
    draw=draw,
    caption="Left: iterations until a line of untrained cells is solved, against its largest Lyapunov exponent, a "
    "marker for each length, and against its length, a line for each kind and gain of the weights, coloured by the "
    "exponent; dotted: as many as there are cells, which always suffice. At an exponent of 0 lies the threshold of "
    "Gonzalez et al. 2025. Right: the dial, 1 - mean keep before training; hollow before training, filled after: the "
    "test error, the gain of the gradient over the line, no smaller than float32 can tell, the exponent, the "
    "iterations. Means over the seeds, with the least and the greatest. Above along time (LSTMs; untrained also "
    "plain), below along depth (highway nets; untrained plain and residual).",
    table=table,
)
