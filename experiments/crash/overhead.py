"""What the training loop costs: `train` against a bare loop over the same jitted step, which waits at its end alone.

`python -m experiments.crash.overhead` takes five minutes, on a machine with nothing else to do. The loop reads its
data, logs and watches as always; what it saves at the end is not counted, what it saves every 50 steps is told apart.
"""

import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax

from experiments.crash.trainee import Trainee, parts
from lstm_rot.training import data
from lstm_rot.training.checkpoints import Checkpoints
from lstm_rot.training.log import JSON_LINES
from lstm_rot.training.run import Options, train

BATCHES = 5000
LARGER = Trainee(hidden_size=256, layers=2, batch=16, length=32)  # about 20 ms a step on two cores
STEPS, ROUNDS, FIRST, SAVE_EVERY = 120, 40, 20, 50  # the first steps, which compile, do not count


def main() -> None:
    made = parts(LARGER)
    print(f"batches alone, read and prepared: {_input_rate(made):,.0f} tokens/s")
    runs = {
        "bare": partial(_bare, made),
        "train": partial(_looped, made, STEPS),
        "saving": partial(_looped, made, SAVE_EVERY),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(ROUNDS):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            seconds[name].append(runs[name]())
        print(f"round {number + 1}:", *(f"{name} {1e3 * seconds[name][-1]:.2f} ms a step" for name in runs))
    _tell("train", seconds["train"], "the bare loop", seconds["bare"])
    _tell(f"a save every {SAVE_EVERY} steps", seconds["saving"], "train", seconds["train"])


def _tell(what: str, ours: list[float], against: str, theirs: list[float]) -> None:
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"{what}: {middle - 1:+.1%} on {against} at {1e3 * statistics.median(theirs):.1f} ms a step "
        f"(median of {len(ratios)}; the middle half {low - 1:+.1%} to {high - 1:+.1%})"
    )


def _input_rate(made: Any) -> float:
    """Tokens a second that the input gives where nothing else is done."""
    batches = made.batches()
    next(batches)
    began = time.perf_counter()
    tokens = sum(next(batches)["inputs"].size for _ in range(BATCHES))
    return tokens / (time.perf_counter() - began)


def _bare(made: Any) -> float:
    """Seconds a step."""
    state = made.first()
    batch = data.to_devices(next(made.batches()), made.batch_sharding)
    for step in range(STEPS):
        if step == FIRST:
            jax.block_until_ready(state)
            began = time.perf_counter()
        state, _ = made.step(state, batch)
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / (STEPS - FIRST)  # pyright: ignore


def _looped(made: Any, save_every: int) -> float:
    with tempfile.TemporaryDirectory() as name, Checkpoints(Path(name) / "checkpoints", config={}) as kept:
        train(
            made.first,
            made.step,
            made.batches(),
            options=Options(steps=STEPS, save_every=save_every, log_every=10),
            folder=Path(name),
            checkpoints=kept,
            shardings=made.shardings,
            batch_sharding=made.batch_sharding,
        )
        lines = [json.loads(line) for line in (Path(name) / JSON_LINES).read_text().splitlines()]
    rows = {line["step"]: line["time"] for line in lines}
    return (rows[STEPS] - rows[FIRST]) / (STEPS - FIRST)


if __name__ == "__main__":
    main()
