"""What the training loop costs: `train` against a bare loop over the same jitted step, which waits at its end alone.

`python -m experiments.crash.overhead` takes five minutes, on a machine with nothing else to do. The loop reads its data,
logs and watches as always; what it saves at the end is not counted.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from experiments.crash.trainee import Trainee, parts
from lstm_rot.training import data
from lstm_rot.training.checkpoints import Checkpoints
from lstm_rot.training.log import JSON_LINES
from lstm_rot.training.run import Options, train

LARGER = Trainee(hidden_size=256, layers=2, batch=16, length=32)  # about 20 ms a step on two cores
STEPS, ROUNDS, FIRST = 120, 60, 20  # the first steps, which compile, do not count


def main() -> None:
    made = parts(LARGER)
    bare, looped = [], []
    for number in range(ROUNDS):
        for seconds, run in ((bare, _bare), (looped, _looped))[:: 1 if number % 2 else -1]:
            seconds.append(run(made))
        print(f"round {number + 1}: bare {1e3 * bare[-1]:.2f} ms a step, train {1e3 * looped[-1]:.2f} ms")
    ratios = [one / other for one, other in zip(looped, bare, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"train takes {middle - 1:+.1%} (median of {ROUNDS}; the middle half {low - 1:+.1%} to {high - 1:+.1%})")


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


def _looped(made: Any) -> float:
    with tempfile.TemporaryDirectory() as name, Checkpoints(Path(name) / "checkpoints", config={}) as kept:
        train(
            made.first,
            made.step,
            made.batches(),
            options=Options(steps=STEPS, log_every=10),
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
