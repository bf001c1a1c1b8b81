"""The highway step: one gate divides the stream between what stays and what is new."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lstm_rot.branches.common import affine


class Params(NamedTuple):
    """Weights of one step; axis of two: the transform F, its gate T. Without input, wx is None."""

    wx: Float[Array, "D 2 H"] | None
    wh: Float[Array, "H 2 H"]
    b: Float[Array, "2 H"]


def highway(
    p: Params, stream: Float[Array, "*B H"], memory: Any, below: Float[Array, "*B D"] | None
) -> tuple[Any, Any, Any]:
    """Highway networks (Srivastava et al. 2015, Eq. 3 with C = 1 - T).

    t = sigmoid(x W_t + b_t)
    x' = (1 - t) x + t relu(x W_f + b_f)
    """
    f, t = jnp.moveaxis(affine(p, stream, below).astype(stream.dtype), -2, 0)
    t = jax.nn.sigmoid(t)
    return 1 - t, t * jax.nn.relu(f), lambda stream: (memory, stream.astype(p.wh.dtype))


def init(
    key: PRNGKeyArray,
    input_size: int | None,
    hidden_size: int,
    dtype: Any = "float32",
    *,
    gate_bias: float | Array = -2.0,
) -> Params:
    """He normal weights; b zero, the gate's `gate_bias`: below zero, so that the stream is carried at first."""
    key_x, key_h = jax.random.split(key)
    he = jax.nn.initializers.he_normal(in_axis=0, out_axis=-1, batch_axis=1)
    wx = None if input_size is None else he(key_x, (input_size, 2, hidden_size), dtype)
    wh = he(key_h, (hidden_size, 2, hidden_size), dtype)
    return Params(wx, wh, jnp.zeros((2, hidden_size), dtype).at[1].set(gate_bias))
