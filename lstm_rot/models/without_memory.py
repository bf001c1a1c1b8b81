"""The public functions of stacks whose stream is their output: GRU, plain recurrent and highway."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray

from lstm_rot.models import checks, recurrent
from lstm_rot.schedules import Schedule, Sequential


class Functions(NamedTuple):
    """What a model's module offers beside its Config, Carry and zeros."""

    init: Callable[..., tuple]
    apply: Callable[..., tuple[recurrent.Hidden, jax.Array]]
    specs: Callable[[Any], tuple]


def functions(kind: recurrent.Kind, config_type: type) -> Functions:
    """Those of a kind that `recurrent.without_memory` makes, of configs of that type."""
    jitted = jax.jit(lambda key, config: recurrent.init(kind, key, config), static_argnums=1)

    def init(key: PRNGKeyArray, config: recurrent.Config) -> tuple:
        """Fresh params: runs of equal layers, each with a leading layer axis, as the branch's `init` makes them.

        Raises ValueError for what is not one key, and another model's config.
        """
        checks.fresh(key, config, config_type)
        return jitted(key, config)

    def apply(
        params: tuple,
        xs: Float[Any, "T B D"],
        *,
        config: recurrent.Config,
        lengths: Integer[Any, "B"] | Sequence[int] | None = None,
        carry: recurrent.Hidden | None = None,
        key: PRNGKeyArray | None = None,
        start: int | Int[Array, ""] = 0,
        schedule: Schedule = Sequential(),
        implementation: recurrent.Implementation | recurrent.Spread | None = None,
    ) -> tuple[recurrent.Hidden, Float[Array, "T B H"]]:
        """Runs the stack, jitted; the options and errors as in `models.lstm.apply`."""
        return recurrent.apply(
            kind,
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

    return Functions(init, apply, partial(recurrent.specs, kind))
