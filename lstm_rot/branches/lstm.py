"""Long short-term memory: the stream is the cell state c, the memory the output h.

Gates are an axis of their own, so that the hidden axis can be sharded without moving data between devices. A variant is
put together from its gates, which see the summed pre-activations a, and from what wraps them.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lstm_rot.branches.common import affine, layer_norm, product
from lstm_rot.branches.gates import SIGMOID, SQUASH, TANH, separately


class Norm(NamedTuple):
    """Scales of layer norm: of the products with x and h, over all gates, and of the cell state as it is read."""

    x: Float[Array, "G H"] | None
    h: Float[Array, "G H"]
    c: Float[Array, "H"]
    bias: Float[Array, "H"]  # of the cell state's norm; the gates' is b


class Params(NamedTuple):
    """Weights of one cell, gates in the order i, f, g, o (i, g, o without a forget gate). Without input, wx is None.

    P is H, or the projection's size. What a variant does not have is None.
    """

    wx: Float[Array, "D G H"] | None
    wh: Float[Array, "P G H"] | Float[Array, "G H"]  # of a diagonal recurrence without P
    b: Float[Array, "G H"]
    peephole: Float[Array, "G-1 H"] | None = None  # of every gate but g
    norm: Norm | None = None
    wp: Float[Array, "H P"] | None = None


class Gates(NamedTuple):
    """A kind of cell: the order of its gates, and what they make of the state c and the summed pre-activations a.

    of(p, c, a, activate) -> keep, add, output        output(c') is the new h
    """

    order: str
    of: Callable[[Any, Any, Any, Any], tuple[Any, Any, Callable]]


def forget_gates(p: Params, c: Float[Array, "*B H"], a: Float[Array, "*B 4 H"], activate: Any) -> tuple[Any, Any, Any]:
    """i, f, o = sigmoid(a),  g = tanh(a);  c' = f c + i g,  h' = o tanh(c')      (Gers et al. 2000)"""
    i, f, g, o = activate(a, (SIGMOID, SIGMOID, TANH, SIGMOID))
    return f, i * g, lambda c: o * jnp.tanh(c)


def coupled_gates(p: Params, c: Float[Array, "*B H"], a: Float[Array, "*B 3 H"], activate: Any) -> tuple[Any, Any, Any]:
    """i, o = sigmoid(a),  g = tanh(a);  c' = (1 - i) c + i g,  h' = o tanh(c')      (CIFG: Greff et al. 2015)"""
    i, g, o = activate(a, (SIGMOID, TANH, SIGMOID))
    return 1 - i, i * g, lambda c: o * jnp.tanh(c)


def gates_1997(p: Params, c: Float[Array, "*B H"], a: Float[Array, "*B 3 H"], activate: Any) -> tuple[Any, Any, Any]:
    """i, o = sigmoid(a),  g = 4 sigmoid(a) - 2;  c' = c + i g,  h' = o (2 sigmoid(c') - 1)

    The constant error carousel: keep is the int 1 (Hochreiter & Schmidhuber 1997, appendix A.1).
    """
    i, g, o = activate(a, (SIGMOID, SQUASH, SIGMOID))
    return 1, i * g, lambda c: o * jnp.tanh(c / 2)


FORGET = Gates("ifgo", forget_gates)
COUPLED = Gates("igo", coupled_gates)
GATES_1997 = Gates("igo", gates_1997)


def peephole(gates: Callable) -> Callable:
    """The gates see the cell state too, i and f the old one, o the new (Gers & Schmidhuber 2000).

    a_i += w_i c,  a_f += w_f c,  a_o += w_o c'
    """

    def seeing(p: Params, c: Any, a: Any, activate: Any) -> tuple[Any, Any, Any]:
        w = p.peephole.astype(a.dtype)  # pyright: ignore
        zero = jnp.zeros_like(w[:1])
        before, after = jnp.concatenate([w[:-1], zero, zero]), jnp.concatenate([jnp.zeros_like(w[:-1]), zero, w[-1:]])
        keep, add, _ = gates(p, c, a + before * c[..., None, :], activate)
        return keep, add, lambda new: gates(p, new, a + after * new[..., None, :], activate)[2](new)

    return seeing


def normed_output(gates: Callable) -> Callable:
    """The cell state is read through a layer norm (Ba et al. 2016, Eq. 31):  h' = o tanh(LN(c'))"""

    def reading(p: Params, c: Any, a: Any, activate: Any) -> tuple[Any, Any, Any]:
        keep, add, output = gates(p, c, a, activate)
        norm: Any = p.norm
        return keep, add, lambda new: output(layer_norm(new, norm.c) + norm.bias.astype(new.dtype))

    return reading


def normed_affine(p: Params, h: Float[Array, "*B P"], x: Float[Array, "*B D"] | None) -> Float[Array, "*B G H"]:
    """LN(h W_h) + LN(x W_x) + b, each norm over all gates, in float32 at least (Ba et al. 2016, Eq. 29)."""
    norm: Any = p.norm

    def normed(y: Array, scale: Array) -> Array:
        wide = y if jnp.finfo(y.dtype).bits > 32 else y.astype(jnp.float32)
        return layer_norm(wide.reshape(*y.shape[:-2], -1), scale.reshape(-1)).reshape(y.shape)

    a = normed(product(h, p.wh), norm.h)
    a = a + p.b.astype(a.dtype)
    return a if x is None else a + normed(product(x, p.wx), norm.x)


def diagonal_affine(p: Params, h: Float[Array, "*B H"], x: Float[Array, "*B D"] | None) -> Float[Array, "*B G H"]:
    """h * w_h + x W_x + b: a unit's gates see no other unit's h."""
    return h[..., None, :] * p.wh + (p.b if x is None else product(x, p.wx, p.b))


@lru_cache
def variant(
    gates: Gates = FORGET,
    *,
    peepholes: bool = False,
    layer_norm: bool = False,
    projected: bool = False,
    activate: Any = separately,
    sum_up: Any = None,
) -> Callable[..., tuple]:
    """The branch of these gates. projected: h' = (o tanh(c')) W_p (Sak et al. 2014). activate: see `branches.gates`.

    sum_up: what makes the pre-activations of h and x, by default `affine`, or `normed_affine` with layer norm.
    """
    of = normed_output(gates.of) if layer_norm else gates.of
    of = peephole(of) if peepholes else of
    sum_up = sum_up or (normed_affine if layer_norm else affine)

    def branch(p: Params, stream: Any, memory: Any, below: Any) -> tuple[Any, Any, Any]:
        a = sum_up(p, memory, below).astype(stream.dtype)
        keep, add, output = of(p, stream, a, activate)

        def read(stream: Array) -> tuple[Array, Array]:
            h = output(stream).astype(p.wh.dtype)
            h = product(h, p.wp) if projected else h
            return h, h

        return keep, add, read

    return branch


def lstm(
    p: Params, stream: Float[Array, "*B H"], memory: Float[Array, "*B P"], below: Float[Array, "*B D"] | None
) -> tuple[Any, Any, Any]:
    """LSTM with a forget gate (Gers, Schmidhuber & Cummins 2000; the form without peepholes of Greff et al. 2015).

    i, f, o = sigmoid(x W_x + h W_h + b),  g = tanh(x W_x + h W_h + b)
    c' = f c + i g
    h' = o tanh(c')
    """
    return _lstm(p, stream, memory, below)


def lstm_1997(
    p: Params, stream: Float[Array, "*B H"], memory: Float[Array, "*B P"], below: Float[Array, "*B D"] | None
) -> tuple[Any, Any, Any]:
    """The LSTM without a forget gate, its keep the int 1 (Hochreiter & Schmidhuber 1997, appendix A.1).

    i, o = sigmoid(x W_x + h W_h + b),  g = 4 sigmoid(x W_x + h W_h + b) - 2
    c' = c + i g                                the constant error carousel
    h' = o (2 sigmoid(c') - 1)
    """
    return _lstm_1997(p, stream, memory, below)


def diagonal(
    p: Params, stream: Float[Array, "*B H"], memory: Float[Array, "*B H"], below: Float[Array, "*B D"] | None
) -> tuple[Any, Any, Any]:
    """The LSTM of ParaRNN (Danieli et al. 2025): coupled gates, peepholes, and a recurrence that is diagonal.

    i = sigmoid(x W_x + w_h * h + w_c * c + b),  g = tanh(x W_x + w_h * h + b)
    c' = (1 - i) c + i g
    h' = sigmoid(x W_x + w_h * h + w_c * c' + b) tanh(c')

    No unit acts on another: `Newton` solves a line of it with a Jacobian of 2 x 2 a unit.
    """
    return _diagonal(p, stream, memory, below)


_lstm, _lstm_1997 = variant(FORGET), variant(GATES_1997)
_diagonal = variant(COUPLED, peepholes=True, sum_up=diagonal_affine)


def init(
    key: PRNGKeyArray,
    input_size: int | None,
    hidden_size: int,
    dtype: Any = "float32",
    *,
    gates: Gates = FORGET,
    peepholes: bool = False,
    layer_norm: bool = False,
    projection_size: int | None = None,
    forget_bias: float | Array = 1.0,
    uniform: float | None = None,
) -> Params:
    """Fresh weights. Lecun normal W_x and W_p, orthogonal W_h for each gate, norms' scales one, all else zero; or,
    with `uniform`, all but the norms uniform in +-uniform. To the forget gate's bias `forget_bias` is added
    (1: Jozefowicz et al. 2015).
    """
    size, count = projection_size or hidden_size, len(gates.order)
    wx, wh = gate_weights(key, input_size, hidden_size, count, dtype, size)
    p = Params(wx, wh, jnp.zeros((count, hidden_size), dtype))
    if peepholes:
        p = p._replace(peephole=jnp.zeros((count - 1, hidden_size), dtype))
    if projection_size is not None:
        lecun = jax.nn.initializers.lecun_normal()
        p = p._replace(wp=lecun(jax.random.fold_in(key, 2), (hidden_size, size), dtype))
    if uniform is not None:
        leaves, treedef = jax.tree.flatten(p)
        p = treedef.unflatten(
            jax.random.uniform(jax.random.fold_in(key, 3 + k), leaf.shape, dtype, -uniform, uniform)
            for k, leaf in enumerate(leaves)
        )
    if layer_norm:
        ones = jnp.ones((count, hidden_size), dtype)
        p = p._replace(norm=Norm(ones, ones, ones[0], 0 * ones[0]))
    return p._replace(b=p.b.at[gates.order.index("f")].add(forget_bias)) if "f" in gates.order else p


def init_1997(key: PRNGKeyArray, input_size: int | None, hidden_size: int, dtype: Any = "float32") -> Params:
    """As `init`, for `lstm_1997`: three gates, b zero."""
    return init(key, input_size, hidden_size, dtype, gates=GATES_1997)


def init_diagonal(key: PRNGKeyArray, input_size: int | None, hidden_size: int, dtype: Any = "float32") -> Params:
    """As `init`, for `diagonal`: w_h uniform within 1, peepholes zero, the coupled gate begun as a forget bias of 1."""
    key_x, key_h = jax.random.split(key)
    wx = None if input_size is None else input_weights(key_x, input_size, hidden_size, 3, dtype)
    b = jnp.zeros((3, hidden_size), dtype).at[COUPLED.order.index("i")].set(-1.0)
    return Params(wx, jax.random.uniform(key_h, b.shape, dtype, -1, 1), b, jnp.zeros((2, hidden_size), dtype))


def gate_weights(
    key: PRNGKeyArray, input_size: int | None, hidden_size: int, gates: int, dtype: Any, output_size: int | None = None
) -> tuple[Float[Array, "D G H"] | None, Float[Array, "P G H"]]:
    """W_x (None without input) and W_h of a cell with an axis of gates."""
    key_x, key_h = jax.random.split(key)
    shape = output_size or hidden_size, hidden_size
    wide = dtype if jnp.finfo(dtype).bits > 32 else "float32"  # no QR in half precision
    # One matrix after the other, whatever is vmapped around: where a program has more batched QRs than the CPU has
    # threads, jaxlib 0.10 lets each hold a thread and wait for another, forever.
    square = jax.custom_batching.sequential_vmap(lambda key: jax.nn.initializers.orthogonal()(key, shape, wide))
    wh = jax.vmap(square, out_axes=1)(jax.random.split(key_h, gates))
    wx = None if input_size is None else input_weights(key_x, input_size, hidden_size, gates, dtype)
    return wx, wh.astype(dtype)


def input_weights(
    key: PRNGKeyArray, input_size: int, hidden_size: int, gates: int, dtype: Any
) -> Float[Array, "D G H"]:
    """Lecun normal W_x, of each gate."""
    lecun = jax.nn.initializers.lecun_normal(in_axis=0, out_axis=-1, batch_axis=1)
    return lecun(key, (input_size, gates, hidden_size), dtype)
