"""Lines along time and, turned, along depth: Newton's iterations on them, and how they amplify."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.dial.probing import gain
from experiments.gradient_flow import watched
from experiments.mixing import nets
from experiments.mixing.nets import AXES, KINDS, Kind, Net, Params
from lstm_rot import Newton, newton_with_info
from lstm_rot.branches import rnn

PLAIN = Kind(nets.NOTHING, rnn.rnn, rnn.init)
UNTRAINED = {  # axis and step; the weights that act on the state are multiplied by a gain
    "plain RNN": ("time", PLAIN),
    "LSTM": ("time", KINDS["time"]["LSTM"]),
    "plain net": ("depth", PLAIN),
    "residual net": ("depth", KINDS["depth"]["residual"]),
}
DIAL = {"time": KINDS["time"]["LSTM"], "depth": KINDS["depth"]["highway"]}
OPENS = {"time": 1, "depth": -1}  # the sign of the second gate's bias in what is kept: the forget, the transform gate


def with_exponent(step: Any, init: Any, xs: Any, length: int) -> tuple[Any, tuple[Any, Any]]:
    """The schedule `Sequential()`, which also tells the largest Lyapunov exponent, a step: carry, (ys, exponent).

    By a tangent that is carried along and made of length 1 again at each step, of each sequence of the batch its own;
    their mean.
    """

    def norm(v: Any) -> Any:
        return jnp.sqrt(sum((leaf**2).sum(range(1, leaf.ndim)) for leaf in jax.tree.leaves(v)))

    def scaled(v: Any) -> tuple[Any, Any]:
        size = jnp.maximum(norm(v), 1e-30)
        return jax.tree.map(lambda leaf: leaf / size.reshape(-1, *(1,) * (leaf.ndim - 1)), v), jnp.log(size)

    def body(at: tuple, x: Any) -> tuple[tuple, Any]:
        state, v = at
        state, v, y = jax.jvp(lambda state: step(state, x), (state,), (v,), has_aux=True)
        v, grown = scaled(v)
        return (state, v), (y, grown)

    leaves, treedef = jax.tree.flatten(init)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    v = treedef.unflatten([jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)])
    (carry, _), (ys, grown) = jax.lax.scan(body, (init, scaled(v)[0]), xs, length)
    return carry, (ys, grown[length // 2 :].mean())  # of the later half: the tangent has turned by then


@partial(jax.jit, static_argnums=(0, 1))
def measured(kind: Kind, axis: str, p: Any, start: Any, inputs: Any) -> dict[str, Any]:
    """exponent; Newton's iterations, residual, converged; keep, the mean; log10_gain of the gradient over the line."""
    line = partial(nets.run, axis=AXES[axis], p=p, inputs=inputs)
    _, (_, exponent) = line(kind.branch, start=start, schedule=with_exponent)
    _, (_, info) = line(kind.branch, start=start, schedule=partial(newton_with_info, newton=Newton()))

    def through(stream: Any) -> tuple[Any, Any]:
        (end, _), keeps = line(watched(kind.branch), start=(stream, start[1]))
        return end, keeps

    log10_gain, keep = gain(jax.random.key(1), through, start[0])
    return {"exponent": exponent, "keep": keep, "log10_gain": log10_gain, **info._asdict()}


def untrained(name: str, key: Any, length: int, hidden_size: int, batch: int) -> tuple[Any, Any, Any]:
    """p, start, inputs: fresh weights, of one cell along time, of `length` along depth; normal numbers enter."""
    axis, kind = UNTRAINED[name]
    key_p, key_x = jax.random.split(key)
    if axis == "time":
        zeros = jnp.zeros((batch, hidden_size))
        xs = 0.3 * jax.random.normal(key_x, (length, batch, hidden_size))
        return kind.init(key_p, hidden_size, hidden_size), (zeros, zeros if kind.memory else ()), xs
    p = jax.vmap(lambda key: kind.init(key, None, hidden_size))(jax.random.split(key_p, length))
    return p, (jax.random.normal(key_x, (batch, hidden_size)), ()), None


def opened(key: Any, net: Net, leak: Any) -> Params:
    """Fresh weights of the net, the dial at 1 - keep = `leak`, as its gate's bias alone would have it."""
    p = nets.init(key, net)
    bias = OPENS[net.axis] * jnp.log(1 / leak - 1)
    return p._replace(line=p.line._replace(b=p.line.b.at[..., 1, :].set(bias)))
