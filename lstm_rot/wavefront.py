"""A whole grid run along its anti-diagonal: 45 degrees, between the LSTM's rows and the ResNet's columns."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lstm_rot.core import DEPTH, TIME, Above, Axis, Below, Cell, Left, Params, Right
from lstm_rot.lines import line_length, split
from lstm_rot.schedules import Schedule, Sequential


def wavefront(
    cell: Cell,
    *,
    time: Axis = TIME,
    depth: Axis = DEPTH,
    length: int | None = None,
    schedule: Schedule = Sequential(),
) -> Cell:
    """The same cell as `scan(scan(cell, time), depth)`, run in T + L - 1 ticks instead of T * L steps.

    At tick s layer l is at time s - l: all cells of an anti-diagonal are independent, so a tick is one `vmap` of the
    cell over the layers. p has the leading axes [L, T, ...] where it is tied along neither axis, left is [L, ...] and
    below [T, ...], as for the two scans; `above` must have the shapes and dtypes of `below`. `length` is T, needed
    where nothing enters along time.

    The corners of the run, where a layer has not begun or has finished, compute on copies of real flows, not on zeros,
    and are discarded: they put nothing into the result, nor into its gradient where the cell is finite on such pairs.

    Raises ValueError for a grid without a length or whose leading axes disagree, as `scan` does, and for cells whose
    `above` is not like their `below`.
    """
    if (time.flow, depth.flow) != ("left", "below"):
        raise ValueError(f"time must hand on 'left' and depth 'below', not {time.flow!r} and {depth.flow!r}")

    def grid(p: Params, left: Left, below: Below) -> tuple[Right, Above]:
        p, left, below = jax.tree.map(jnp.asarray, (p, left, below))
        still, moving, join = split(time.tied, p)
        still_tied, moving_tied, _ = split(time.tied, jax.tree.broadcast(depth.tied, p))
        of_layers = [leaf for leaf, tied in zip(still + moving, still_tied + moving_tied, strict=True) if not tied]
        of_steps = [leaf if tied else jnp.moveaxis(leaf, 1, 0) for leaf, tied in zip(moving, moving_tied, strict=True)]
        layers, steps = line_length((of_layers, left), None), line_length((of_steps, below), length)
        if steps == 0 or layers == 0:
            return left, below

        layer, ticks = jnp.arange(layers), jnp.arange(steps + layers - 1)
        at = jnp.clip(ticks[:, None] - layer, 0, steps - 1)  # [tick, layer]: the time step
        moving = [leaf[at] if tied else leaf[layer, at] for leaf, tied in zip(moving, moving_tied, strict=True)]
        entering = jax.tree.map(lambda x: x[at[:, 0]], below)
        waiting = jax.tree.map(lambda x: jnp.broadcast_to(x[0], (layers, *x.shape[1:])), below)
        axes = [None if tied else 0 for tied in still_tied]
        cells = jax.vmap(lambda still, moving, *flows: cell(join(still, moving), *flows), in_axes=(axes, 0, 0, 0))

        def tick(flows: tuple[Any, Any], x: Any) -> tuple[tuple[Any, Any], Any]:
            left, below = flows
            s, moving, entering = x
            below = jax.tree.map(lambda b, x: b.at[0].set(x), below, entering)
            active = (s >= layer) & (s - layer < steps)
            results = cells(still, moving, left, below)
            _alike(results, (left, below))
            right, above = jax.tree.map(partial(_where, active), results, (left, below))
            handed_on = jax.tree.map(lambda a: jnp.roll(a, 1, axis=0), above)
            return (right, handed_on), jax.tree.map(lambda a: a[-1], above)

        (right, _), aboves = schedule(tick, (left, waiting), (ticks, moving, entering), steps + layers - 1)
        return right, jax.tree.map(lambda a: a[layers - 1 :], aboves)

    return grid


def _alike(results: tuple[Any, Any], flows: tuple[Any, Any]) -> None:
    """Raises ValueError unless right is like left and above like below."""
    for (out, into), result, flow in zip((("right", "left"), ("above", "below")), results, flows, strict=True):
        got, want = (jax.tree.map(lambda leaf: (leaf.shape[1:], str(leaf.dtype)), tree) for tree in (result, flow))
        if got != want:
            raise ValueError(
                f"a wavefront's cells are alike: {out} must be like {into}, but it is {got}, not {want}; "
                f"chain a first layer of another width before it"
            )


def _where(active: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(active.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
