"""Stacked GRU: `scan(scan(residual(gru), TIME), DEPTH)`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray

from lstm_rot.branches import gru as branch
from lstm_rot.models import recurrent
from lstm_rot.schedules import Schedule, Sequential


@dataclass(frozen=True)
class Config(recurrent.Config):
    """Sizes and dtypes."""


Carry = recurrent.Hidden
zeros = recurrent.zeros
KIND = recurrent.without_memory(branch.gru, branch.init)
specs = partial(recurrent.specs, KIND)


def init(key: PRNGKeyArray, config: Config) -> tuple[branch.Params, ...]:
    """Fresh params: runs of equal layers, each with a leading layer axis. See `branches.gru.init`."""
    return _init(key, config)


def apply(
    params: tuple[branch.Params, ...],
    xs: Float[Any, "T B D"],
    *,
    config: Config,
    lengths: Integer[Any, "B"] | Sequence[int] | None = None,
    carry: Carry | None = None,
    key: PRNGKeyArray | None = None,
    start: int | Int[Array, ""] = 0,
    schedule: Schedule = Sequential(),
    implementation: recurrent.Implementation | None = None,
) -> tuple[Carry, Float[Array, "T B H"]]:
    """Runs the stack, jitted; the options and errors as in `models.lstm.apply`."""
    return recurrent.apply(
        KIND,
        params,
        xs,
        config=config,
        lengths=lengths,
        carry=carry,
        key=key,
        start=start,
        schedule=schedule,
        implementation=implementation,
    )


_init = jax.jit(lambda key, config: recurrent.init(KIND, key, config), static_argnums=1)
