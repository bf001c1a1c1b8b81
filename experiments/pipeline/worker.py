"""What is measured, in a process of its own: the devices of a CPU must be there before JAX starts.

Writes one JSON a line. Each device of a CPU computes on one core alone, as that is what its speed is compared with.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.pipeline.watch import Watch, schedule_of
from lstm_rot import DEPTH, TIME, Cell, residual, scan, turn
from lstm_rot.branches import dense, lstm
from lstm_rot.kernels.hoisted import hoisted
from lstm_rot.training.pipeline import pipeline


class Stack(NamedTuple):
    """A grid and its arguments; `items` enter it: words, or examples."""

    grid: Cell
    args: tuple[Any, Any, Any]
    items: int


def stacks(config: dict) -> dict[str, Stack]:
    """The LSTM, cut along time, and the residual net, cut along the batch."""
    width, layers, batch, rng = config["hidden_size"], config["layers"], config["batch"], np.random.default_rng(0)
    keys = jax.random.split(jax.random.key(0), layers)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    zeros = np.zeros((layers, batch, width), np.float32)
    recurrent = jax.vmap(lambda key: lstm.init(key, width, width, "float32"))(keys)
    feedforward = jax.vmap(lambda key: dense.init(key, None, width, "float32"))(keys)
    steps, examples = config["steps"], config["examples"]
    return {
        "LSTM": Stack(
            scan(hoisted(residual(lstm.lstm), TIME), DEPTH),
            (recurrent, (zeros, zeros), normal(steps, batch, width)),
            steps * batch,
        ),
        "residual net": Stack(
            scan(turn(residual(dense.dense)), DEPTH), (feedforward, None, (normal(examples, width), ())), examples
        ),
    }


def gradient(grid: Cell) -> Callable[..., Any]:
    """Of a sum of what leaves the top layer, with respect to the weights: forward and backward, as in training."""

    def loss(p: Any, left: Any, below: Any) -> jax.Array:
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(grid(p, left, below)[1]))  # pyright: ignore

    return jax.grad(loss)


def devices(stages: int) -> Mesh:
    return jax.make_mesh((stages,), ("stage",), (AxisType.Auto,), devices=jax.devices()[:stages])


def placed(mesh: Mesh, args: tuple) -> tuple:
    """The layers on their stages, the rest on all."""
    layout = jax.tree.broadcast((P("stage"), P("stage"), P()), args)
    return jax.device_put(args, jax.tree.map(partial(NamedSharding, mesh), layout))


def seconds(function: Callable[..., Any], args: tuple, calls: int) -> float:
    """The median of a few calls, after one that is not measured."""
    program, times = jax.jit(function).lower(*args).compile(), []
    for _ in range(calls + 1):
        start = time.perf_counter()
        jax.block_until_ready(program(*args))
        times.append(time.perf_counter() - start)
    return median(times[1:])


def measurements(config: dict) -> Iterator[dict]:
    """Of each stack the plain gradient on one device, then that of every pipeline; and what each device did when."""
    for name, stack in stacks(config).items():
        one = seconds(gradient(stack.grid), jax.device_put(stack.args, jax.devices()[0]), config["calls"])
        yield {"stack": name, "stages": 1, "chunks": 1, "items": stack.items, "plain": True, "seconds": one}
        for stages in config["stages"]:
            mesh = devices(stages)
            args = placed(mesh, stack.args)
            for chunks in config["chunks"]:
                run = gradient(pipeline(stack.grid, mesh, chunks=chunks))
                row = {"stack": name, "stages": stages, "items": stack.items, "plain": False}
                yield row | {"seconds": seconds(run, args, config["calls"])} | watched(stack, mesh, args, chunks)


def watched(stack: Stack, mesh: Mesh, args: tuple, chunks: int) -> dict:
    """One run of the same gradient that tells what every device did: see `Watch`."""
    watch = Watch()
    entering = jax.tree.leaves(args[2])[0]
    numbers = jnp.arange(len(entering), dtype="int32")  # they flow along with what enters, so that chunks are known

    def grid(p: Any, left: Any, below: Any) -> Any:
        below, numbers = below
        right, above = stack.grid(p, left, watch.mark("enter", below, numbers[0]))
        return right, (watch.mark("leave", above, numbers[0]), numbers)

    run = pipeline(grid, mesh, chunks=chunks, schedule=schedule_of(watch))
    jax.block_until_ready(jax.jit(gradient(lambda p, left, below: _first(run(p, left, (below, numbers)))))(*args))
    size = -(-len(entering) // chunks)
    return {"chunks": -(-len(entering) // size)} | watch.report(mesh.shape["stage"], size=size)


def _first(results: Any) -> Any:
    right, (above, _) = results
    return right, above


if __name__ == "__main__":
    for measured in measurements(json.loads(sys.argv[1])):
        print(json.dumps(measured), flush=True)
