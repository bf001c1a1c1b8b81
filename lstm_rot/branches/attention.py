"""Causal self-attention as a residual step along DEPTH; what it keeps along TIME is its cache of keys and values.

The stream is a chunk of C positions, [C, B, H]: the whole sequence when training, one position when decoding.
"""

from math import sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lstm_rot.branches.common import layer_norm


class Params(NamedTuple):
    """Weights of N heads of width K; scale None: no norm."""

    scale: Float[Array, "H"] | None
    wq: Float[Array, "H N K"]
    wk: Float[Array, "H N K"]
    wv: Float[Array, "H N K"]
    wo: Float[Array, "N K H"]


class Cache(NamedTuple):
    """Keys and values of the first `length` of S positions."""

    k: Float[Array, "S B N K"]
    v: Float[Array, "S B N K"]
    length: Int[Array, ""]


def attention(p: Params, stream: Float[Array, "C B H"], memory: Any, below: Cache | None) -> tuple[Any, Any, Any]:
    """Masked multi-head self-attention (Vaswani et al. 2017, Eq. 1 and section 3.2.2), pre-norm.

    q, k, v = norm(x) W_q, norm(x) W_k, norm(x) W_v
    x' = x + sum over heads of softmax(q k^T / sqrt(K), over this and earlier positions) v W_o

    With a cache, the chunk's keys and values are appended to it, and it is what the cell hands on along time.
    """
    x = layer_norm(stream, p.scale).astype(p.wq.dtype)
    q, k, v = (jnp.tensordot(x, w, 1) for w in (p.wq, p.wk, p.wv))
    cache, start = below, 0
    if cache is not None:
        start = cache.length
        k = jax.lax.dynamic_update_slice_in_dim(cache.k, k, start, axis=0)
        v = jax.lax.dynamic_update_slice_in_dim(cache.v, v, start, axis=0)
        cache = Cache(k, v, start + len(q))
    visible = jnp.arange(len(k), dtype="int32") <= start + jnp.arange(len(q), dtype="int32")[:, None]
    scores = jnp.einsum("tbnk,sbnk->bnts", q, k, preferred_element_type=stream.dtype) / sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf)).astype(v.dtype)
    add = jnp.einsum("bnts,sbnk,nkh->tbh", weights, v, p.wo)
    return 1, add, lambda stream: (memory, cache)


def init(key: PRNGKeyArray, hidden_size: int, num_heads: int, dtype: Any = "float32") -> Params:
    """Lecun normal weights over the fan-in, scale one; heads of width hidden_size / num_heads."""
    head = hidden_size // num_heads
    into = jax.nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
    out = jax.nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=2)
    keys = jax.random.split(key, 4)
    wq, wk, wv = (into(k, (hidden_size, num_heads, head), dtype) for k in keys[:3])
    return Params(jnp.ones(hidden_size, dtype), wq, wk, wv, out(keys[3], (num_heads, head, hidden_size), dtype))
