"""Attention as a step along DEPTH: to what came before, to all of a sequence, or to a source.

The stream is a chunk of C positions, [C, B, H]: the whole sequence when training, one position when decoding. What
flows along TIME is what is attended to: of causal self-attention, its cache of keys and values.
"""

from math import sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

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


class Source(NamedTuple):
    """Keys and values of a source of S positions, which are the same at every step; of recurrent nets without heads."""

    k: Float[Array, "S B N K"] | Float[Array, "S B H"]
    v: Float[Array, "S B N K"] | Float[Array, "S B H"]


class Query(NamedTuple):
    """Weights of a recurrent net's attention: of query and score, None where the score is the product; of what is
    made of the context (0) and the hidden state (1)."""

    wq: Float[Array, "H H"] | None
    v: Float[Array, "H"] | None
    wo: Float[Array, "2 H H"]


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
    return 1, _read(p, q, k, v, visible, stream), lambda stream: (memory, cache)


def whole(p: Params, stream: Float[Array, "S B H"], memory: Bool[Array, "S B"], below: Any) -> tuple[Any, Any, Any]:
    """The same over all positions of a sequence that `memory`, a mask, marks as its own: an encoder's attention."""
    x = layer_norm(stream, p.scale).astype(p.wq.dtype)
    q, k, v = (jnp.tensordot(x, w, 1) for w in (p.wq, p.wk, p.wv))
    return 1, _read(p, q, k, v, memory.T[:, None, None], stream), lambda stream: (memory, below)


def source(p: Params, stream: Float[Array, "C B H"], memory: Bool[Array, "S B"], below: Source) -> tuple[Any, Any, Any]:
    """A decoder's attention to a source (Vaswani et al. 2017, section 3.2.3), whose mask is `memory`.

    q = norm(x) W_q;  k, v = source W_k, source W_v, made once;  x' = x + softmax(q k^T / sqrt(K)) v W_o
    """
    q = jnp.tensordot(layer_norm(stream, p.scale).astype(p.wq.dtype), p.wq, 1)
    return 1, _read(p, q, below.k, below.v, memory.T[:, None, None], stream), lambda stream: (memory, below)


def luong(p: Query, stream: Float[Array, "C B H"], memory: Bool[Array, "S B"], below: Source) -> tuple[Any, Any, Any]:
    """x' = tanh(W_c context + W_h x), the context looked up by x (Luong et al. 2015, Eq. 5): a plain step, keep 0."""
    context = looked_up(p, stream, below, memory)
    return 0, output(p, stream, context), lambda stream: (memory, below)


def looked_up(p: Query, h: Float[Array, "*C B H"], source: Source, valid: Bool[Array, "S B"]) -> Float[Array, "..."]:
    """The context, sum over s of a_s v_s, a the softmax over the source of the scores

    h . k_s                        general (Luong et al. 2015, Eq. 8), k_s being W v_s
    v . tanh(W_q h + k_s)          additive (Bahdanau et al. 2015, appendix A.1.2)
    """
    h = h.astype(source.k.dtype)
    if p.v is None or p.wq is None:
        scores = jnp.einsum("...bh,sbh->...bs", h, source.k)
    else:
        scores = jnp.tanh((h @ p.wq)[..., None, :] + source.k.swapaxes(0, 1)) @ p.v
    wide = scores.dtype if jnp.finfo(scores.dtype).bits > 32 else jnp.float32
    return jnp.einsum("...bs,sbh->...bh", softmax(scores.astype(wide), valid.T).astype(h.dtype), source.v)


def output(p: Query, h: Float[Array, "*C B H"], context: Float[Array, "*C B H"]) -> Float[Array, "*C B H"]:
    """tanh(W_c context + W_h h), the attentional vector (Luong et al. 2015, Eq. 5)."""
    return jnp.tanh(context @ p.wo[0] + h.astype(context.dtype) @ p.wo[1])


def _read(p: Params, q: Any, k: Any, v: Any, visible: Bool[Array, "..."], stream: Any) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v W_o over what is visible, [B, N, C, S] or what broadcasts to it."""
    scores = jnp.einsum("tbnk,sbnk->bnts", q, k, preferred_element_type=stream.dtype) / sqrt(q.shape[-1])
    return jnp.einsum("bnts,sbnk,nkh->tbh", softmax(scores, visible).astype(v.dtype), v, p.wo)


def softmax(scores: Float[Array, "*S T"], visible: Bool[Array, "..."]) -> Float[Array, "*S T"]:
    """Over the last axis, of what is visible; zeros where nothing is: an empty source."""
    least = jnp.finfo(scores.dtype).min  # not -inf, of which a row alone would be NaN
    return jnp.where(visible, jax.nn.softmax(jnp.where(visible, scores, least)), 0)


def init(key: PRNGKeyArray, hidden_size: int, num_heads: int, dtype: Any = "float32") -> Params:
    """Lecun normal weights over the fan-in, scale one; heads of width hidden_size / num_heads."""
    head = hidden_size // num_heads
    into = jax.nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
    out = jax.nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=2)
    keys = jax.random.split(key, 4)
    wq, wk, wv = (into(k, (hidden_size, num_heads, head), dtype) for k in keys[:3])
    return Params(jnp.ones(hidden_size, dtype), wq, wk, wv, out(keys[3], (num_heads, head, hidden_size), dtype))


def init_query(key: PRNGKeyArray, width: int, *, additive: bool, dtype: Any = "float32") -> Query:
    """Lecun normal weights over the fan-in."""
    keys, normal = jax.random.split(key, 3), jax.nn.initializers.lecun_normal
    wo = normal(in_axis=(0, 1), out_axis=2)(keys[2], (2, width, width), dtype)
    if not additive:
        return Query(None, None, wo)
    return Query(normal()(keys[0], (width, width), dtype), normal()(keys[1], (width, 1), dtype)[:, 0], wo)
