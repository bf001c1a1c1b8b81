"""Attention residuals: in place of keep * stream + add, attention over all that was proposed so far.

What flows is a cache of proposals, along DEPTH as along TIME: there of the layers' outputs, here of the steps'.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lstm_rot.branches.attention import softmax
from lstm_rot.branches.common import product


class Params(NamedTuple):
    """Weights of one cell: the branch's, and of the query. Without input, wx is None."""

    weights: Any
    w: Float[Array, "H"]
    wx: Float[Array, "D H"] | None


class Cache(NamedTuple):
    """The first `length` of S proposals."""

    values: Float[Array, "S *B H"]
    length: Int[Array, ""]


def attnres(branch: Callable[..., tuple]) -> Callable[..., tuple]:
    """The branch with p = `Params` and memory = (`Cache`, the branch's own): a plain step, its keep 0.

    v = what the branch proposes, appended to the cache
    x' = sum over the cache of softmax_k(q . rms(v_k)) v_k,  q = w (+ u W_x where an input u enters)

    Along DEPTH, with q = w, the pseudo-query of the layer that reads x', and the embedding as the first of the cache:
    Attention Residuals (Kimi Team 2026, arXiv 2603.15031, its full form). Along TIME, of a branch that proposes by its
    input alone: causal attention of one head, its keys the values. A cache without room overwrites its last.
    """

    def attending(p: Params, stream: Float[Array, "*B H"], memory: tuple[Cache, Any], below: Any) -> tuple:
        cache, own = memory
        _, value, read = branch(p.weights, stream, own, below)
        cache = append(cache, value.astype(stream.dtype))
        mixed = jnp.einsum("...s,s...h->...h", weights(p, cache, below), cache.values)

        def read_on(new: Array) -> tuple[Any, Any]:
            own, above = read(new)
            return (cache, own), above

        return 0, mixed, read_on

    return attending


def weights(p: Params, cache: Cache, below: Float[Array, "*B D"] | None) -> Float[Array, "*B S"]:
    """softmax_k(q . rms(v_k)), q = w + below W_x and rms(v) = v / sqrt(mean(v^2) + 1e-6): zeros past the length."""
    values = cache.values
    q = (p.w if below is None else product(below, p.wx, p.w)).astype(values.dtype)
    scores = jnp.einsum("...h,s...h->...s", q, values * jax.lax.rsqrt((values**2).mean(-1, keepdims=True) + 1e-6))
    return softmax(scores, jnp.arange(len(values), dtype="int32") < cache.length)


def empty(places: int, stream: Float[Array, "*B H"]) -> Cache:
    """A cache with room for `places` proposals, each like the stream."""
    return Cache(jnp.zeros((places, *stream.shape), stream.dtype), jnp.zeros((), "int32"))


def append(cache: Cache, value: Float[Array, "*B H"]) -> Cache:
    """The cache, and the value behind what it holds."""
    return Cache(jax.lax.dynamic_update_index_in_dim(cache.values, value, cache.length, 0), cache.length + 1)


def init(weights: Any, input_size: int | None, hidden_size: int, dtype: Any = "float32") -> Params:
    """The branch's weights, and a query of zeros: at first every x' is the mean of what was proposed."""
    wx = None if input_size is None else jnp.zeros((input_size, hidden_size), dtype)
    return Params(weights, jnp.zeros(hidden_size, dtype), wx)
