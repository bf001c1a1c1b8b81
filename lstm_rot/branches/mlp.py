"""Two dense layers at each position, and the rectifier: steps of nets along DEPTH, which leave the time flow alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lstm_rot.branches.common import layer_norm


class Params(NamedTuple):
    """Weights of a two-layer step of inner width F; scale None: no norm."""

    scale: Float[Array, "H"] | None
    w1: Float[Array, "H F"]
    b1: Float[Array, "F"]
    w2: Float[Array, "F H"]
    b2: Float[Array, "H"]


def mlp(p: Params, stream: Float[Array, "*B H"], memory: Any, below: Any) -> tuple[Any, Any, Any]:
    """Two weight layers, position by position: x' = x + relu(norm(x) W_1 + b_1) W_2 + b_2.

    A Transformer's second step (Vaswani et al. 2017, Eq. 2, here pre-norm); with no norm, the residual function of
    He et al. 2015, whose block is this step followed by `rectify`. What flows along the other axis passes unchanged.
    """
    x = layer_norm(stream, p.scale).astype(p.w1.dtype)
    return 1, jax.nn.relu(x @ p.w1 + p.b1) @ p.w2 + p.b2, lambda stream: (memory, below)


def rectify(p: Any, stream: Float[Array, "*B H"], memory: Any, below: Any) -> tuple[Any, Any, Any]:
    """x' = relu(x): the plain step after each addition of He et al. 2015, and why their identity path is not clean."""
    return 0, jax.nn.relu(stream), lambda stream: (memory, below)


def normalise(p: Any, stream: Float[Array, "*B H"], memory: Any, below: Any) -> tuple[Any, Any, Any]:
    """x' = norm(x): the plain step after each addition of Vaswani et al. 2017, as `rectify` is of He et al. 2015."""
    return 0, layer_norm(stream, p), lambda stream: (memory, below)


def init(key: PRNGKeyArray, hidden_size: int, inner_size: int, dtype: Any = "float32") -> Params:
    """He normal W_1, Lecun normal W_2, scale one, biases zero."""
    key_1, key_2 = jax.random.split(key)
    return Params(
        scale=jnp.ones(hidden_size, dtype),
        w1=jax.nn.initializers.he_normal()(key_1, (hidden_size, inner_size), dtype),
        b1=jnp.zeros(inner_size, dtype),
        w2=jax.nn.initializers.lecun_normal()(key_2, (inner_size, hidden_size), dtype),
        b2=jnp.zeros(hidden_size, dtype),
    )
