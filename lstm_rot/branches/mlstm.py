"""An LSTM whose cell state is a matrix, written and read by keys: affine in its state, its keep one number a head."""

from math import sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lstm_rot.branches.common import layer_norm, product


class Params(NamedTuple):
    """Weights of N heads, keys and queries of width K, values of width V."""

    wq: Float[Array, "D N K"]
    wk: Float[Array, "D N K"]
    wv: Float[Array, "D N V"]
    gates: Float[Array, "D 2 N"]  # i, f
    b: Float[Array, "2 N"]
    wo: Float[Array, "D N V"]  # of the output gate
    scale: Float[Array, "V"]  # of the norm of what a head reads


def mlstm(
    p: Params, stream: Float[Array, "*B N K V"], memory: Any, below: Float[Array, "*B D"]
) -> tuple[Any, Any, Any]:
    """mLSTM (Beck et al. 2024) with the sigmoid input gate, which needs no second state (Beck et al. 2025, mLSTMsig).

    q, k, v = x W_q, x W_k / sqrt(K), x W_v;  i, f = sigmoid(x W + b), one of each a head;  o = sigmoid(x W_o)
    C' = f C + i k v^T
    h' = o norm(q^T C'), the heads side by side: [*B, N V]
    """
    q, k, v = (product(below, w) for w in (p.wq, p.wk, p.wv))
    i, f = jnp.moveaxis(jax.nn.sigmoid(product(below, p.gates, p.b).astype(stream.dtype)), -2, 0)
    o = jax.nn.sigmoid(product(below, p.wo))
    k = k.astype(stream.dtype) / sqrt(k.shape[-1])
    add = i[..., None, None] * (k[..., None] * v.astype(stream.dtype)[..., None, :])

    def read(state: Array) -> tuple[Any, Array]:
        found = layer_norm(jnp.einsum("...nk,...nkv->...nv", q.astype(state.dtype), state), p.scale)
        h = o * found.astype(o.dtype)
        return memory, h.reshape(*h.shape[:-2], -1)

    return f[..., None, None], add, read


def init(
    key: PRNGKeyArray,
    input_size: int,
    num_heads: int,
    key_size: int,
    value_size: int,
    dtype: Any = "float32",
    *,
    forget_bias: float = 3.0,
) -> Params:
    """Lecun normal weights; b zero, the forget gate's `forget_bias`: above zero, so that much is kept at first."""
    keys = jax.random.split(key, 5)
    lecun = jax.nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
    sizes = (
        (num_heads, key_size),
        (num_heads, key_size),
        (num_heads, value_size),
        (2, num_heads),
        (num_heads, value_size),
    )
    wq, wk, wv, gates, wo = (lecun(k, (input_size, *size), dtype) for k, size in zip(keys, sizes, strict=True))
    b = jnp.zeros((2, num_heads), dtype).at[1].set(forget_bias)
    return Params(wq, wk, wv, gates, b, wo, jnp.ones(value_size, dtype))


def zeros(batch: tuple[int, ...], p: Params, dtype: Any = "float32") -> Float[Array, "*B N K V"]:
    """The state before the first step."""
    return jnp.zeros((*batch, *p.wk.shape[1:], p.wv.shape[2]), dtype)
