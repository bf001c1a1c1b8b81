"""The layers that are compared: what each computes over a sequence [T, B, D], and its weights."""

from collections.abc import Callable
from functools import partial
from itertools import count
from math import ceil
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from experiments.harness import Refused
from experiments.speed import peers
from experiments.speed.case import Case
from lstm_rot import DEPTH, TIME, DiagonalNewton, Newton, newton_with_info, residual, scan, turn
from lstm_rot.branches import attention, gru, lstm, minlstm, mlstm
from lstm_rot.branches.common import layer_norm
from lstm_rot.kernels.hoisted import hoisted
from lstm_rot.newton import Info

HEAD = 16  # width of a head of attention, and of the keys of mLSTM
REACH = 3  # positions that a convolution sees


class Layer(NamedTuple):
    """A layer of width D, and which other it is the same function as, run another way.

    init(key, width) -> p;  run(p, xs [T, B, D]) -> (ys [T, B, D], Newton's Info or None)
    path(T): how many cells or layers a signal crosses between the first position and the last (Vaswani et al. 2017,
    Table 1), where what runs says so by its form
    """

    init: Callable[[Any, int], Any]
    run: Callable[[Any, Any], tuple[Any, Any]]
    same: str | None = None
    widest: int = 1 << 30  # that can be afforded
    path: Callable[[int], int] | None = None
    cudnn: bool = False  # a GPU alone runs it, and nobody sees into it


def solved(info: Info | None, name: str, steps: int) -> int | None:
    """Newton's iterations. Raises Refused where the line was not solved."""
    if info is not None and not info.converged:
        raise Refused(f"{name} over {steps} steps is not solved at once: its numbers would be of no line; take fewer")
    return None if info is None else int(info.iterations)


def step_by_step(branch: Any, zeros: Callable[[Any, tuple[int, ...]], Any], make: Callable = hoisted) -> Callable:
    """The line of that branch along TIME, as fast as we have it. zeros(p, (B,)) -> the carry that enters."""
    return lambda p, xs: (make(residual(branch), TIME)(p, zeros(p, xs.shape[1:2]), xs)[1], None)


def at_once(branch: Any, zeros: Callable[[Any, tuple[int, ...]], Any], newton: Newton | None = None) -> Callable:
    """The same by Newton's method."""

    def run(p: Any, xs: Any) -> tuple[Any, Any]:
        line = scan(residual(branch), TIME, schedule=partial(newton_with_info, newton=newton or Newton()))
        _, (ys, info) = line(p, zeros(p, xs.shape[1:2]), xs)
        return ys, info

    return run


def _pair(p: Any, batch: tuple[int, ...]) -> Any:
    z = jnp.zeros((*batch, p.b.shape[-1]))
    return z, z


def _stream(p: Any, batch: tuple[int, ...]) -> Any:
    return _pair(p, batch)[0], ()


def _matrix(p: Any, batch: tuple[int, ...]) -> Any:
    return mlstm.zeros(batch, p), ()


def attended(p: Any, xs: Any) -> tuple[Any, None]:
    """Causal self-attention: the one residual step, along DEPTH, of the whole sequence."""
    layers = jax.tree.map(lambda leaf: leaf[None], p)
    _, (ys, _) = scan(turn(residual(attention.attention)), DEPTH)(layers, None, (xs, ()))
    return ys, None


def convolved(p: Any, xs: Any) -> tuple[Any, None]:
    """y_t = sum over k of x_{t-k} W_k: a causal convolution."""
    padded = jnp.pad(xs, ((REACH - 1, 0), (0, 0), (0, 0)))
    return sum(padded[k : k + len(xs)] @ p[k] for k in range(REACH)), None  # pyright: ignore


def by_cudnn(p: Any, xs: Any) -> tuple[Any, None]:
    """The LSTM as users of a GPU have it; its sequences come first."""
    steps, batch, width = xs.shape
    lstm_of = peers.cudnn(Case(batch, steps, width, width, device="gpu"))
    return lstm_of.apply(p, xs.swapaxes(0, 1), *lstm_of.beside).swapaxes(0, 1), None


def cudnn_weights(key: Any, width: int) -> Any:
    """The same for every key."""
    return peers.cudnn(Case(1, 1, width, width, device="gpu")).weights


def fused(p: Any, xs: Any, implementation: Literal["cudnn", "xla"] = "cudnn") -> tuple[Any, None]:
    """The same attention by a kernel that never holds all scores, of queries, keys and values in bfloat16."""
    x = layer_norm(xs, p.scale)
    q, k, v = (jnp.einsum("tbh,hnk->btnk", x, w).astype("bfloat16") for w in (p.wq, p.wk, p.wv))
    found = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)
    return xs + jnp.einsum("btnk,nkh->tbh", found.astype(xs.dtype), p.wo), None


def every_cell(steps: int) -> int:
    """A recurrent layer: from cell to cell."""
    return steps


def at_a_glance(steps: int) -> int:
    """Attention: each position sees each."""
    return 1


def widening(steps: int) -> int:
    """Convolutions on top of each other: each sees REACH - 1 positions further."""
    return ceil((steps - 1) / (REACH - 1))


def dilated(steps: int) -> int:
    """Convolutions whose gaps grow by REACH from layer to layer."""
    return next(layers for layers in count() if REACH**layers >= steps)


def _square(init: Any) -> Callable[[Any, int], Any]:
    return lambda key, width: init(key, width, width)


def _heads(width: int) -> int:
    return max(width // HEAD, 1)


def _matrices(key: Any, width: int) -> Any:
    heads = _heads(width)
    return mlstm.init(key, width, heads, min(width, HEAD), width // heads)


def _attention(key: Any, width: int) -> Any:
    return attention.init(key, width, _heads(width))


LAYERS = {
    "LSTM": Layer(_square(lstm.init), step_by_step(lstm.lstm, _pair), path=every_cell),
    "LSTM, Newton": Layer(_square(lstm.init), at_once(lstm.lstm, _pair), "LSTM", widest=16),
    "LSTM, diagonal Newton": Layer(_square(lstm.init), at_once(lstm.lstm, _pair, DiagonalNewton()), "LSTM", widest=16),
    "LSTM, cuDNN": Layer(cudnn_weights, by_cudnn, "LSTM", path=every_cell, cudnn=True),
    "GRU": Layer(_square(gru.init), step_by_step(gru.gru, _stream), widest=16, path=every_cell),
    "GRU, Newton": Layer(_square(gru.init), at_once(gru.gru, _stream), "GRU", widest=16),
    "diagonal LSTM": Layer(_square(lstm.init_diagonal), step_by_step(lstm.diagonal, _pair, scan), path=every_cell),
    "diagonal LSTM, Newton": Layer(_square(lstm.init_diagonal), at_once(lstm.diagonal, _pair), "diagonal LSTM"),
    "minLSTM": Layer(_square(minlstm.init), step_by_step(minlstm.minlstm, _stream), path=every_cell),
    "minLSTM, at once": Layer(_square(minlstm.init), at_once(minlstm.minlstm, _stream), "minLSTM"),
    "mLSTM": Layer(_matrices, step_by_step(mlstm.mlstm, _matrix), path=every_cell),
    "mLSTM, at once": Layer(_matrices, at_once(mlstm.mlstm, _matrix), "mLSTM"),
    "attention": Layer(_attention, attended, path=at_a_glance),
    "attention, cuDNN": Layer(_attention, fused, "attention", path=at_a_glance, cudnn=True),
    "convolution": Layer(
        lambda key, width: jax.random.normal(key, (REACH, width, width)) / (REACH * width) ** 0.5,
        convolved,
        path=widening,
    ),
}
