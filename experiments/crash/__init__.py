"""Training that is killed at random moments, again and again, against the same training left in peace.

Every process is ended by `kill -9`, half of them while a checkpoint is being saved, and the next goes on where the
newest whole checkpoint is (`kills.py`). At the end every loss, and the last state, must be the same bit for bit,
dropout and the order of the data included. Tests no claim of a paper.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from rich.progress import Progress

from experiments.crash.kills import live, moments, rows
from experiments.crash.trainee import Trainee
from experiments.data import text
from experiments.harness import Experiment, Refused


@dataclass(frozen=True)
class Config:
    """How often training is killed, and how long it is; `seed` draws the moments, and the run itself."""

    kills: int = 8
    steps: int = 100
    save_every: int = 5
    hidden_size: int = 32
    dropout: float = 0.1
    seed: int = 1
    seeds: ClassVar[int] = 1


PRESETS = {"quick": Config(), "cpu": Config(kills=100, steps=700)}


def run(config: Config, progress: Progress) -> dict:
    if config.dropout >= 1:
        raise Refused(f"--dropout {config.dropout}: give a probability below 1")
    trainee = Trainee(
        hidden_size=config.hidden_size,
        dropout=config.dropout,
        steps=config.steps,
        save_every=config.save_every,
        seed=config.seed,
    )
    task = progress.add_task("kill -9", total=config.kills)
    with tempfile.TemporaryDirectory() as folder:
        killed, spared = Path(folder) / "killed", Path(folder) / "spared"
        kills = moments(config.kills, config.save_every, config.seed)
        lives = live(killed, trainee, kills, lived=lambda life: progress.advance(task, life.killed))
        (peace,) = live(spared, trainee, [])
        ours, theirs = rows(killed), rows(spared)
    progress.remove_task(task)
    return {
        "data": text("manual").provenance,
        "kills": sum(life.killed for life in lives),
        "kills_in_a_save": sum(life.killed and life.in_save for life in lives),
        "losses_identical": ours == theirs,
        "steps_compared": len(theirs),
        "state_identical": lives[-1].digest == peace.digest,
        "seconds_to_go_on": [round(life.seconds, 3) for life in lives[1:] if life.seconds],
        "lives": [{"from": life.start, "to": life.end, "in_save": life.in_save} for life in lives],
        "losses": [row["loss"] for row in ours],
        "losses_in_peace": [row["loss"] for row in theirs],
    }


def draw(result: dict) -> Figure:
    found = result["measurements"]
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 5), sharex=True, layout="constrained", height_ratios=(3, 2))
    nats_to_bits = 1 / np.log(2)
    for name, style, label in (
        ("losses_in_peace", {"color": "#E69F00", "linewidth": 4, "alpha": 0.6}, "never killed"),
        ("losses", {"color": "black", "linewidth": 0.8}, f"killed {found['kills']} times"),
    ):
        above.plot(np.arange(1, len(found[name]) + 1), np.array(found[name]) * nats_to_bits, label=label, **style)
    lives = found["lives"]
    for number, life in enumerate(lives):
        below.plot([life["from"], life["to"]], [number, number], color="#0072B2", linewidth=1.2)
    deaths = lives[:-1]
    for in_save, marker, colour, label in ((False, "x", "black", "between saves"), (True, "o", "#D55E00", "in a save")):
        at = [(life["to"], number) for number, life in enumerate(deaths) if life["in_save"] is in_save]
        below.plot(
            *zip(*at, strict=True) if at else ([], []), marker, color=colour, markersize=3, label=f"killed {label}"
        )
    above.set_ylabel("loss, bits a byte")
    above.legend()
    below.set(xlabel="step", ylabel="process")
    below.invert_yaxis()
    below.legend(loc="upper right")
    return figure


def table(measurements: dict) -> dict:
    same = {True: "identical, bit for bit", False: "NOT identical"}
    seconds = measurements["seconds_to_go_on"]
    rows = [
        ["kill -9", str(measurements["kills"])],
        ["of them while a checkpoint was half written", str(measurements["kills_in_a_save"])],
        [f"the log of {measurements['steps_compared']} steps", same[measurements["losses_identical"]]],
        ["the last state", same[measurements["state_identical"]]],
        ["from start to the first step again", f"{np.median(seconds):.1f} s (median)" if seconds else "-"],
    ]
    both = measurements["losses_identical"] and measurements["state_identical"]
    title = f"killed {measurements['kills']} times, and never: {same[both]}"
    return {"title": title, "columns": ["what", "measured"], "rows": rows}


EXPERIMENT = Experiment(
    name="crash",
    title="Killed and resumed, training gives what it gives in peace",
    claims=(),
    presets=PRESETS,
    run=run,
    judge=lambda measurements: [],
    draw=draw,
    caption="Above: the loss of one run whose process was killed again and again, over that of the same run left in "
    "peace. Below: the life of each process, from the checkpoint where it goes on to the step in which it was killed.",
    table=table,
)
