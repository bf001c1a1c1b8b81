"""The nets that are compared: alike but for the step that mixes positions, and with as many parameters each.

layer = chain(turn(residual(mix)), turn(residual(mlp)))      scanned along DEPTH
mix:  x' = x + line(norm(x)) W_o                             the line an LSTM, mLSTM or minLSTM along TIME
      x' = x + attention(norm(x))                            causal, over sinusoids that are added to the input
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from experiments.recall.tasks import Sequences
from lstm_rot import DEPTH, TIME, Branch, chain, residual, scan, turn
from lstm_rot.branches import attention, lstm, minlstm, mlp, mlstm
from lstm_rot.branches.common import layer_norm
from lstm_rot.models import transformer

HEADS = 2  # of attention and mLSTM
BIAS = 3.0  # of what is kept, at first: every line begins with a keep of sigmoid(3) = 0.95, if its input were zero
CLOSE = 0.05  # within which the numbers of parameters agree, of that asked for


class Line(NamedTuple):
    """Weights of a mixing step: of its norm, of the cell along time, and of what is made of the cell's outputs."""

    scale: Float[Array, "H"]
    cell: Any
    wo: Float[Array, "H H"]


@dataclass(frozen=True)
class Kind:
    """What mixes positions. init(key, hidden size) -> p;  state(p, batch, positions) -> what it carries on in time."""

    init: Callable[[Any, int], Any]
    mix: Branch
    state: Callable[[Any, int, int], Any]
    counts: bool = False  # whether the position is added to the input


def along_time(branch: Branch, init: Callable[[Any, int], Any], state: Callable[[Any, int], Any]) -> Kind:
    """A line along TIME in a step along DEPTH: x' = x + line(norm(x)) W_o. init and state: of the line's cell."""

    def mix(p: Line, stream: Float[Array, "T B H"], memory: Any, below: Any) -> tuple[Any, Any, Any]:
        line = scan(residual(branch), TIME)
        _, hs = line(p.cell, state(p.cell, stream.shape[1]), layer_norm(stream, p.scale))
        return 1, hs @ p.wo, lambda stream: (memory, below)

    def weights(key: PRNGKeyArray, hidden: int) -> Line:
        within, out = jax.random.split(key)
        wo = jax.nn.initializers.lecun_normal()(out, (hidden, hidden))
        return Line(jnp.ones(hidden), init(within, hidden), wo)

    return Kind(weights, mix, lambda p, batch, positions: state(p.cell, batch))


def _lstm(key: PRNGKeyArray, hidden: int) -> lstm.Params:
    return lstm.init(key, hidden, hidden, forget_bias=BIAS)


def _minlstm(key: PRNGKeyArray, hidden: int) -> minlstm.Params:
    """f / (f + i) is sigmoid(BIAS) where f and i have opposite biases."""
    p = minlstm.init(key, hidden, hidden, forget_bias=BIAS)
    return p._replace(b=p.b.at[0].set(-BIAS))


def _mlstm(key: PRNGKeyArray, hidden: int) -> mlstm.Params:
    return mlstm.init(key, hidden, HEADS, hidden // HEADS, hidden // HEADS, forget_bias=BIAS)


def _cache(p: attention.Params, batch: int, positions: int) -> Any:
    k = jnp.zeros((positions, batch, *p.wk.shape[1:]))
    return k, k


KINDS = {
    "lstm": along_time(lstm.lstm, _lstm, lambda p, batch: (jnp.zeros((batch, p.b.shape[1])),) * 2),
    "minlstm": along_time(minlstm.minlstm, _minlstm, lambda p, batch: (jnp.zeros((batch, p.b.shape[1])), ())),
    "mlstm": along_time(mlstm.mlstm, _mlstm, lambda p, batch: (mlstm.zeros((batch,), p), ())),
    "attention": Kind(partial(attention.init, num_heads=HEADS), attention.attention, _cache, counts=True),
}


@dataclass(frozen=True)
class Net:
    """Sizes: of the vocabulary that it reads, of the answers it chooses from, and of its `layers` alike."""

    kind: str
    vocabulary: int
    answers: int
    layers: int
    hidden: int
    inner: int  # of the MLP


class Params(NamedTuple):
    """Of the layers, with a leading axis: the mixing step's weights and the MLP's."""

    embedding: Float[Array, "V H"]
    layers: tuple[Any, mlp.Params]
    scale: Float[Array, "H"]  # of the last norm
    head: Float[Array, "H A"]


def init(key: PRNGKeyArray, net: Net) -> Params:
    """Normal embeddings, the head Lecun normal; the rest as the branches have it."""
    keys = jax.random.split(key, 3)

    def layer(key: PRNGKeyArray) -> tuple:
        mixes, dense = jax.random.split(key)
        return KINDS[net.kind].init(mixes, net.hidden), mlp.init(dense, net.hidden, net.inner)

    return Params(
        jax.random.normal(keys[0], (net.vocabulary, net.hidden)),
        jax.vmap(layer)(jax.random.split(keys[1], net.layers)),
        jnp.ones(net.hidden),
        jax.nn.initializers.lecun_normal()(keys[2], (net.hidden, net.answers)),
    )


def outputs(p: Params, net: Net, symbols: Any) -> Float[Array, "T B H"]:
    """The last stream, normalised, of symbols [T, B]."""
    kind, x = KINDS[net.kind], p.embedding[symbols]
    if kind.counts:
        config = transformer.Config(net.hidden, net.layers, HEADS)
        x = x + transformer.sinusoids(jnp.arange(len(x), dtype="int32"), config)[:, None]
    layer = chain(turn(residual(kind.mix)), turn(residual(mlp.mlp)))
    _, (x, _) = scan(layer, DEPTH)(p.layers, (None, None), (x, ()))
    return layer_norm(x, p.scale)


def logits(p: Params, net: Net, given: Sequences) -> Float[Array, "Q B A"]:
    """Of the answers, where something is asked."""
    each = jnp.arange(given.symbols.shape[1])
    return outputs(p, net, given.symbols)[given.asked, each] @ p.head


@cache
def parameters(net: Net) -> int:
    """How many it has, all of them."""
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), net))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def carried(net: Net, positions: int) -> int:
    """Bytes that it hands on from one step to the next, of one sequence of which it has read so many positions."""

    def states() -> Any:
        p = init(jax.random.key(0), net)
        return jax.vmap(lambda layer: KINDS[net.kind].state(layer, 1, positions))(p.layers[0])

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(states)))


def sized(kind: str, asked: int, *, layers: int, vocabulary: int, answers: int) -> Net:
    """The net of about `asked` parameters, its MLP about twice as wide as its stream.

    Raises ValueError where none has them within 5%.
    """

    def net(hidden: int, inner: int) -> Net:
        return Net(kind, vocabulary, answers, layers, hidden, inner)

    hidden = HEADS
    while parameters(net(hidden + HEADS, 2 * (hidden + HEADS))) <= asked:
        hidden += HEADS
    without = parameters(net(hidden, 1))
    each = parameters(net(hidden, 2)) - without
    found = net(hidden, max(1, 1 + int(np.rint((asked - without) / each))))
    if abs(parameters(found) / asked - 1) > CLOSE:
        raise ValueError(f"{kind}: the nearest has {parameters(found)} parameters")
    return found
