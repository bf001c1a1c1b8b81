"""Stacked GRU: `scan(scan(residual(gru), TIME), DEPTH)`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from lstm_rot.branches import gru as branch
from lstm_rot.models import recurrent
from lstm_rot.schedules import Schedule, Sequential


@dataclass(frozen=True)
class Config(recurrent.Config):
    """Sizes and dtypes."""


class Carry(NamedTuple):
    """What a chunk of time hands to the next: the outputs, in the stream's dtype."""

    h: Float[Array, "L B H"]


def zeros(config: recurrent.Config, batch: int) -> Carry:
    """The carry before the first step."""
    return Carry(jnp.zeros((config.num_layers, batch, config.hidden_size), config.stream))


KIND = recurrent.Kind(branch.gru, branch.init, zeros, lambda carry: (carry.h, ()), lambda stream, memory: Carry(stream))


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
    schedule: Schedule = Sequential(),
) -> tuple[Carry, Float[Array, "T B H"]]:
    """Runs the stack, jitted; lengths, carry and errors as in `models.lstm.apply`."""
    return recurrent.apply(KIND, params, xs, config=config, lengths=lengths, carry=carry, schedule=schedule)


_init = jax.jit(lambda key, config: recurrent.init(KIND, key, config), static_argnums=1)
