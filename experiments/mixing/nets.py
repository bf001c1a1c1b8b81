"""The nets whose mixing is measured: one line of cells along depth or along time, by what its cells keep.

Attention is one kind for both axes: `attnres` of the dense step, scanned along TIME, and turned along DEPTH.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lstm_rot import DEPTH, TIME, Axis, Branch, Schedule, residual, scan, turn
from lstm_rot.branches import attnres, dense, highway, lstm, minlstm, with_keep
from lstm_rot.branches.common import layer_norm
from lstm_rot.schedules import Sequential

NOTHING, ONES, GATED, ATTENTION = "nothing", "all ones", "gates", "softmax"
CLASSES = 10


class Kind(NamedTuple):
    """A step: by what its line mixes, its branch, init(key, input_size, hidden_size) -> weights of one cell, and
    whether it has a memory like its stream."""

    form: str
    branch: Branch
    init: Any
    memory: bool = False


def init_attending(key: jax.Array, input_size: int | None, hidden_size: int) -> attnres.Params:
    """Of attention over what dense steps propose."""
    return attnres.init(dense.init(key, input_size, hidden_size), input_size, hidden_size)


ATTENDING = Kind(ATTENTION, attnres.attnres(dense.dense), init_attending)
KINDS = {
    "depth": {
        "plain": Kind(NOTHING, with_keep(dense.dense, 0), dense.init),
        "residual": Kind(ONES, dense.dense, dense.init),
        "highway": Kind(GATED, highway.highway, highway.init),
        "attention": ATTENDING,
    },
    "time": {
        "LSTM 1997": Kind(ONES, lstm.lstm_1997, lstm.init_1997, memory=True),
        "LSTM": Kind(GATED, lstm.lstm, lstm.init, memory=True),
        "minLSTM": Kind(GATED, minlstm.minlstm, minlstm.init),
        "attention": ATTENDING,
    },
}
AXES = {"depth": DEPTH, "time": TIME}


@dataclass(frozen=True)
class Net:
    """A classifier of images of P x P pixels. Along depth the whole image enters the first stream, by an embedding;
    along time it is read in `length` pieces, row by row, from a stream of zeros."""

    axis: str
    kind: Kind
    length: int
    """layers, or time steps"""
    pixels: int
    hidden_size: int

    @property
    def deep(self) -> bool:
        """Whether the line runs along depth."""
        return self.axis == "depth"


class Params(NamedTuple):
    """The embedding, None along time; the line's weights; the norm that reads its end, and the head."""

    embed: Float[Array, "D H"] | None
    line: Any
    scale: Float[Array, "H"]
    w: Float[Array, "H K"]
    b: Float[Array, "K"]


def init(key: jax.Array, net: Net) -> Params:
    """Fresh weights; the head starts at zero, so that every class is equally likely."""
    key_embed, key_line = jax.random.split(key)
    size, hidden = net.pixels**2, net.hidden_size
    embed = None
    if net.deep:
        embed = jax.nn.initializers.lecun_normal()(key_embed, (size, hidden), "float32")
        line = jax.vmap(lambda key: net.kind.init(key, None, hidden))(jax.random.split(key_line, net.length))
    else:
        line = net.kind.init(key_line, size // net.length, hidden)
    return Params(embed, line, jnp.ones(hidden), jnp.zeros((hidden, CLASSES)), jnp.zeros(CLASSES))


def logits(p: Params, x: Float[Array, "B P P"], *, net: Net) -> Float[Array, "B K"]:
    """Of each class, from what the last cell hands on."""
    _, handed = run(net.kind.branch, AXES[net.axis], p.line, *flows(p, x, net))
    return layer_norm(handed[-1], p.scale) @ p.w + p.b


def flows(p: Params, x: Float[Array, "B P P"], net: Net) -> tuple[Any, Any]:
    """What flows into a line: (stream, memory) before its first cell, and what enters each, None along depth.

    The memory of attention is a cache: the embedding along depth, nothing along time.
    """
    if net.deep:
        stream, inputs = x.reshape(len(x), -1) @ p.embed, None  # pyright: ignore
    else:
        stream = jnp.zeros((len(x), net.hidden_size), x.dtype)
        inputs = x.reshape(len(x), net.length, -1).swapaxes(0, 1)
    if net.kind.form != ATTENTION:
        return (stream, jnp.zeros_like(stream) if net.kind.memory else ()), inputs
    cache = attnres.empty(net.length + net.deep, stream)
    return (stream, (attnres.append(cache, stream) if net.deep else cache, ())), inputs


def run(
    branch: Branch, axis: Axis, p: Any, start: Any, inputs: Any, schedule: Schedule = Sequential()
) -> tuple[Any, Any]:
    """A line of cells along the axis: the last (stream, memory), and what each cell handed on."""
    if axis.flow == "left":
        return scan(residual(branch), axis, schedule=schedule)(p, start, inputs)
    handed, end = scan(turn(residual(branch)), axis, schedule=schedule)(p, inputs, start)
    return end, handed
