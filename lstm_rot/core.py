"""A network is a grid of cells, [depth] x [time], and each cell is crossed by two flows:

    cell(p, left, below) -> (right, above)       left -> right along time, below -> above along depth

`residual` makes the one step of which every network here consists, `turn` rotates it by 90 degrees, and `scan` makes
a line of cells, which is again a cell. An LSTM is such a line along TIME, a ResNet the same line turned, along DEPTH.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from lstm_rot.lines import line_length, split
from lstm_rot.schedules import Schedule, Sequential

Params = Left = Right = Below = Above = Any  # pytrees
Cell = Callable[[Params, Left, Below], tuple[Right, Above]]
Branch = Callable[[Params, Any, Any, Any], tuple[Any, Any, Callable[[Any], tuple[Any, Any]]]]


class Axis(NamedTuple):
    """A direction of the grid: `flow` is handed on from cell to cell, the other flow enters each cell on its own.

    `tied`: which leaves of p all cells share, a bool or a prefix tree of bools (as in_axes of `jax.vmap`); the others
    have a leading axis, one slice a cell.
    """

    flow: Literal["left", "below"]
    tied: Any


TIME = Axis("left", tied=True)  # one p for all steps
DEPTH = Axis("below", tied=False)  # one p for each layer


def residual(branch: Branch) -> Cell:
    """The step. `branch(p, stream, memory, below) -> keep, add, read` proposes; left and right are (stream, memory)."""

    def cell(p: Params, left: Left, below: Below) -> tuple[Right, Above]:
        stream, memory = left
        keep, add, read = branch(p, stream, memory, below)
        stream = _integrate(keep, stream, add)
        memory, above = read(stream)
        return (stream, memory), above

    return cell


def _integrate(keep: Any, stream: jax.Array, add: jax.Array) -> jax.Array:
    """keep * stream + add, in the stream's dtype. A keep that is the int 0 or 1 is known when tracing: no product."""
    add = add.astype(stream.dtype)
    if isinstance(keep, int) and keep in (0, 1):
        return stream + add if keep else add
    return keep * stream + add


def turn(cell: Cell) -> Cell:
    """The cell rotated by 90 degrees: what flowed along time flows along depth, and the reverse. turn(turn(c)) is c."""
    return lambda p, left, below: cell(p, below, left)[::-1]


def chain(*cells: Cell) -> Cell:
    """Unlike cells stacked along depth, a cell: p, left and right are tuples with one entry a cell."""

    def stack(p: Params, left: Left, below: Below) -> tuple[Right, Above]:
        if not len(cells) == len(p) == len(left):
            raise ValueError(f"a chain of {len(cells)} cells got {len(p)} params, {len(left)} lefts: give each its own")
        rights = []
        for cell, p_cell, left_cell in zip(cells, p, left, strict=True):
            right, below = cell(p_cell, left_cell, below)
            rights.append(right)
        return tuple(rights), below

    return stack


def scan(cell: Cell, axis: Axis, *, length: int | None = None, schedule: Schedule = Sequential()) -> Cell:
    """A line of cells along `axis`, a cell. Along TIME, where p is tied, line(p, left, belows) means

        for t, below in enumerate(belows):
            left, aboves[t] = cell(p, left, below)
        return left, aboves

    and along DEPTH the same with the flows exchanged: it is the turned line of turned cells. `length` is needed where
    nothing with a leading axis enters; `schedule` says how the line is run. Raises ValueError for another flow, a line
    without a length, or leading axes that disagree.
    """
    if axis.flow not in ("left", "below"):
        raise ValueError(f"Axis flow={axis.flow!r}: a line hands on 'left' (as TIME) or 'below' (as DEPTH)")
    if axis.flow == "below":
        return turn(scan(turn(cell), axis._replace(flow="left"), length=length, schedule=schedule))

    def line(p: Params, left: Left, belows: Below) -> tuple[Right, Above]:
        tied, untied, join = split(axis.tied, p)

        def step(left: Left, x: Any) -> tuple[Right, Above]:
            untied, below = x
            return cell(join(tied, untied), left, below)

        return schedule(step, left, (untied, belows), line_length((untied, belows), length))

    return line
