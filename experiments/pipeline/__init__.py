"""The layers of a net over devices: which device works at which tick, as the devices tell, and what that gains.

The LSTM's chunks are of time, the residual net's are microbatches; `training.pipeline` runs both. They are measured in
a process of their own (`worker.py`); what a device did is told by marks in its program (`watch.py`).
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from rich.progress import Progress

from experiments.harness import (
    CONTRADICTED,
    INCONCLUSIVE,
    OUT_OF_REACH,
    REPRODUCED,
    Experiment,
    Finding,
    Refused,
    processor,
)
from experiments.pipeline.drawing import draw
from experiments.pipeline.numbers import PAPER, as_told, best, busy, ideal, speedup


@dataclass(frozen=True)
class Config:
    """`layers` of `hidden_size`, on each number of `stages`, cut into each number of `chunks`."""

    layers: int = 4
    hidden_size: int = 128
    batch: int = 16
    """sequences of the LSTM, of `steps` each"""
    steps: int = 64
    examples: int = 1024
    """of the residual net"""
    stages: tuple[int, ...] = (2, 4)
    chunks: tuple[int, ...] = (2, 8)
    calls: int = 5
    """how often each is timed, after once that is not"""
    seeds: ClassVar[int] = 1  # weights and inputs are drawn once: the times spread over calls


PRESETS = {
    "quick": Config(),
    # Four layers of 1000 and 128 sequences, as Sutskever et al. 2014; few steps, so that it takes minutes
    "cpu": Config(hidden_size=1000, batch=128, steps=16, examples=2048, chunks=(2, 4, 8, 16), calls=3),
}
SAID = 3.5  # the talk's own figure
PROCESSORS = 8
ROOT = Path(__file__).parents[2]


def run(config: Config, progress: Progress) -> dict:
    """The numbers of every pipeline. Raises Refused for layers that do not divide over the stages."""
    if any(config.layers % stages for stages in config.stages):
        raise Refused(f"--stages {config.stages}: each must divide the {config.layers} layers")
    rows = []
    task = progress.add_task("pipeline", total=2 * (1 + len(config.stages) * len(config.chunks)))
    for row in measured(asdict(config)):
        rows.append(row)
        progress.advance(task)
    progress.remove_task(task)
    return {"rows": rows, "processors": os.cpu_count() or 1, "hardware": processor()}


def measured(config: dict) -> Iterator[dict]:
    """What the worker writes, line by line, on as many virtual devices as there are stages."""
    settings = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={max(config['stages'])} "
        "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    command = [sys.executable, "-m", "experiments.pipeline.worker", json.dumps(config)]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=os.environ | settings) as process,
    ):
        try:
            yield from map(json.loads, process.stdout or ())
            if process.wait():
                log.seek(0)
                raise RuntimeError(f"the worker ended with status {process.returncode}: {log.read().decode()[-2000:]}")
        finally:
            process.kill()


def judge(measurements: dict) -> list[Finding]:
    processors, rows = measurements["processors"], measurements["rows"]
    top = best([row for row in rows if row["stack"] == "LSTM" and not row["plain"]], rows)
    told = sum(as_told(row) for row in rows if not row["plain"])
    pipelines = sum(not row["plain"] for row in rows)
    gained = speedup(top, rows)

    def verdict(factor: float) -> str:
        if processors < PROCESSORS or top["stages"] < 2:
            return OUT_OF_REACH
        if told < pipelines:
            return INCONCLUSIVE
        return REPRODUCED if gained >= factor else CONTRADICTED if gained < 1 else INCONCLUSIVE

    of_one = speedup({**top, "seconds": 1.0}, rows)  # its seconds: those of one device
    words = [top["items"] / seconds for seconds in (of_one, top["seconds"])]
    ours = (
        f"{told} of {pipelines} pipelines took M + S - 1 ticks each way, as their devices told; the LSTM's training "
        f"step was at best {gained:.2f} times as fast as on one device ({words[0]:,.0f} to {words[1]:,.0f} words/s; "
        f"{top['stages']} stages, {top['chunks']} chunks, ideal {ideal(top):.2f}), on {processors} cores"
    )
    rule = (
        "the greatest speed-up of the LSTM's gradient over one device, each device one core: reproduced at {} or more, "
        "contradicted below 1, else inconclusive, and so too if a device told of other ticks than M + S - 1, or of "
        f"another chunk than s - k at tick s on device k; out of reach here with fewer than {PROCESSORS} cores"
    )
    return [
        Finding("SUT24-pipeline", ours, verdict(SAID), rule.format(SAID)),
        Finding("SEQ14-speed", ours, verdict(PAPER), rule.format(f"{PAPER} (6,300 words/s over 1,700)")),
    ]


def table(measurements: dict) -> dict:
    columns = ["stack", "S", "M", "ticks told", "M + S - 1", "busy", "items/s", "faster than one", "ideal"]
    rows = []
    for row in measurements["rows"]:
        of_row = [row["stack"], row["stages"], row["chunks"]]
        rate = f"{row['items'] / row['seconds']:,.0f}"
        if row["plain"]:
            rows.append([*of_row, "no pipeline", "", "", rate, "", ""])
            continue
        ticks = sorted({each for way in row["ticks"].values() for each in way})
        rows.append(
            [
                *of_row,
                ", ".join(map(str, ticks)),
                row["chunks"] + row["stages"] - 1,
                f"{busy(row):.0%}",
                rate,
                f"{speedup(row, measurements['rows']):.2f}",
                f"{ideal(row):.2f}",
            ]
        )
    return {"columns": columns, "rows": rows}


EXPERIMENT = Experiment(
    name="pipeline",
    title="Layers over devices: ticks and speed-up of the pipeline",
    claims=("SUT24-pipeline", "SEQ14-speed"),
    presets=PRESETS,
    run=run,
    judge=judge,
    draw=draw,
    caption="Left: which device worked at which tick on which chunk, as the devices told while they ran: the "
    "wavefront, forward and then in reverse; grey: idle. Right: how much faster a training step is than on one device, "
    "ideally, S M / (M + S - 1), and as measured. The reverse pass runs every chunk again, a third more products, and "
    "the ideal leaves that out. Each device is one core; where they outnumber the cores they wait for one another, so "
    "that only as many stages as cores can be compared with the ideal.",
    table=table,
)
