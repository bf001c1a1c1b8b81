"""Lines along time and, turned, along depth: Newton's iterations on them, and how they amplify."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_rot import DEPTH, TIME, Newton, Sequential, newton_with_info, residual, scan, turn
from lstm_rot.branches import dense, highway, lstm, rnn, watched
from lstm_rot.branches.common import layer_norm

CLASSES = 10


class Kind(NamedTuple):
    """A step, the axis it is scanned along, and init(key, input width or None, hidden size) of one cell."""

    axis: str
    branch: Any
    init: Any
    memory: bool = False


UNTRAINED = {  # the weights that act on the state are multiplied by a gain
    "plain RNN": Kind("time", rnn.rnn, rnn.init),
    "LSTM": Kind("time", lstm.lstm, lstm.init, memory=True),
    "plain net": Kind("depth", rnn.rnn, rnn.init),
    "residual net": Kind("depth", dense.dense, dense.init),
}
DIAL = {  # keep at the start: sigmoid of the forget gate's bias; 1 - sigmoid of the transform gate's
    "time": Kind("time", lstm.lstm, lambda *a, bias: lstm.init(*a, forget_bias=bias), memory=True),
    "depth": Kind("depth", highway.highway, lambda *a, bias: highway.init(*a, gate_bias=-bias)),
}


def line(kind: Kind, p: Any, entering: Any, schedule: Any, branch: Any = None) -> tuple[Any, Any]:
    """(flow at the end, what each cell hands the other way), batch B, hidden size H.

    entering: along time what the cells read, [T, B, D]; along depth the stream that goes in, [B, H].
    """
    step = residual(branch or kind.branch)
    if kind.axis == "time":
        zeros = jnp.zeros((entering.shape[1], p.b.shape[-1]))
        left = zeros, zeros if kind.memory else ()
        return scan(step, TIME, schedule=schedule)(p, left, entering)
    right, above = scan(turn(step), DEPTH, schedule=schedule)(p, None, (entering, ()))
    return above, right


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


@partial(jax.jit, static_argnums=0)
def measured(kind: Kind, p: Any, entering: Any) -> dict[str, Any]:
    """exponent; Newton's iterations, residual, converged; keep, the mean; log10_gain of the gradient over the line."""
    _, (_, exponent) = line(kind, p, entering, with_exponent)
    _, (_, info) = line(kind, p, entering, partial(newton_with_info, newton=Newton()))
    seen = watched(kind.branch, lambda stream, keep, add, new: keep * jnp.ones_like(new))
    _, (_, keeps) = line(kind, p, entering, Sequential(), seen)

    def end(first: Any) -> Any:
        if kind.axis == "depth":
            return line(kind, p, first, Sequential())[0][0]
        step = scan(residual(kind.branch), TIME)
        return step(p, (first, jnp.zeros_like(first) if kind.memory else ()), entering)[0][0]

    first = entering if kind.axis == "depth" else jnp.zeros((entering.shape[1], p.b.shape[-1]))
    _, back = jax.vjp(end, first)
    v = jax.random.normal(jax.random.key(1), first.shape)
    gain = jnp.linalg.norm(back(v)[0]) / jnp.linalg.norm(v)
    return {
        "exponent": exponent,
        "iterations": info.iterations,
        "residual": info.residual,
        "converged": info.converged,
        "keep": keeps.mean(),
        "log10_gain": jnp.log10(jnp.maximum(gain, 1e-36)),
    }


def untrained(kind: Kind, key: Any, steps: int, hidden_size: int, batch: int) -> tuple[Any, Any]:
    """p, entering: weights as they begin, of one cell along time, of `steps` along depth; normal numbers enter."""
    key_p, key_x = jax.random.split(key)
    if kind.axis == "time":
        p = kind.init(key_p, hidden_size, hidden_size)
        return p, 0.3 * jax.random.normal(key_x, (steps, batch, hidden_size))
    p = jax.vmap(lambda key: kind.init(key, None, hidden_size))(jax.random.split(key_p, steps))
    return p, jax.random.normal(key_x, (batch, hidden_size))


class Reader(NamedTuple):
    """A classifier: the line's weights, what makes a stream of the image along depth, and the head."""

    cell: Any
    into: Any
    scale: jax.Array
    w: jax.Array
    b: jax.Array


def reader(key: Any, kind: Kind, pixels: int, steps: int, hidden_size: int, bias: Any) -> Reader:
    """Fresh weights, for images of `pixels`; along time they are read in `steps` pieces."""
    key, key_in = jax.random.split(key)
    head = jnp.ones(hidden_size), jnp.zeros((hidden_size, CLASSES)), jnp.zeros(CLASSES)
    if kind.axis == "time":
        return Reader(kind.init(key, pixels // steps, hidden_size, bias=bias), None, *head)
    cells = jax.vmap(lambda key: kind.init(key, None, hidden_size, bias=bias))(jax.random.split(key, steps))
    return Reader(cells, jax.random.normal(key_in, (pixels, hidden_size)) / pixels**0.5, *head)


def entering(kind: Kind, p: Reader, images: Any, steps: int) -> Any:
    """What enters the line, of images [B, P, P]."""
    flat = images.reshape(len(images), -1)
    return flat.reshape(len(flat), steps, -1).swapaxes(0, 1) if kind.axis == "time" else flat @ p.into


def logits(kind: Kind, steps: int, p: Reader, images: Any) -> Any:
    """[B, 10]: read from the stream's end along depth, from the last output along time."""
    end, handed = line(kind, p.cell, entering(kind, p, images, steps), Sequential())
    read = handed[-1] if kind.axis == "time" else end[0]
    return layer_norm(read, p.scale) @ p.w + p.b
