"""The laws of the rotation as a table: for each, the largest difference seen on real images, and what is allowed."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import Progress

from experiments.fit import in_parallel
from lstm_rot import DEPTH, TIME, Axis, residual, scan, turn, wavefront
from lstm_rot.branches import dense, highway, lstm
from lstm_rot.branches.common import affine
from lstm_rot.models import language_model, transformer

ROUNDING = {"float32": 5e-6, "float64": 1e-13}
OPEN = 40.0  # a gate's bias at which the sigmoid is 1 to the last bit
LAYERS = 4
UNTIED_TIME, TIED_DEPTH = Axis("left", tied=False), Axis("below", tied=True)


def difference(a: Any, b: Any) -> float:
    """The largest |a - b| over all leaves of two trees; where b's values exceed 1, relative to the largest of them."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(np.max([np.abs(x - y).max() / np.maximum(1.0, np.abs(y).max()) for x, y in pairs]))  # NaN stays NaN


class Law(NamedTuple):
    """A law, how to measure its difference on x [T, B, D], whether it holds bit for bit, and the claim it bears on."""

    name: str
    measure: Callable[[jax.Array, str], float]
    exact: bool
    claim: str


def measure(images: np.ndarray, progress: Progress) -> list[dict]:
    """Rows of law, dtype, difference, allowed, claim; allowed 0 means bit for bit."""

    def row(task: tuple[str, Law]) -> dict:
        dtype, law = task
        with jax.enable_x64(dtype == "float64"):
            x = jnp.asarray(images, dtype).swapaxes(0, 1)  # the rows of pixels as time steps
            gap = law.measure(x, dtype)
        allowed = 0.0 if law.exact else ROUNDING[dtype]
        return {"law": law.name, "dtype": dtype, "difference": gap, "allowed": allowed, "claim": law.claim}

    return in_parallel(row, product(ROUNDING, _laws()), progress, "the laws")


def _laws() -> list[Law]:
    rotate, tied, opened = "SUT24-rotate", "LP16-tied", "SCH-open"
    return [
        Law("turn(turn(c)) is c", _turned_twice, True, rotate),
        Law(
            "the whole grid turns, weights P[l,t], nesting exchanged",
            partial(_grid_turns, exchanged=True),
            True,
            rotate,
        ),
        Law(
            "the whole grid turns, same nesting, P's axes swapped", partial(_grid_turns, exchanged=False), False, rotate
        ),
        Law("nesting commutes, values and gradients", _nesting, False, rotate),
        Law("the wavefront is the nested scans, values and gradients", _wavefront, False, rotate),
        Law("decoding is loop interchange (causal Transformer)", _decoding, False, rotate),
        Law(
            "corner: weights tied, an input a step (recurrent net)",
            partial(_corner, tied=True, inputs=True),
            False,
            rotate,
        ),
        Law("corner: weights untied, an input a step", partial(_corner, tied=False, inputs=True), False, rotate),
        Law("corner: weights tied, no input (Liao & Poggio)", partial(_corner, tied=True, inputs=False), False, tied),
        Law(
            "corner: weights untied, no input (residual net)", partial(_corner, tied=False, inputs=False), False, rotate
        ),
        Law("a tied residual net along DEPTH is a recurrent net along TIME", _tied, True, tied),
        Law("an LSTM with f = 1 and its h path cut hands the gradient back as it is", _carousel, True, rotate),
        Law("a highway net, gates C and T of their own and open, is a residual net", _open_highway, False, opened),
        Law("a highway net with C = 1 - T and T open is a plain net", _open_coupled_highway, False, opened),
        Law("an LSTM with its gates open is a residual net x + tanh(tanh(x) W + b)", _open_lstm, False, opened),
        Law("an unfolded LSTM of 1997 with its gates open is a residual net", _open_1997, False, opened),
    ]


def _weights(init: Callable[[jax.Array], Any], dtype: str) -> Any:
    """Random weights of the shapes that `init` makes: a law holds for any."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.3), dtype), shapes)


def _stacked(init: Any, *axes: int) -> Callable[[jax.Array], Any]:
    """`init` with leading axes."""
    for size in reversed(axes):
        init = jax.vmap(init, in_axes=None, axis_size=size)
    return init


def _grid(x: jax.Array, dtype: str, *axes: int) -> tuple[Any, Any]:
    """LSTM weights with those leading axes, and the carry [L, B, H]; the hidden size is the image's width."""
    width, zeros = x.shape[-1], jnp.zeros((LAYERS, *x.shape[1:]), dtype)
    return _weights(_stacked(lambda key: lstm.init(key, width, width), *axes), dtype), (zeros, zeros)


def _turned_twice(x: jax.Array, dtype: str) -> float:
    p, carry = _grid(x, dtype)
    cell, left = residual(lstm.lstm), jax.tree.map(lambda leaf: leaf[0], carry)
    return difference(jax.jit(cell)(p, left, x[0]), jax.jit(turn(turn(cell)))(p, left, x[0]))


def _grid_turns(x: jax.Array, dtype: str, exchanged: bool) -> float:
    p, carry = _grid(x, dtype, LAYERS, len(x))
    cell = residual(lstm.lstm)
    right, above = jax.jit(scan(scan(cell, UNTIED_TIME), DEPTH))(p, carry, x)
    if exchanged:
        above_turned, right_turned = jax.jit(scan(scan(turn(cell), DEPTH), UNTIED_TIME))(p, x, carry)
    else:
        p = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), p)
        above_turned, right_turned = jax.jit(scan(scan(turn(cell), UNTIED_TIME), DEPTH))(p, x, carry)
    return difference((right, above), (right_turned, above_turned))


def _values_and_gradients(cell: Any, *args: Any) -> Any:
    def loss(*args: Any) -> tuple[jax.Array, Any]:
        out = cell(*args)
        return jnp.sin(out[1]).mean(), out

    return jax.jit(jax.grad(loss, argnums=(0, 2), has_aux=True))(*args)


def _nesting(x: jax.Array, dtype: str) -> float:
    cell = residual(lstm.lstm)
    grids = scan(scan(cell, TIME), DEPTH), scan(scan(cell, DEPTH), TIME)
    return difference(*(_values_and_gradients(grid, *_grid(x, dtype, LAYERS), x) for grid in grids))


def _wavefront(x: jax.Array, dtype: str) -> float:
    cell = residual(lstm.lstm)
    grids = scan(scan(cell, TIME), DEPTH), wavefront(cell)
    return difference(*(_values_and_gradients(grid, *_grid(x, dtype, LAYERS), x) for grid in grids))


def _decoding(x: jax.Array, dtype: str) -> float:
    body = transformer.Config(hidden_size=16, num_layers=3, num_heads=2, param_dtype=dtype)
    config = language_model.Config(vocab_size=17, body=body)
    p = _weights(lambda key: language_model.init(key, config), dtype)
    tokens = jnp.asarray(x[..., x.shape[-1] // 2] * 16, "int32")  # grey levels of a column, 0 to 16
    _, together = language_model.apply(p, tokens, config=config)
    carry, logits = language_model.zeros(config, *tokens.shape[::-1]), []
    for token in tokens:
        carry, out = language_model.apply(p, token[None], config=config, carry=carry)
        logits.append(out)
    return difference(jnp.concatenate(logits), together)


def _dense_weights(x: jax.Array, dtype: str, tied: bool, inputs: bool) -> dense.Params:
    width = x.shape[-1]
    axes = () if tied else (len(x),)
    return _weights(_stacked(lambda key: dense.init(key, width if inputs else None, width), *axes), dtype)


def _corner(x: jax.Array, dtype: str, tied: bool, inputs: bool) -> float:
    """The dense step along time, and turned along depth, against a loop in numpy."""
    p, cell, start = _dense_weights(x, dtype, tied, inputs), residual(dense.dense), (x[0], ())
    length, belows = len(x), x if inputs else None
    (along_time, _), _ = jax.jit(scan(cell, Axis("left", tied), length=length))(p, start, belows)
    _, (along_depth, _) = jax.jit(scan(turn(cell), Axis("below", tied), length=length))(p, belows, start)

    stream, weights = np.asarray(x[0]), jax.tree.map(np.asarray, p)
    for t in range(length):
        q = weights if tied else jax.tree.map(lambda leaf, t=t: leaf[t], weights)
        centred = stream - stream.mean(-1, keepdims=True)
        normed = q.scale * centred / np.sqrt(stream.var(-1, keepdims=True) + 1e-6)
        stream = stream + np.maximum(normed, 0) @ q.wh + q.b + (np.asarray(x[t]) @ q.wx if inputs else 0)
    return max(difference(along_time, stream), difference(along_depth, stream))


def _tied(x: jax.Array, dtype: str) -> float:
    p, cell, start = _dense_weights(x, dtype, True, False), residual(dense.dense), (x[0], ())
    net = jax.jit(scan(turn(cell), TIED_DEPTH, length=100))(p, None, start)
    recurrent = jax.jit(scan(cell, TIME, length=100))(p, start, None)
    return difference(net, recurrent[::-1])


def _carousel(x: jax.Array, dtype: str) -> float:
    """Hochreiter & Schmidhuber's truncation: the gradient does not enter the gates through h."""

    def truncated(p: Any, stream: Any, memory: Any, below: Any) -> Any:
        return lstm.lstm_1997(p, stream, jax.lax.stop_gradient(memory), below)

    width = x.shape[-1]
    p = _weights(lambda key: lstm.init_1997(key, width, width), dtype)
    line = scan(residual(truncated), TIME)

    @jax.jit
    def jacobian(x: jax.Array) -> jax.Array:
        return jax.jacrev(lambda c: line(p, (c, jnp.zeros(width, dtype)), x)[0][0])(jnp.ones(width, dtype))

    return difference(jacobian(x[:, 0]), jnp.eye(width, dtype=dtype))


def _opened(weights: Any, gates: tuple[int, ...]) -> Any:
    """Those gates' weights zero and their biases at which they are wide open."""
    index = jnp.array(gates)
    return weights._replace(wh=weights.wh.at[:, :, index].set(0), b=weights.b.at[:, index].set(OPEN))


def _residual_loop(x: jax.Array, update: Any, read: Any = lambda s: s) -> np.ndarray:
    stream = np.asarray(x[0])
    for t in range(len(x)):
        stream = stream + update(t, read(stream))
    return stream


def _through_depth(branch: Any, p: Any, x: jax.Array, memory: Any = ()) -> jax.Array:
    _, (stream, _) = jax.jit(scan(turn(residual(branch)), DEPTH))(p, None, (x[0], memory))
    return stream


def _layers(init: Any, x: jax.Array, dtype: str) -> Any:
    return _weights(_stacked(lambda key: init(key, None, x.shape[-1]), len(x)), dtype)


def two_gates(p: lstm.Params, stream: jax.Array, memory: Any, below: None) -> tuple[Any, Any, Any]:
    """A highway step with a carry gate of its own (Srivastava et al. 2015, before C = 1 - T): F, T, C."""
    f, t, c = jnp.moveaxis(affine(p, stream, below), -2, 0)
    return jax.nn.sigmoid(c), jax.nn.sigmoid(t) * jax.nn.relu(f), lambda stream: (memory, stream)


def _open_highway(x: jax.Array, dtype: str) -> float:
    p = _opened(_layers(lstm.init_1997, x, dtype), (1, 2))  # of the shapes of three gates
    w, b = np.asarray(p.wh), np.asarray(p.b)
    loop = _residual_loop(x, lambda t, s: np.maximum(s @ w[t, :, 0] + b[t, 0], 0))
    return difference(_through_depth(two_gates, p, x), loop)


def _open_coupled_highway(x: jax.Array, dtype: str) -> float:
    p = _opened(_layers(highway.init, x, dtype), (1,))
    stream, w, b = np.asarray(x[0]), np.asarray(p.wh), np.asarray(p.b)
    for t in range(len(x)):
        stream = np.maximum(stream @ w[t, :, 0] + b[t, 0], 0)
    return difference(_through_depth(highway.highway, p, x), stream)


def _open_lstm(x: jax.Array, dtype: str) -> float:
    p = _opened(_layers(lstm.init, x, dtype), (0, 1, 3))
    net = _through_depth(lstm.lstm, p, x, jnp.tanh(x[0]))
    w, b = np.asarray(p.wh), np.asarray(p.b)
    return difference(net, _residual_loop(x, lambda t, h: np.tanh(h @ w[t, :, 2] + b[t, 2]), np.tanh))


def _open_1997(x: jax.Array, dtype: str) -> float:
    p = _opened(_layers(lstm.init_1997, x, dtype), (0, 2))
    net = _through_depth(lstm.lstm_1997, p, x, jnp.tanh(x[0] / 2))
    w, b = np.asarray(p.wh), np.asarray(p.b)
    loop = _residual_loop(x, lambda t, h: 2 * np.tanh((h @ w[t, :, 1] + b[t, 1]) / 2), lambda s: np.tanh(s / 2))
    return difference(net, loop)
