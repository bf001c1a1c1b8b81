"""How a line is run. A schedule has the contract of `jax.lax.scan`:

    schedule(step, init, xs, length) -> (carry, ys)        step(carry, x) -> (carry, y)

Schedules are frozen dataclasses, so equal ones are one static argument of a jitted function, and serve either axis.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from typing import Any

import jax
import jax.numpy as jnp

Step = Callable[[Any, Any], tuple[Any, Any]]
Schedule = Callable[[Step, Any, Any, int], tuple[Any, Any]]


@dataclass(frozen=True)
class Sequential:
    """One cell after another: `jax.lax.scan`, its body holding `unroll` cells."""

    unroll: int = 1

    def __post_init__(self):
        if self.unroll < 1:
            raise ValueError(f"unroll={self.unroll}: a loop body holds at least one cell")

    def __call__(self, step: Step, init: Any, xs: Any, length: int) -> tuple[Any, Any]:
        return jax.lax.scan(step, init, xs, length, unroll=self.unroll)


@dataclass(frozen=True)
class Checkpointed:
    """One cell after another, keeping for the gradient only what flows at every `every`-th cell (Chen et al. 2016).

    The cells between are run again in the backward pass. None is about sqrt(length), which makes the memory of a line
    of n cells O(sqrt(n)) for about one more forward pass. Values and gradients are those of `Sequential()`.
    """

    every: int | None = None

    def __post_init__(self):
        if self.every is not None and self.every < 1:
            raise ValueError(
                f"every={self.every}: keep what flows at every 1st cell or more seldom, or None for sqrt(n)"
            )

    def __call__(self, step: Step, init: Any, xs: Any, length: int) -> tuple[Any, Any]:
        def piece(carry: Any, xs: Any, size: int) -> tuple[Any, Any]:
            # Inside a loop XLA cannot merge the second forward run with the first, so nothing need prevent it.
            run = jax.checkpoint(lambda carry, xs: jax.lax.scan(step, carry, xs, size), prevent_cse=False)
            return run(carry, xs)

        return in_pieces(piece, init, xs, length, self.every or max(isqrt(length), 1))


def in_pieces(
    piece: Callable[[Any, Any, int], tuple[Any, Any]], init: Any, xs: Any, length: int, every: int
) -> tuple[Any, Any]:
    """A line run in pieces of `every` cells and a shorter last one: piece(carry, xs, size) -> carry, ys."""
    every = min(every, max(length, 1))
    whole = length - length % every

    def run(carry: Any, start: int, stop: int, size: int) -> tuple[Any, Any]:
        count = (stop - start) // size
        pieces = jax.tree.map(lambda x: x[start:stop].reshape(count, size, *x.shape[1:]), xs)
        carry, ys = jax.lax.scan(lambda carry, xs: piece(carry, xs, size), carry, pieces, count)
        return carry, jax.tree.map(lambda y: y.reshape(count * size, *y.shape[2:]), ys)

    carry, ys = run(init, 0, whole, every)
    if whole == length:
        return carry, ys
    carry, last = run(carry, whole, length, length - whole)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, last)
