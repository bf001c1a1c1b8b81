"""Stacked LSTM: `scan(scan(residual(lstm), TIME), DEPTH)`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from lstm_rot.branches import lstm as branch
from lstm_rot.models import recurrent
from lstm_rot.schedules import Schedule, Sequential


@dataclass(frozen=True)
class Config(recurrent.Config):
    """Sizes, dtypes, and the forget gate's bias at the start (1: Jozefowicz et al. 2015)."""

    forget_bias: float = 1.0


class Carry(NamedTuple):
    """What a chunk of time hands to the next: cell states (in the stream's dtype) and outputs."""

    c: Float[Array, "L B H"]
    h: Float[Array, "L B H"]


def zeros(config: recurrent.Config, batch: int) -> Carry:
    """The carry before the first step."""
    shape = config.num_layers, batch, config.hidden_size
    return Carry(jnp.zeros(shape, config.stream), jnp.zeros(shape, config.compute))


KIND = recurrent.Kind(branch.lstm, branch.init, zeros, tuple, Carry)


def init(key: PRNGKeyArray, config: Config) -> tuple[branch.Params, ...]:
    """Fresh params: runs of equal layers, each with a leading layer axis. See `branches.lstm.init`."""
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
    """Runs the stack, jitted, and returns the carry after the last step and the top layer's outputs.

    Steps at or past a sequence's length leave its carry as it was and give zeros; what stands in xs there, NaN
    included, changes nothing. The carry of one chunk continues in the next: two chunks equal one run.

    Raises ValueError, before any compilation, for wrong ranks, widths, dtypes, params or a carry of another config,
    and for lengths outside 0..T (seen where they are not traced).
    """
    return recurrent.apply(KIND, params, xs, config=config, lengths=lengths, carry=carry, schedule=schedule)


_init = jax.jit(lambda key, config: recurrent.init(KIND, key, config, forget_bias=config.forget_bias), static_argnums=1)
