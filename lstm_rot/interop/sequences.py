"""How flax calls a recurrent net: any batch axes, time before the features or in front, carries (c, h)."""

from dataclasses import replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_rot.models import checks, lstm, recurrent

_RATES = ("dropout", "variational_dropout", "recurrent_dropout", "zoneout_cell", "zoneout_hidden")


def draws(config: lstm.Config) -> bool:
    """Whether the config's net draws random numbers in training."""
    return any(getattr(config, rate) for rate in _RATES)


def run(
    params: Any,
    inputs: Any,
    *,
    config: lstm.Config,
    initial_carry: Any,
    seq_lengths: Any,
    time_major: bool,
    reverse: bool,
    keep_order: bool,
    key: Any,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """The last carry (c, h) and the outputs of inputs [*batch, T, D], or with time_major [T, *batch, D].

    The leaves of a carry are [*batch, H] of one layer in one direction, else [L, *batch, H] or [L, 2, *batch, H].

    Raises ValueError for inputs, a carry or lengths of other shapes, and as `lstm.apply` does.
    """
    if np.ndim(inputs) < 2:
        shape = "(time, *batch, features)" if time_major else "(*batch, time, features)"
        raise ValueError(f"inputs has shape {np.shape(inputs)}: give {shape}")
    axis = 0 if time_major else np.ndim(inputs) - 2
    xs = jnp.moveaxis(jnp.asarray(inputs), axis, 0)
    steps, *batch, width = xs.shape
    xs = xs.reshape(steps, prod(batch), width)
    lengths = _lengths(seq_lengths, tuple(batch), steps)
    config = replace(config, reverse=reverse)
    lead = config.layer_axes if config.layer_axes != (1,) else ()
    carry = None if initial_carry is None else _carry(initial_carry, config, lead, tuple(batch))
    last, ys = lstm.apply(params, xs, config=config, lengths=lengths, carry=carry, key=key)
    if reverse and not keep_order:
        ys = recurrent.flipped(ys, lengths)
    ys = jnp.moveaxis(ys.reshape(steps, *batch, config.output_size), 0, axis)
    c, h = (leaf.reshape(*lead, *batch, leaf.shape[-1]) for leaf in last)
    return (c, h), ys


def _lengths(seq_lengths: Any, batch: tuple[int, ...], steps: int) -> Any:
    if seq_lengths is None:
        return None
    if np.shape(seq_lengths) != batch:
        raise ValueError(
            f"seq_lengths has shape {np.shape(seq_lengths)}: give one whole number a sequence, shape {batch}"
        )
    lengths = seq_lengths.reshape(-1) if checks.traced(seq_lengths) else np.asarray(seq_lengths).reshape(-1)
    checks.lengths_in(lengths, prod(batch), steps)
    return jnp.asarray(lengths)


def _carry(given: Any, config: lstm.Config, lead: tuple[int, ...], batch: tuple[int, ...]) -> lstm.Carry:
    widths = (config.hidden_size, config.cell_output_size)
    shapes = [np.shape(leaf) for leaf in given]
    want = [(*lead, *batch, width) for width in widths]
    if shapes != want:
        raise ValueError(f"initial_carry (c, h) has shapes {shapes}: give {want}")
    leaves = [
        jnp.asarray(leaf).reshape(*config.layer_axes, prod(batch), n) for leaf, n in zip(given, widths, strict=True)
    ]
    return lstm.Carry(*leaves)
