"""A layer of LSTM on a CPU as one compiled loop: `packed(cell, axis)` means `scan(cell, axis)` for the plain LSTM.

XLA packs W_h anew at every step, which can cost as much as a small batch's product itself. The loop packs the weights
once; each thread takes its share of the batch through all steps; a step's product, gates and states stay in registers.

    forward     a_t = x_t W_x + h_{t-1} W_h + b, the gates, c_t and h_t; for a gradient, the gates and c_t are kept
    backward    da_t from dh_t = da_{t+1} W_h^T, written over the gates, as h_{t-1} over c_t; then dx, dW_x and dW_h are
                one product each

native/lstm.cc is the loop; `lstm_rot.native` compiles it.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lstm_rot import native
from lstm_rot.core import Above, Axis, Below, Cell, Left, Params, Right
from lstm_rot.kernels.hoisted import hoisted, weight_gradient
from lstm_rot.schedules import Schedule, Sequential

LEAST = 8  # steps; packing W does not pay for fewer
CACHE = 1 << 20  # bytes; fewer cores than there are, one a sequence, are slower with a larger W_h than XLA is with all


class Operands(NamedTuple):
    """What enters the line."""

    x: Float[Array, "T B D"]
    wx: Float[Array, "D 4 H"]
    wh: Float[Array, "H 4 H"]
    b: Float[Array, "4 H"]
    c: Float[Array, "B H"]
    h: Float[Array, "B H"]


ENTERING = 1, None, None, None, 0, 0, 0  # the axes of the sequences, in these and in their lengths
Line = Callable[[Operands, Int[Array, "B"]], tuple[Right, Above]]


def packed(cell: Cell, axis: Axis, *, schedule: Schedule = Sequential()) -> Cell:
    """The line `scan(cell, axis)` of masked `residual(lstm)` along time, in float32; p is (weights, masks), all None.

    `native.refusal` says where it cannot run. Hoisted are lines of fewer than LEAST steps, what `native.whole` is not,
    second derivatives, and the values, where no gradient is asked for, of fewer sequences than cores with a W_h beyond
    CACHE.
    """
    hoisted_line = hoisted(cell, axis, schedule=schedule)

    def run(p: Params, left: Left, below: Below) -> tuple[Right, Above]:
        (weights, masks), (x, valid) = p, below
        steps, batch, _ = x.shape
        if steps < LEAST or not native.whole(*jax.tree.leaves((x, left, weights, valid))):
            return hoisted_line(p, left, below)

        def line(of: Operands, lengths: jax.Array) -> tuple[Right, Above]:
            valid = jnp.arange(steps, dtype="int32")[:, None] < lengths
            p = weights._replace(wx=of.wx, wh=of.wh, b=of.b), masks
            return hoisted_line(p, (of.c, of.h), (of.x, valid))

        lengths = jnp.full(batch, steps, "int32") if valid is None else valid.sum(0, dtype="int32")
        return _compiled(line, Operands(x, weights.wx, weights.wh, weights.b, *left), lengths)

    return run


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _compiled(line: Line, of: Operands, lengths: Int[Array, "B"]) -> tuple[Right, Above]:
    """line(of, lengths), the line being the hoisted one, which other platforms run if this is compiled for them."""
    if len(of.c) < (os.cpu_count() or 1) and of.wh.nbytes > CACHE:
        return line(of, lengths)

    def loop(of: Operands, lengths: jax.Array) -> tuple[Right, Above]:
        shapes = *_shapes(of)[:3], _room(of)
        flops, axes = _flops(of, of.wx, of.wh), (ENTERING, (1, 0, 0, None))
        ys, c, h, _ = native.call("values", shapes, *of, lengths, axes=axes, flops=flops)
        return (c, h), ys

    return jax.lax.platform_dependent(of, lengths, cpu=loop, default=line)


def _forward(line: Line, of: Operands, lengths: jax.Array) -> tuple[tuple[Right, Above], Any]:
    result, kept = _keeping(line, of, lengths)
    return result, (of, lengths, result[1], kept)


def _backward(line: Line, saved: Any, cotangents: Any) -> tuple[Operands, None]:
    return _gradient(line, *saved, cotangents), None


_compiled.defvjp(_forward, _backward)


# The forward and the backward loop of a gradient; their own derivatives are those of the hoisted line.


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _keeping(line: Line, of: Operands, lengths: jax.Array) -> tuple[tuple[Right, Above], Any]:
    """What `_compiled` returns, and what its gradient reads: the gates [T, B, 4, H] and the cell states [T, B, H]."""

    def loop(of: Operands, lengths: jax.Array) -> tuple[tuple[Right, Above], Any]:
        shapes = *_shapes(of), _room(of)
        flops, axes = _flops(of, of.wx, of.wh), (ENTERING, (1, 0, 0, 1, 1, None))
        ys, c, h, gates, cells, _ = native.call("kept", shapes, *of, lengths, axes=axes, flops=flops)
        return ((c, h), ys), [gates, cells]

    def elsewhere(of: Operands, lengths: jax.Array) -> tuple[tuple[Right, Above], Any]:
        return line(of, lengths), [jnp.zeros(shape, "float32") for shape in _shapes(of)[3:]]

    return jax.lax.platform_dependent(of, lengths, cpu=loop, default=elsewhere)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gradient(line: Line, of: Operands, lengths: jax.Array, ys: jax.Array, kept: Any, cotangents: Any) -> Operands:
    """The gradient with respect to `of`."""

    def loop(of: Operands, lengths: jax.Array, ys: jax.Array, kept: Any, cotangents: Any) -> Operands:
        (dc, dh), dys = cotangents
        gates, cells = kept
        room = native.library().lstm_rot_backward_room(of.wh.shape[0])
        shapes = gates.shape, cells.shape, of.c.shape, of.h.shape, (room,)
        operands = of.wh, gates, cells, of.c, of.h, ys, lengths, dys, dc, dh
        how = {"axes": ((None, 1, 1, 0, 0, 1, 0, 1, 0, 0), (1, 1, 0, 0, None)), "aliases": {1: 0, 2: 1}}
        da, before, dc, dh, _ = native.call("backward", shapes, *operands, flops=_flops(of, of.wh), **how)
        dx = jax.lax.dot_general(da, of.wx, (((2, 3), (1, 2)), ((), ())))
        return Operands(dx, weight_gradient(of.x, da, True), weight_gradient(before, da, True), da.sum((0, 1)), dc, dh)

    def elsewhere(of: Operands, lengths: jax.Array, ys: jax.Array, kept: Any, cotangents: Any) -> Operands:
        return jax.vjp(lambda of: line(of, lengths), of)[1](cotangents)[0]

    return jax.lax.platform_dependent(of, lengths, ys, kept, cotangents, cpu=loop, default=elsewhere)


@_keeping.defjvp
def _(line: Line, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    of, lengths = primals
    result, kept = _keeping(line, of, lengths)
    _, derivative = jax.jvp(lambda of: jax.vjp(lambda of: line(of, lengths), of)[0], (of,), tangents[:1])
    return (result, kept), (derivative, jax.tree.map(jnp.zeros_like, kept))


@_gradient.defjvp
def _(line: Line, primals: tuple, tangents: tuple) -> tuple[Operands, Operands]:
    of, lengths, *_, cotangents = primals

    def gradient(of: Operands, cotangents: Any) -> Operands:
        return jax.vjp(lambda of: line(of, lengths), of)[1](cotangents)[0]

    _, derivative = jax.jvp(gradient, (of, cotangents), (tangents[0], tangents[-1]))
    return _gradient(line, *primals), derivative


def _shapes(of: Operands) -> tuple:
    """Of ys, the last c and h, the gates and the cell states."""
    ys = *of.x.shape[:2], of.c.shape[-1]
    return ys, of.c.shape, of.h.shape, (*of.x.shape[:2], *of.b.shape), ys


def _room(of: Operands) -> tuple[int]:
    """Of the packed weights."""
    return (native.library().lstm_rot_forward_room(of.wx.shape[0], of.wh.shape[0]),)


def _flops(of: Operands, *weights: jax.Array) -> int:
    """Of the products with these weights, of all steps."""
    steps, batch, _ = of.x.shape
    return 2 * steps * batch * sum(w.size for w in weights)
