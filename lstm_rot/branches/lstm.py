"""Long short-term memory: the stream is the cell state c, the memory the output h.

Gates are an axis of their own, so that the hidden axis can be sharded without moving data between devices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lstm_rot.branches.common import affine


class Params(NamedTuple):
    """Weights of one cell, gates in the order i, f, g, o (`lstm_1997`: i, g, o). Without input, wx is None."""

    wx: Float[Array, "D G H"] | None
    wh: Float[Array, "H G H"]
    b: Float[Array, "G H"]


def lstm(
    p: Params, stream: Float[Array, "*B H"], memory: Float[Array, "*B H"], below: Float[Array, "*B D"] | None
) -> tuple[Any, Any, Any]:
    """LSTM with a forget gate (Gers, Schmidhuber & Cummins 2000; the form without peepholes of Greff et al. 2015).

    i, f, o = sigmoid(x W_x + h W_h + b),  g = tanh(x W_x + h W_h + b)
    c' = f c + i g
    h' = o tanh(c')
    """
    i, f, g, o = jnp.moveaxis(affine(p, memory, below).astype(stream.dtype), -2, 0)

    def read(stream: Array) -> tuple[Array, Array]:
        h = (jax.nn.sigmoid(o) * jnp.tanh(stream)).astype(p.wh.dtype)
        return h, h

    return jax.nn.sigmoid(f), jax.nn.sigmoid(i) * jnp.tanh(g), read


def lstm_1997(
    p: Params, stream: Float[Array, "*B H"], memory: Float[Array, "*B H"], below: Float[Array, "*B D"] | None
) -> tuple[Any, Any, Any]:
    """The LSTM without a forget gate, its keep the int 1 (Hochreiter & Schmidhuber 1997, appendix A.1).

    i, o = sigmoid(x W_x + h W_h + b),  g = 4 sigmoid(x W_x + h W_h + b) - 2
    c' = c + i g                                the constant error carousel
    h' = o (2 sigmoid(c') - 1)
    """
    i, g, o = jnp.moveaxis(affine(p, memory, below).astype(stream.dtype), -2, 0)

    def read(stream: Array) -> tuple[Array, Array]:
        h = (jax.nn.sigmoid(o) * (2 * jax.nn.sigmoid(stream) - 1)).astype(p.wh.dtype)
        return h, h

    return 1, jax.nn.sigmoid(i) * (4 * jax.nn.sigmoid(g) - 2), read


def init(
    key: PRNGKeyArray,
    input_size: int | None,
    hidden_size: int,
    dtype: Any = "float32",
    *,
    forget_bias: float | Array = 1.0,
) -> Params:
    """Lecun normal W_x, orthogonal W_h for each gate, b zero but for the forget gate (1: Jozefowicz et al. 2015)."""
    bias = jnp.zeros((4, hidden_size), dtype).at[1].set(forget_bias)
    return Params(*gate_weights(key, input_size, hidden_size, 4, dtype), bias)


def init_1997(key: PRNGKeyArray, input_size: int | None, hidden_size: int, dtype: Any = "float32") -> Params:
    """As `init`, for `lstm_1997`: three gates, b zero."""
    return Params(*gate_weights(key, input_size, hidden_size, 3, dtype), jnp.zeros((3, hidden_size), dtype))


def gate_weights(
    key: PRNGKeyArray, input_size: int | None, hidden_size: int, gates: int, dtype: Any
) -> tuple[Float[Array, "D G H"] | None, Float[Array, "H G H"]]:
    """W_x (None without input) and W_h of a cell with an axis of gates."""
    key_x, key_h = jax.random.split(key)
    square = jax.nn.initializers.orthogonal()
    wh = jax.vmap(lambda key: square(key, (hidden_size, hidden_size), "float32"), out_axes=1)(
        jax.random.split(key_h, gates)
    )
    wx = None
    if input_size is not None:
        wx = jax.nn.initializers.lecun_normal(in_axis=0, out_axis=-1, batch_axis=1)(
            key_x, (input_size, gates, hidden_size), dtype
        )
    return wx, wh.astype(dtype)
