"""Training in a child process that is killed at seeded moments and started again, until it is done."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.crash.trainee import Trainee, run
from lstm_rot.training.log import JSON_LINES, TIMES

PATIENCE = 300  # seconds without a word from a child


class Kill(NamedTuple):
    """The moment of a kill -9: `delay` seconds after the `count`th step or save of a process has begun."""

    what: str
    count: int
    delay: float


class Life(NamedTuple):
    """One process."""

    start: int  # the step from which it went on
    end: int  # the last step that it began
    seconds: float  # from its start to the end of its first step
    killed: bool
    in_save: bool  # it left a checkpoint half written
    digest: str  # of the last state, where it came to the end


def moments(kills: int, save_every: int, seed: int) -> list[Kill]:
    """Seeded: half of them while something is saved, half at any step."""
    rng = np.random.default_rng(seed)
    return [
        Kill("save", int(rng.integers(1, 4)), rng.uniform(0, 0.1))
        if rng.random() < 0.5
        else Kill("step", int(rng.integers(1, 4 * save_every + 1)), rng.uniform(0, 0.02))
        for _ in range(kills)
    ]


def live(
    folder: Path,
    config: Trainee,
    kills: list[Kill],
    *,
    lived: Callable[[Life], None] = lambda life: None,
    compiled: Path | None = None,
) -> list[Life]:
    """Every process of one run in `folder`, each killed as the next of `kills` says, the last left to its end."""
    lives = []
    while not lives or lives[-1].killed:
        kill = kills[len(lives)] if len(lives) < len(kills) else None
        lives.append(_life(folder, config, kill, compiled or folder / "compiled"))
        lived(lives[-1])
    return lives


def start(folder: Path, config: Trainee, name: str = "output", **options: Any) -> tuple[Any, Connection]:
    """A process that trains, its words in `folder/<name>.txt`, and what it tells. `options`: of `trainee.run`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.crash.trainee"])  # imports once for all
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(folder, config, name, theirs, options))
    child.start()
    theirs.close()
    return child, ours


def _child(folder: Path, config: Trainee, name: str, told: Connection, options: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    run(folder, config, told, **options)


def hear(told: Connection) -> Iterator[tuple[str, Any]]:
    """What a process tells, until it ends. Raises TimeoutError where it falls silent."""
    with suppress(EOFError):
        while told.poll(PATIENCE):
            yield told.recv()
        raise TimeoutError(f"the training process said nothing for {PATIENCE} s")


def _life(folder: Path, config: Trainee, kill: Kill | None, compiled: Path) -> Life:
    began, left = time.perf_counter(), kill.count if kill else 0
    first, last, seconds, digest = 0, 0, 0.0, ""
    child, told = start(folder, config, compiled=compiled)
    try:
        for what, value in hear(told):
            if what == "from":
                first = last = value
            elif what == "step":
                if last > first and not seconds:
                    seconds = time.perf_counter() - began
                last = value
            elif what == "end":
                digest = value
            if kill and what == kill.what and left:
                left -= 1
                if not left:
                    time.sleep(kill.delay)
                    child.kill()
        child.join()
    finally:
        child.kill()
        child.join()
        told.close()
    if child.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(
            f"training ended with status {child.exitcode}: {(folder / 'output.txt').read_text()[-2000:]}"
        )
    in_save = any("tmp" in path.name for path in (folder / "checkpoints").iterdir())
    return Life(first, last, seconds, child.exitcode != 0, in_save, digest)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The log of a run, without what tells the time."""
    lines = (folder / JSON_LINES).read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]
