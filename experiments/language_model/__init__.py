"""Language models of bytes: recurrent stacks and a Transformer behind one head, as many parameters each, one training.

The runs go through `lstm_rot.training` whole: mesh, Grain, Orbax, log. One that is stopped goes on where it was when
the same command is given again; `--generate "..."` writes on with what was trained.
"""

import sys
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from rich.progress import Progress

from experiments import data
from experiments.harness import Experiment, Refused
from experiments.language_model.drawing import draw
from experiments.language_model.judging import judge
from experiments.language_model.training import trained
from lstm_rot.training.checkpoints import CheckpointError
from lstm_rot.training.distributed import Processes, connect
from lstm_rot.training.run import NotFinite

Name = Literal["lstm", "gru", "highway", "transformer"]


@dataclass(frozen=True)
class Config:
    """What is trained. Every model has about `parameters` parameters."""

    data: str = "manual"
    """a text: manual (Python's own), shakespeare, wikitext-2"""
    models: tuple[Name, ...] = ("lstm", "gru", "highway", "transformer")
    parameters: int = 60_000
    layers: int = 2
    context: int = 128
    """bytes in a window: no model sees further back"""
    batch: int = 16
    """windows in a step"""
    steps: int = 120
    learning_rate: float = 3e-3
    """the highest: it rises over a tenth of the steps, then falls along a cosine"""
    compute: Literal["float32", "bfloat16"] = "float32"
    """of the matrix products"""
    accumulate: int = 1
    """parts into which a batch is cut"""
    mesh: str = ""
    """as in data=4,model=2; empty: all devices share the batch; with stage=2 the layers are a pipeline"""
    chunks: int = 8
    """of a pipeline: the most pieces into which a window, or a Transformer's batch, is cut"""
    cluster: str = ""
    """several processes: auto, from the cluster's own environment, or HOST:PORT,PROCESSES,NUMBER to each by hand"""
    points: int = 12
    """of the curves: how often the validation text is read"""
    save_every: int = 200
    """steps between two checkpoints"""
    profile: int | None = None
    """steps to trace soon after the start, for TensorBoard or Perfetto"""
    seeds: int = 1
    runs: str = "results/language_model"
    """where checkpoints and logs go"""


PRESETS = {
    "quick": Config(models=("lstm", "transformer"), steps=200, points=5),
    "cpu": Config(
        data="shakespeare",
        models=("lstm", "transformer"),
        parameters=200_000,
        context=256,
        batch=32,
        steps=500,
        points=20,
        seeds=3,
    ),
}


def run(config: Config, progress: Progress) -> dict:
    """The numbers of every model and seed; of several processes the first alone returns."""
    text = data.text(config.data)
    if config.steps < config.points:
        raise Refused(f"--steps {config.steps} --points {config.points}: give at least as many steps as points")
    if config.cluster:
        connect(_processes(config.cluster))
    try:
        jobs = [(name, seed) for name in config.models for seed in range(config.seeds)]
        task = progress.add_task("language models", total=len(jobs))
        runs = []
        for name, seed in jobs:
            runs.append(trained(config, name, seed, text))
            progress.advance(task)
        progress.remove_task(task)
    except (ValueError, CheckpointError, NotFinite) as error:  # of what does not fit, or another run's folder
        raise Refused(str(error)) from error
    if config.cluster and jax.process_index():
        sys.exit(0)  # the first process tells what came out
    return {"data": text.provenance, "runs": runs}


def _processes(cluster: str) -> Processes:
    if cluster == "auto":
        return Processes()
    try:
        address, processes, number = cluster.split(",")
        return Processes(address, int(processes), int(number))
    except ValueError as error:
        raise Refused(f"--cluster {cluster}: give auto, or as in 127.0.0.1:1234,2,0 ({error})") from error


def table(measurements: dict) -> dict:
    """A row a model, and what each wrote."""
    rows = []
    for name in dict.fromkeys(run["model"] for run in measurements["runs"]):
        runs = [run for run in measurements["runs"] if run["model"] == name]
        bits = [run["test"] for run in runs]
        rows.append(
            [
                name,
                f"{runs[0]['parameters']:,}",
                f"{np.mean(bits):.3f} ± {np.std(bits):.3f}",
                f"{np.mean([run['valid'][-1] for run in runs]):.3f}",
                f"{np.median([run['bytes_per_second'] for run in runs]):,.0f}",
            ]
        )
    rows += [[run["model"], "wrote:", run["sample"], "", ""] for run in measurements["runs"] if run["seed"] == 0]
    columns = ["model", "parameters", "bits per byte, test", "validation", "bytes/s in training"]
    return {"columns": columns, "rows": rows}


EXPERIMENT = Experiment(
    name="language_model",
    title="Language models of bytes: recurrent stacks and a Transformer, as many parameters each",
    claims=("KAP20-fig7",),
    presets=PRESETS,
    run=run,
    judge=judge,
    draw=draw,
    caption="Left: bits per byte of windows of the validation text while training. Right: of the test text, at the "
    "end, by the position in the window, which is how many bytes the model has seen of it. Each seed has its own "
    "weights and its own order of the windows. A text in which all bytes were equally likely would take 8 bits each.",
    table=table,
)
