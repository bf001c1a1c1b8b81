"""What the context is worth: associative recall and copying against distance, at as many parameters each.

An LSTM and a minLSTM hand on a vector, an mLSTM a matrix, attention all that it has read. Nets alike in all else are
trained on distances up to one, and asked at those and at greater ones.
"""

from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import chain

import jax
import numpy as np
from rich.progress import Progress

from experiments.fit import in_parallel, spread
from experiments.harness import Experiment, Refused
from experiments.recall import kinds
from experiments.recall.drawing import carried, draw
from experiments.recall.kinds import KINDS, Net
from experiments.recall.tasks import Copying, Recall, Task
from experiments.recall.training import CHUNK, Training, errors_at, held_out


@dataclass(frozen=True)
class Config:
    """What is trained, and at which distances it is asked."""

    kinds: tuple[str, ...] = ("lstm", "attention")
    """what mixes positions: lstm, minlstm, mlstm, attention"""
    parameters: int = 8_000
    """of each net, within 5%"""
    layers: int = 2
    """each a step that mixes positions, then an MLP"""
    pairs: int = 2
    """keys with their values to remember, in associative recall"""
    symbols: int = 8
    """keys there are, and values; to copy from too"""
    string: int = 3
    """symbols to copy"""
    trained: int = 16
    """the longest distance in training, in symbols"""
    distances: tuple[int, ...] = (8, 16, 32, 64)
    """at which errors are measured, in symbols"""
    steps: int = 300
    """of training; a multiple of 50"""
    batch: int = 32
    """sequences a step, always new ones"""
    rates: tuple[float, ...] = (1e-2,)
    """learning rates that the first seed tries; the other seeds have the best of them"""
    sequences: int = 200
    """by which the error at a distance is measured"""
    seeds: int = 1


PRESETS = {
    "quick": Config(),
    "cpu": Config(
        kinds=tuple(KINDS),
        parameters=16_000,
        pairs=4,
        string=5,
        trained=32,
        distances=(8, 16, 32, 64, 128, 256),
        steps=2000,
        rates=(3e-3, 1e-2),
        sequences=500,
        seeds=3,
    ),
}


def run(config: Config, progress: Progress) -> dict:
    """A row for each task and kind, its errors one for each seed and distance."""
    both = both_tasks(config)
    check(config, both)
    config = replace(config, distances=tuple(sorted(set(config.distances))))
    nets = [sized(config, both, kind) for kind in config.kinds]
    jobs = [(task, net) for task in both for net in nets]
    rows = in_parallel(lambda job: measured(config, job[0], job[1], progress), jobs, progress, "recall and copying")
    return {
        "data": provenance(config, both),
        "rows": rows,
        "tasks": {task.name: {"chance": 1 - 1 / task.symbols, "least": task.least} for task in both},
        "distances": list(config.distances),
        "trained": config.trained,
    }


def both_tasks(config: Config) -> tuple[Task, Task]:
    return Recall(config.pairs, config.symbols), Copying(config.string, config.symbols)


def check(config: Config, both: tuple[Task, Task]) -> None:
    """Raises Refused for what cannot be asked."""
    unknown = [kind for kind in config.kinds if kind not in KINDS]
    if unknown:
        raise Refused(f"--kinds {unknown[0]}: known are {', '.join(KINDS)}")
    if config.pairs > config.symbols:
        raise Refused(
            f"--pairs {config.pairs}: their keys are distinct, and there are {config.symbols}; give at most as many, "
            "or more --symbols"
        )
    least = max(task.least for task in both)
    for option, distance in (("trained", config.trained), *(("distances", each) for each in config.distances)):
        if distance < least:
            raise Refused(
                f"--{option} {distance}: the {config.pairs} pairs alone reach over {least} symbols; give at least "
                "that, or fewer --pairs"
            )
    if config.steps % CHUNK:
        raise Refused(f"--steps {config.steps}: give a multiple of {CHUNK}")


def sized(config: Config, both: tuple[Task, Task], kind: str) -> Net:
    """One for both tasks. Raises Refused where no net of this kind has the parameters asked for."""
    vocabulary = max(task.vocabulary for task in both)
    try:
        return kinds.sized(kind, config.parameters, layers=config.layers, vocabulary=vocabulary, answers=config.symbols)
    except ValueError as error:
        raise Refused(f"--parameters {config.parameters}: {error}; give more") from error


def measured(config: Config, task: Task, net: Net, progress: Progress) -> dict:
    """A row: of each rate the first seed's error at the end of its training, and at the best rate every seed's."""
    train = Training(task, net, trained=config.trained, steps=config.steps, batch=config.batch)
    runs = len(config.rates) + config.seeds - 1
    bar = progress.add_task(f"{task.name}, {net.kind}", total=runs * config.steps)
    done = partial(progress.advance, bar)
    tried = [train(rate, 0, done) for rate in config.rates]
    at_end = [errors[-1] for _, errors in tried]
    best = int(np.argmin(at_end))
    trained = [tried[best], *(train(config.rates[best], seed, done) for seed in range(1, config.seeds))]
    answer = jax.jit(partial(kinds.logits, net=net))
    error = [
        errors_at(task, lambda given, p=p: answer(p, given=given), config.distances, config.sequences)
        for p, _ in trained
    ]
    progress.remove_task(bar)
    return {
        "task": task.name,
        "kind": net.kind,
        "hidden": net.hidden,
        "parameters": kinds.parameters(net),
        "bytes": kinds.carried(net, 0),
        "bytes_a_symbol": kinds.carried(net, 1) - kinds.carried(net, 0),
        "rates": dict(zip(map(str, config.rates), at_end, strict=True)),
        "rate": config.rates[best],
        "curve": [errors for _, errors in trained],
        "error": error,
    }


def provenance(config: Config, both: tuple[Task, Task]) -> dict:
    """Of the sequences by which errors are measured."""
    digest = sha256()
    for task in both:
        for given in chain.from_iterable(held_out(task, config.distances, config.sequences)):
            digest.update(b"".join(part.astype("int32").tobytes() for part in given))
    names = " and ".join(task.name for task in both)
    return {"name": f"{names}, generated", "source": "experiments/recall/tasks.py", "sha256": digest.hexdigest()}


def table(measurements: dict) -> dict:
    """Errors in %, mean and standard deviation over the seeds."""
    columns = ["task", "kind", "parameters", "bytes carried", "learning rate"]
    columns += [f"error at {distance}, %" for distance in measurements["distances"]]
    rows = [
        [
            row["task"],
            row["kind"],
            f"{row['parameters']:,}",
            carried(row),
            f"{row['rate']:g}",
            *(spread(100 * error) for error in np.array(row["error"]).T),
        ]
        for row in measurements["rows"]
    ]
    title = f"What the context is worth: trained up to distance {measurements['trained']}; {found(measurements)}"
    return {"title": title, "columns": columns, "rows": rows}


SOLVED = 0.05  # the greatest mean error at which a distance counts as solved


def found(measurements: dict) -> str:
    """The finding, in words: up to which of the distances each kind has at most 5% wrong."""
    said = []
    for task in measurements["tasks"]:
        rows = [row for row in measurements["rows"] if row["task"] == task]
        each = ", ".join(f"{row['kind']} {_reach(row, measurements['distances'])}" for row in rows)
        said.append(f"{task}: {each}")
    return f"at most {SOLVED:.0%} wrong up to distance: {'; '.join(said)}"


def _reach(row: dict, distances: list[int]) -> str:
    """The greatest distance up to which all are solved."""
    solved = np.mean(row["error"], axis=0) <= SOLVED
    return str(distances[int(solved.argmin()) - 1 if not solved.all() else -1]) if solved[0] else "none"


EXPERIMENT = Experiment(
    name="recall",
    title="What the context is worth: recall and copying against distance, LSTM, mLSTM and attention",
    claims=(),
    presets=PRESETS,
    run=run,
    judge=lambda measurements: [],
    draw=draw,
    caption="The share of wrong answers against the distance, in symbols, between what is asked for and where it is "
    "asked for. Nets of as many parameters, alike but for what mixes positions; in the legend, the bytes that each "
    "hands on from step to step, of one sequence. Shaded: the distances of training. Dashed: the best that can be said "
    "by knowing which values or symbols there were, but not which stood where. Lines: means over the seeds; bars: the "
    "least and the greatest. The learning rate is the better one of those that the first seed tried.",
    table=table,
)
