"""What is measured of a layer: operations that wait for one another, seconds, memory, work."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bottleneck.layers import LAYERS, solved
from experiments.harness import Refused
from lstm_rot.training.cost import flops
from lstm_rot.training.hlo import Program

FAILURES = Refused, RuntimeError, ValueError  # of one layer, which the others outlive


def training_step(name: str, key: Any, steps: int, width: int, batch: int) -> tuple[Callable, tuple]:
    """A compiled loss and gradient (loss, Newton's Info, gradients) of the layer, and the arguments of its call."""
    layer = LAYERS[name]
    key_p, key_x = jax.random.split(key)
    args = layer.init(key_p, width), jax.random.normal(key_x, (steps, batch, width))

    def loss(p: Any, xs: Any) -> tuple[Any, Any]:
        ys, info = layer.run(p, xs)
        return jnp.square(ys).mean(), info

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)).lower(*args).compile(), args


def case(names: Sequence[str], steps: int, width: int, batch: int, seconds: float, tell: Callable[[], None]) -> list:
    """A row for each layer over a line of `steps`, their training steps called in turn for about `seconds`.

    All are compiled first, on as many threads as there are cores. A layer that fails, for lack of memory or because its
    line is not solved, has "failed" in its row, the reason, and no numbers.
    """
    where = {"steps": steps, "width": width, "batch": batch}
    rows, calls = {}, {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        programs = {name: pool.submit(_programs, name, steps, width, batch) for name in names}
        for name, compiled in programs.items():
            try:
                rows[name], calls[name] = _measured(name, steps, width, *compiled.result())
            except FAILURES as error:
                rows[name] = _failed(error)
            tell()
    failed: dict[str, Exception] = {}
    for name, times in in_turn(calls, seconds, failed=failed).items():
        low, middle, high = np.percentile(times, (25, 50, 75)).tolist()
        rows[name] |= {"seconds": middle, "quartiles": [low, high], "calls": len(times)}
    rows |= {name: _failed(error) for name, error in failed.items()}
    return [{"layer": name, **where, **row} for name, row in rows.items()]


def _failed(error: Exception) -> dict[str, Any]:
    return {"failed": str(error).strip().split("\n")[0][:200]}


def _programs(name: str, steps: int, width: int, batch: int) -> tuple[Any, tuple, str]:
    """The training step, its arguments, and the forward program's text."""
    step, args = training_step(name, jax.random.key(0), steps, width, batch)
    return step, args, "" if LAYERS[name].cudnn else _forward(name, *args).as_text()


def _measured(name: str, steps: int, width: int, step: Any, args: tuple, forward: str) -> tuple[dict, Callable]:
    layer = LAYERS[name]
    (_, info), _ = jax.block_until_ready(step(*args))
    told = solved(info, name, steps)
    return {
        "depth": None if layer.cudnn else Program(forward).depth(told),
        "iterations": told,
        "flops": None if info is not None else _work(name, width, args[1]),
        "bytes": step.memory_analysis().temp_size_in_bytes,  # pyright: ignore
    }, lambda: jax.block_until_ready(step(*args))


def _forward(name: str, p: Any, xs: Any) -> Any:
    return jax.jit(LAYERS[name].run).lower(p, xs).compile()


def _work(name: str, width: int, xs: Any) -> float:
    """FLOPs of the products of a forward run; of cuDNN's those of the same layer, which can be looked into."""
    layer = LAYERS[LAYERS[name].same or name]
    p = jax.eval_shape(lambda: layer.init(jax.random.key(0), width))
    return float(flops(layer.run, p, xs))


def in_turn(
    calls: dict[str, Callable],
    seconds: float,
    *,
    least: int = 5,
    most: int = 200,
    failed: dict[str, Exception] | None = None,
) -> dict[str, list[float]]:
    """The seconds of each call, one round after another, so that what slows the machine slows all.

    failed: takes those that fail, which are then called no more; None: it raises.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    for number in range(most):
        if number >= least and time.perf_counter() - begun > seconds:
            break
        for name in list(times):
            start = time.perf_counter()
            try:
                calls[name]()
            except FAILURES as error:
                if failed is None:
                    raise
                failed[name] = error
                del times[name]
            else:
                times[name].append(time.perf_counter() - start)
    return times


LONG = """
import json, resource, sys, time
import jax
from experiments.bottleneck.layers import LAYERS, solved
name, steps, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
p = LAYERS[name].init(jax.random.key(0), width)
xs = jax.random.normal(jax.random.key(1), (steps, 1, width))
run = jax.jit(LAYERS[name].run).lower(p, xs).compile()
start = time.perf_counter()
_, info = jax.block_until_ready(run(p, xs))
seconds, unit = time.perf_counter() - start, 1 if sys.platform == "darwin" else 1024
peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "peak": peak, "iterations": solved(info, name, steps)}))
"""


def long_line(name: str, steps: int, width: int) -> dict:
    """One line on the CPU in a process of its own: seconds of a call after compiling, and its peak of memory."""
    command = [sys.executable, "-c", LONG, name, str(steps), str(width)]
    on_cpu = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=on_cpu)
    told = {"failed": done.stderr.strip()[-200:]} if done.returncode else json.loads(done.stdout.splitlines()[-1])
    return {"layer": name, "steps": steps, "width": width, **told}
