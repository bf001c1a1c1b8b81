"""The dense residual step. With the keep closed (`with_keep(dense, 0)`) the same step makes a plain net."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lstm_rot.branches.common import affine, layer_norm


class Params(NamedTuple):
    """Weights of one dense step; scale None: no norm, wx None: no input."""

    scale: Float[Array, "H"] | None
    wx: Float[Array, "D H"] | None
    wh: Float[Array, "H H"]
    b: Float[Array, "H"]


def dense(
    p: Params, stream: Float[Array, "*B H"], memory: Any, below: Float[Array, "*B D"] | None
) -> tuple[Any, Any, Any]:
    """One weight layer of a residual net, fully pre-activated (He et al. 2016, Fig. 4e).

    x' = x + relu(norm(x)) W_h + b      (+ u W_x where a further input u enters)
    """
    add = affine(p, jax.nn.relu(layer_norm(stream, p.scale)), below)
    return 1, add, lambda stream: (memory, stream.astype(p.wh.dtype))


def init(key: PRNGKeyArray, input_size: int | None, hidden_size: int, dtype: Any = "float32") -> Params:
    """He normal W_h, of variance 2 / fan-in (for rectifiers), Lecun normal W_x, scale one, b zero."""
    key_x, key_h = jax.random.split(key)
    wx = None if input_size is None else jax.nn.initializers.lecun_normal()(key_x, (input_size, hidden_size), dtype)
    wh = jax.nn.initializers.he_normal()(key_h, (hidden_size, hidden_size), dtype)
    return Params(jnp.ones(hidden_size, dtype), wx, wh, jnp.zeros(hidden_size, dtype))
