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
        every = min(self.every or max(isqrt(length), 1), max(length, 1))
        whole = length - length % every

        def piece(xs: Any, start: int, stop: int, size: int) -> Any:
            return jax.tree.map(lambda x: x[start:stop].reshape((stop - start) // size, size, *x.shape[1:]), xs)

        def run(carry: Any, xs: Any, count: int, size: int) -> tuple[Any, Any]:
            # Inside a loop XLA cannot merge the second forward run with the first, so nothing need prevent it.
            inner = jax.checkpoint(lambda carry, xs: jax.lax.scan(step, carry, xs, size), prevent_cse=False)
            carry, ys = jax.lax.scan(inner, carry, xs, count)
            return carry, jax.tree.map(lambda y: y.reshape(count * size, *y.shape[2:]), ys)

        carry, ys = run(init, piece(xs, 0, whole, every), whole // every, every)
        if whole == length:
            return carry, ys
        rest = length - whole
        carry, last = run(carry, piece(xs, whole, length, rest), 1, rest)
        return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, last)
