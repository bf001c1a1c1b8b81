"""An LSTM whose gates see the input alone: affine in its state, so that a line of it is solved at once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lstm_rot.branches.common import product
from lstm_rot.branches.lstm import input_weights


class Params(NamedTuple):
    """Weights of one cell, gates in the order i, f, g."""

    wx: Float[Array, "D 3 H"]
    b: Float[Array, "3 H"]


def minlstm(p: Params, stream: Float[Array, "*B H"], memory: Any, below: Float[Array, "*B D"]) -> tuple[Any, Any, Any]:
    """minLSTM (Feng et al. 2024, section 3.2): no gate sees h, and h is the cell state.

    i, f = sigmoid(x W + b),  g = x W + b
    h' = f / (f + i) h + i / (f + i) g
    """
    i, f, g = jnp.moveaxis(product(below, p.wx, p.b).astype(stream.dtype), -2, 0)
    keep = jax.nn.sigmoid(jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i))  # f / (f + i), of small ones too
    return keep, (1 - keep) * g, lambda h: (memory, h.astype(p.wx.dtype))


def init(
    key: PRNGKeyArray, input_size: int, hidden_size: int, dtype: Any = "float32", *, forget_bias: float = 1.0
) -> Params:
    """Lecun normal W, b zero, the forget gate's `forget_bias`."""
    b = jnp.zeros((3, hidden_size), dtype).at[1].set(forget_bias)
    return Params(input_weights(key, input_size, hidden_size, 3, dtype), b)
