"""The gated recurrent unit: the stream is the output h, and there is no other memory."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lstm_rot.branches.common import product
from lstm_rot.branches.lstm import gate_weights


class Params(NamedTuple):
    """Weights of one GRU cell, gates in the order r, z, n; b_n stays inside the reset. Without input, wx is None."""

    wx: Float[Array, "D 3 H"] | None
    wh: Float[Array, "H 3 H"]
    b: Float[Array, "3 H"]
    bn: Float[Array, "H"]


def gru(
    p: Params, stream: Float[Array, "*B H"], memory: Any, below: Float[Array, "*B D"] | None
) -> tuple[Any, Any, Any]:
    """The gated recurrent unit (Cho et al. 2014, with the reset after the product, as torch and cuDNN have it).

    r, z = sigmoid(x W_x + h W_h + b)
    n = tanh(x W_x + b + r (h W_h + b_n))
    h' = z h + (1 - z) n
    """
    h_r, h_z, h_n = jnp.moveaxis(product(stream, p.wh).astype(stream.dtype), -2, 0)
    x = p.b if below is None else product(below, p.wx, p.b)
    x_r, x_z, x_n = jnp.moveaxis(x.astype(stream.dtype), -2, 0)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * (h_n + p.bn.astype(stream.dtype)))
    return z, (1 - z) * n, lambda h: (memory, h.astype(p.wh.dtype))


def init(key: PRNGKeyArray, input_size: int | None, hidden_size: int, dtype: Any = "float32") -> Params:
    """Lecun normal W_x, orthogonal W_h for each gate, biases zero."""
    weights = gate_weights(key, input_size, hidden_size, 3, dtype)
    return Params(*weights, jnp.zeros((3, hidden_size), dtype), jnp.zeros(hidden_size, dtype))
