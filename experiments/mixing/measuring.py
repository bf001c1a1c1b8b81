"""The mixing matrix of a trained net's line: with what weight each proposal is in each stream.

    stream_l = sum over k of M[l, k] add_k          M [N, N, B, U]: from k to l, of each image and unit (U = 1: of all)

Along depth add_0 is the embedding, so N is the number of layers and one; along time N is the number of steps.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.mixing.nets import ATTENTION, AXES, Net, Params, flows, run
from lstm_rot import Axis, Branch
from lstm_rot.branches import attnres, by_path, probed, watched

PROBED = {"depth": Axis("below", tied=False), "time": Axis("left", tied=(True, False))}  # p is (weights, probe)


class Mixing(NamedTuple):
    """What was mixed, and what came of it."""

    matrix: Float[Array, "N N B U"]
    adds: Float[Array, "N B H"]
    streams: Float[Array, "N B H"]


@partial(jax.jit, static_argnames="net")
def mixing(p: Params, x: Float[Array, "B P P"], *, net: Net) -> Mixing:
    """Of a net on images: attention's matrix is its weights, any other's the gradient along the direct path."""
    return (_attended if net.kind.form == ATTENTION else _kept)(p, x, net)


def _kept(p: Params, x: Any, net: Net) -> Mixing:
    """M[l, k] = d stream_l / d add_k with every add and keep held fixed: the product of the keeps after k up to l."""
    (stream, memory), inputs = flows(p, x, net)
    branch = watched(net.kind.branch, lambda _, keep, add, new: (jnp.broadcast_to(add, new.shape), new))
    _, (_, (adds, streams)) = run(branch, AXES[net.axis], p.line, (stream, memory), inputs)

    def streams_of(start: Any, probes: Any) -> Any:
        """Every stream: probes [length, B, H] are added to it, one at each cell."""
        looked = watched(probed(direct(net.kind.branch)), lambda *seen: seen[3])
        return run(looked, PROBED[net.axis], (p.line, probes), (start, memory), inputs)[1][1]

    _, pull = jax.vjp(streams_of, stream, jnp.zeros_like(adds))
    each = jnp.eye(net.length, dtype=adds.dtype)[:, :, None, None] * jnp.ones_like(adds)  # units do not mix
    of_start, matrix = jax.vmap(pull)(each)
    if not net.deep:
        return Mixing(matrix, adds, streams)
    matrix = _with_first(jnp.concatenate([of_start[:, None], matrix], axis=1))
    return Mixing(matrix, jnp.concatenate([stream[None], adds]), jnp.concatenate([stream[None], streams]))


def direct(branch: Branch) -> Branch:
    """The branch, through which the gradient takes the path keep * stream alone."""
    return lambda p, stream, memory, below: by_path(branch)((p, False), stream, memory, below)


def _attended(p: Params, x: Any, net: Net) -> Mixing:
    """M[l, k] = softmax_k(q_l . rms(v_k)), one of all units; what is proposed is in the cache at the end."""
    start, inputs = flows(p, x, net)
    looked = watched(net.kind.branch, lambda *seen: seen[3])
    (_, (cache, _)), (_, streams) = run(looked, AXES[net.axis], p.line, start, inputs)
    lengths = jnp.arange(1, net.length + 1, dtype="int32") + int(net.deep)
    each = (0, 0, None) if net.deep else (None, 0, 0)
    weights = jax.vmap(
        lambda p, length, below: attnres.weights(p, attnres.Cache(cache.values, length), below), in_axes=each
    )(p.line, lengths, inputs)
    matrix = weights.swapaxes(1, 2)[..., None]
    if not net.deep:
        return Mixing(matrix, cache.values, streams)
    return Mixing(_with_first(matrix), cache.values, jnp.concatenate([start[0][None], streams]))


def _with_first(matrix: Float[Array, "L N B U"]) -> Float[Array, "N N B U"]:
    """And the row of the first stream, which is the embedding."""
    return jnp.concatenate([jnp.zeros_like(matrix[:1]).at[0, 0].set(1), matrix])


def rebuilt(found: Mixing) -> float:
    """The largest |stream_l - sum of M[l, k] add_k|, over the largest |stream|; the sums in float64."""
    matrix, adds, streams = (np.asarray(part, "float64") for part in found)
    difference = streams - np.einsum("lkbu,kbu->lbu", np.broadcast_to(matrix, (*matrix.shape[:3], adds.shape[2])), adds)
    return float(np.abs(difference).max() / np.abs(streams).max())


def from_ones(matrix: np.ndarray) -> float:
    """The largest |M[l, k] - 1| where k <= l, over images and units."""
    return float(np.abs(matrix - 1)[np.tril_indices(len(matrix))].max())


def second_value(matrix: np.ndarray) -> np.ndarray:
    """The second singular value over the first, of the block M[s:, :s + 1] in which it is largest: [B, U].

    Every submatrix of the lower triangle, the diagonal with it, lies in such a block: where all are of rank 1, the
    matrix is 1-semiseparable, and this is zero.
    """
    moved = np.moveaxis(np.asarray(matrix, "float64"), (0, 1), (-2, -1))  # [B, U, N, N]
    blocks = [moved[..., s:, : s + 1] for s in range(1, moved.shape[-1] - 1)]  # the first and last are a single row
    values = [np.linalg.svd(block, compute_uv=False) for block in blocks]
    return np.max([each[..., 1] / each[..., 0] for each in values], axis=0)


def reach(matrix: np.ndarray) -> np.ndarray:
    """The mean distance sum_k M[l, k] (l - k) / sum_k M[l, k] of each row l, over images and units: [N]."""
    at = np.arange(len(matrix))
    shares = _shares(matrix)
    return np.einsum("lkbu,lk->lbu", shares, at[:, None] - at).mean((1, 2))


def entropy(matrix: np.ndarray) -> np.ndarray:
    """-sum_k s log s in nats, s = M[l, k] / sum_k M[l, k], of each row l, the mean over images and units: [N]."""
    shares = _shares(matrix)
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(1).mean((1, 2))


def _shares(matrix: np.ndarray) -> np.ndarray:
    matrix = np.asarray(matrix, "float64")
    return matrix / matrix.sum(1, keepdims=True)
