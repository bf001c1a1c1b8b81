"""The plain recurrent step: the stream is the output h, and there is no other memory."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lstm_rot.branches.common import affine
from lstm_rot.branches.lstm import gate_weights


class Params(NamedTuple):
    """Weights of one plain cell. Without input, wx is None."""

    wx: Float[Array, "D H"] | None
    wh: Float[Array, "H H"]
    b: Float[Array, "H"]


def rnn(
    p: Params, stream: Float[Array, "*B H"], memory: Any, below: Float[Array, "*B D"] | None
) -> tuple[Any, Any, Any]:
    """The plain recurrent net: nothing is kept (Elman 1990).  h' = tanh(x W_x + h W_h + b)"""
    return 0, jnp.tanh(affine(p, stream, below).astype(stream.dtype)), lambda h: (memory, h.astype(p.wh.dtype))


def init(key: PRNGKeyArray, input_size: int | None, hidden_size: int, dtype: Any = "float32") -> Params:
    """Lecun normal W_x, orthogonal W_h, b zero."""
    wx, wh = gate_weights(key, input_size, hidden_size, 1, dtype)
    return Params(None if wx is None else wx[:, 0], wh[:, 0], jnp.zeros(hidden_size, dtype))
