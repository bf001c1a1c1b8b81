"""A line of cells with its products taken out of the loop: `hoisted(cell, axis)` means `scan(cell, axis)`.

Cells multiply by their weights through `branches.common.product`. Here another function takes that product's place:

- what enters the line is known for all its cells, so x W + b is one product for all of them, before the loop;
- a product of what flows, y_t = h_t W, must stay in the loop, but its weight's gradient need not: the loop is
  differentiated with respect to its products only, and then dW = sum_t h_t^T dy_t is one product too. In the
  reverse loop dh_t = dy_t W^T reads a transposed copy of W, made once.

A long line runs in blocks of cells, so that what is computed at once stays in the cache, and takes the memory of one
block. Any cell can be hoisted that reads its weights wx, wh and wp by `product` alone and closes over no traced array;
along DEPTH, where each cell has a W of its own, dW is one batched product.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, isqrt, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lstm_rot.branches.common import product
from lstm_rot.core import Above, Axis, Below, Cell, Left, Params, Right, scan, turn
from lstm_rot.lines import line_length
from lstm_rot.native import compiled_for
from lstm_rot.schedules import Checkpointed, Schedule, Sequential, in_pieces

WEIGHTS = frozenset({"wx", "wh", "wp"})  # the fields of a branch's Params that `product` multiplies by
SAVED = jax.checkpoint_policies.save_only_these_names("gates", "product")  # for the gradient; the rest is computed anew


class Use(NamedTuple):
    """One product x W + b in a cell, its places counted."""

    weight: int  # W, of the leaves of p
    below: int | None  # x, of the leaves that enter; None: x is what flows
    bias: int | None  # b, of the leaves of p
    ready: int | None  # b, of the products of what enters
    left: int | None  # x, of the leaves that flow in from the left
    x: Any  # its shape and dtype
    y: Any  # the product's


class StandIn:
    """What a cell gets in place of a weight: `product` calls it."""

    def __init__(self, dtype: Any, take: Callable[[Any, Any], jax.Array]):
        self.dtype, self.take = dtype, take

    def __call__(self, x: jax.Array, b: jax.Array | None) -> jax.Array:
        return self.take(x, b)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{name}: in a hoisted line the weights {', '.join(sorted(WEIGHTS))} are read by branches.common.product "
            f"alone; use it, or scan the line"
        )


def hoisted(cell: Cell, axis: Axis, *, length: int | None = None, schedule: Schedule = Sequential()) -> Cell:
    """The line `scan(cell, axis, length=length, schedule=schedule)`, to be differentiated in reverse first.

    Raises ValueError as `scan` does, and for schedules other than Sequential and Checkpointed; `jax.jvp` of it, but not
    of its gradient, is a TypeError.
    """
    scan(cell, axis)  # raises for an axis that is none
    if axis.flow == "below":
        return turn(hoisted(turn(cell), axis._replace(flow="left"), length=length, schedule=schedule))
    if not isinstance(schedule, Sequential | Checkpointed):
        raise ValueError(f"a hoisted line runs Sequential or Checkpointed, not {schedule!r}: use scan for it")

    def line(p: Params, left: Left, belows: Below) -> tuple[Right, Above]:
        weights = _Weights(p, axis.tied)
        steps = line_length((weights.untied(weights.leaves), belows), length)
        if steps == 0:
            return scan(cell, axis, length=length)(p, left, belows)
        uses = _plan(cell, weights, left, belows)
        transposed = weights.transposed({use.weight for use in uses if use.below is None})
        unroll = schedule.unroll if isinstance(schedule, Sequential) else 1

        def block(left: Left, xs: Any, size: int) -> tuple[Right, Above]:
            return _Block(cell, weights, uses, unroll, size)(transposed, left, xs)

        if isinstance(schedule, Checkpointed):
            every = schedule.every or max(isqrt(steps), 1)
            block = jax.checkpoint(block, prevent_cse=False, static_argnums=2)  # pyright: ignore
        else:
            every = _block_length(steps, uses)
        return in_pieces(block, left, (weights.untied(weights.leaves), belows), steps, every)

    return line


class _Weights:
    """The leaves of p: which are weights by which `product` multiplies, and which of them all cells share."""

    def __init__(self, p: Params, tied: Any):
        named, self.treedef = jax.tree_util.tree_flatten_with_path(p)
        self.leaves = [leaf for _, leaf in named]
        self.tied = [bool(flag) for flag in jax.tree.leaves(jax.tree.broadcast(tied, p))]
        self.multiplied = [getattr(path[-1], "name", None) in WEIGHTS if path else False for path, _ in named]

    def untied(self, leaves: list) -> list:
        """Those of which each cell has its own; None in the place of the others."""
        return [None if tied else leaf for leaf, tied in zip(leaves, self.tied, strict=True)]

    def of(self, leaves: list, untied: list) -> list:
        """The leaves of one cell or block, given its own."""
        return [leaf if tied else own for leaf, own, tied in zip(leaves, untied, self.tied, strict=True)]

    def at_once(self, leaves: list, x: jax.Array, use: Use) -> jax.Array:
        """The products x W + b of all cells of a block."""
        w, b = leaves[use.weight], None if use.bias is None else leaves[use.bias]
        if self.tied[use.weight] and (use.bias is None or self.tied[use.bias]):
            return product(x, w, b)
        axes = [None if k is None or self.tied[k] else 0 for k in (use.weight, use.bias)]
        return jax.vmap(product, in_axes=(0, *axes))(x, w, b)

    def transposed(self, used: set[int]) -> list:
        """A copy with the contracted axis last of each weight that the reverse loop reads again and again."""
        return [
            jax.lax.optimization_barrier(jnp.moveaxis(leaf, 0, -1)) if tied and k in used else None
            for k, (leaf, tied) in enumerate(zip(self.leaves, self.tied, strict=True))
        ]

    def call(self, cell: Cell, leaves: list, left: Left, below: Below, take: Callable) -> tuple[Right, Above]:
        """The cell, its products made by take(number of the weight, x, b)."""
        stand_ins = [
            StandIn(leaf.dtype, partial(take, k)) if multiplied else leaf
            for k, (leaf, multiplied) in enumerate(zip(leaves, self.multiplied, strict=True))
        ]
        return cell(self.treedef.unflatten(stand_ins), left, below)


def _plan(cell: Cell, weights: _Weights, left: Left, belows: Below) -> list[Use]:
    """The cell's products, in the order in which it makes them."""
    uses: list[Use] = []
    ready: list[Any] = []

    def trace(leaves: list, left: Left, below: Below) -> Any:
        entering, flowing = jax.tree.leaves(below), jax.tree.leaves(left)

        def take(k: int, x: jax.Array, b: jax.Array | None) -> jax.Array:
            y = product(x, leaves[k], b)
            alike = b is not None and (b.shape, b.dtype) == (y.shape, y.dtype)
            use = Use(
                weight=k,
                below=_place(x, entering),
                bias=_place(b, leaves),
                ready=_place(b, ready) if alike else None,
                left=_place(x, flowing),
                x=jax.typeof(x),
                y=jax.typeof(y),
            )
            uses.append(use)
            if use.below is not None:  # ready only as it is: a bias of another making is added in the loop
                ready.append(y if b is None or use.bias is not None else object())
            return y

        return weights.call(cell, leaves, left, below, take)

    def first(leaf: Any) -> Any:
        return jax.eval_shape(lambda leaf: leaf[0], leaf)

    leaves = [leaf if tied else first(leaf) for leaf, tied in zip(weights.leaves, weights.tied, strict=True)]
    jax.eval_shape(trace, leaves, left, jax.tree.map(first, belows))
    return uses


def _place(x: Any, leaves: list) -> int | None:
    return next((k for k, leaf in enumerate(leaves) if leaf is x), None)


def _block_length(steps: int, uses: list[Use]) -> int:
    """Cells in a block: enough rows for products at full speed, then as many as the cache holds, but about an eighth of
    a long line at most, so that a block's memory is small beside what is kept of every cell.

    Cache and rows are those of one device of the mesh in scope, where there is one, as in `training.make_train_step`.
    """
    platform, share = compiled_for()
    rows, size = (512, 2 << 20) if platform == "cpu" else (8192, 64 << 20)
    of_step = sum(use.y.size * use.y.dtype.itemsize for use in uses if use.below is not None) or 1
    of_rows = max((prod(use.x.shape[:-1]) or 1 for use in uses), default=1)
    target = max(ceil(rows * share / of_rows), size * share // of_step)
    target = min(target, max(ceil(steps / 8), 16))
    if target >= steps:
        return steps
    divisors = [n for n in range(ceil(target / 2), min(2 * target, steps) + 1) if steps % n == 0]
    return min(divisors, key=lambda n: abs(n - target), default=ceil(steps / ceil(steps / target)))


@dataclass(frozen=True, eq=False)
class _Block:
    """`size` cells: the products of what enters them, then the loop."""

    cell: Cell
    weights: _Weights
    uses: list[Use]
    unroll: int
    size: int

    def __call__(self, transposed: list, left: Left, xs: Any) -> tuple[Right, Above]:
        untied, belows = xs
        leaves, entering = self.weights.of(self.weights.leaves, untied), jax.tree.leaves(belows)
        ready = [self.weights.at_once(leaves, entering[u.below], u) for u in self.uses if u.below is not None]
        looped = {use.weight for use in self.inside}
        matrices = [leaf if k in looped else None for k, leaf in enumerate(leaves)]
        others = [None if k in looped else leaf for k, leaf in enumerate(leaves)]
        return _loop(self, matrices, transposed, (others, left, belows, ready))

    @property
    def inside(self) -> list[Use]:
        """The products that stay in the loop."""
        return [use for use in self.uses if use.below is None]

    def run(self, matrices: list, transposed: list, flows: Any, taps: "_Taps | None" = None) -> tuple[Right, Above]:
        """The loop, given (the weights read within it, their transposed copies, all other flows)."""
        others, left, belows, ready = flows
        whole = [other if matrix is None else matrix for matrix, other in zip(matrices, others, strict=True)]

        def body(left: Left, x: Any) -> tuple[Right, Above]:
            untied, below, ready, taps = x
            leaves, products, waiting = self.weights.of(whole, untied), iter(self.uses), iter(ready)
            sums, inputs = (iter(taps.sums), iter(taps.inputs)) if taps else (None, None)

            def take(k: int, x: jax.Array, b: jax.Array | None) -> jax.Array:
                use = next(products)
                if use.below is not None:
                    y = next(waiting)
                    return y if b is None or use.bias is not None else y + b
                if sums is None or inputs is None:
                    return product(x, leaves[k], b)
                x = x if use.left is not None else _shown(x, next(inputs))
                y = _tapped(x.astype(leaves[k].dtype), leaves[k], transposed[k], next(sums))
                y = checkpoint_name(y, "product")
                return y if b is None or use.ready is not None else y + b

            right, above = self.weights.call(self.cell, leaves, left, below, take)
            return taps.shown(right) if taps else right, above

        if taps is not None:
            body = jax.checkpoint(body, policy=SAVED, prevent_cse=False)
        xs = self.weights.untied(whole), belows, ready, taps
        return jax.lax.scan(body, left, xs, self.size, unroll=self.unroll)

    def taps(self, ready: list) -> "_Taps":
        """Of all cells. The sums start as what is ready to be added to a product, the rest as zeros."""

        def zeros(of: Any) -> jax.Array:
            return jnp.zeros((self.size, *of.shape), of.dtype)

        return _Taps(
            sums=[zeros(use.y) if use.ready is None else ready[use.ready] for use in self.inside],
            inputs=[zeros(use.x) for use in self.inside if use.left is None],
            rights={use.left: zeros(use.x) for use in self.inside if use.left is not None},
        )


class _Taps(NamedTuple):
    """Inputs of the loop by whose gradients it hands out what the weights' need: dy and x of every product h W in it.

    So no x is kept from the forward run, if the backward one computes it anyway.
    """

    sums: list  # added to each product: the gradient is dy
    inputs: list  # of each product whose x the cell makes: the gradient is x itself
    rights: dict  # of each leaf that flows on to the right and is the next cell's x: the gradient is the leaf

    def shown(self, right: Right) -> Right:
        leaves, treedef = jax.tree.flatten(right)
        return treedef.unflatten(_shown(x, self.rights[k]) if k in self.rights else x for k, x in enumerate(leaves))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loop(block: _Block, matrices: list, transposed: list, flows: Any) -> tuple[Right, Above]:
    """block.run, its gradient with respect to the matrices made after the reverse loop, by one product each."""
    return block.run(matrices, transposed, flows)


def _loop_forward(block: _Block, matrices: list, transposed: list, flows: Any) -> tuple[tuple[Right, Above], Any]:
    _, left, _, ready = flows
    result, backward = jax.vjp(partial(block.run, matrices, transposed), flows, block.taps(ready))
    return result, (backward, jax.tree.leaves(left), [None if m is None else m[:0] for m in matrices])


def _loop_backward(block: _Block, saved: Any, cotangents: Any) -> tuple[list, None, Any]:
    backward, lefts, empties = saved
    (*dflows, dready), taps = backward(cotangents)
    gradients: list = [None] * len(empties)
    inputs = iter(taps.inputs)
    for use, dy in zip(block.inside, taps.sums, strict=True):
        rights = None if use.left is None else taps.rights[use.left]
        x = next(inputs) if rights is None else jnp.concatenate([lefts[use.left][None], rights[:-1]])
        x = x.astype(empties[use.weight].dtype)
        gradient = weight_gradient(x, dy, block.weights.tied[use.weight])
        before = gradients[use.weight]
        gradients[use.weight] = gradient if before is None else before + gradient
        if use.ready is not None:
            dready[use.ready] += dy
    gradients = [None if e is None else g.astype(e.dtype) for g, e in zip(gradients, empties, strict=True)]
    return gradients, None, (*dflows, dready)


_loop.defvjp(_loop_forward, _loop_backward)


@jax.custom_vjp
def _shown(x: jax.Array, tap: jax.Array) -> jax.Array:
    """x. Its gradient goes on to x; the tap's is x itself."""
    return x


_shown.defvjp(lambda x, tap: (x, x), lambda x, dx: (dx, x))


@jax.custom_vjp
def _tapped(x: jax.Array, w: jax.Array, transposed: jax.Array | None, tap: jax.Array) -> jax.Array:
    """x W + tap. Its gradient goes on to x, by the transposed copy, and to the tap, from which W's is made later."""
    return product(x, w, tap)


def _tapped_forward(x: jax.Array, w: jax.Array, transposed: jax.Array | None, tap: jax.Array) -> tuple[jax.Array, Any]:
    return product(x, w, tap), (x, w, transposed)


def _tapped_backward(saved: Any, dy: jax.Array) -> tuple:
    x, w, transposed = saved
    dw = weight_gradient(x[None], dy[None], True).astype(w.dtype)  # second derivatives alone ask for it
    transposed = jnp.moveaxis(w, 0, -1) if transposed is None else transposed
    dx = jnp.tensordot(dy, transposed.astype(dy.dtype), transposed.ndim - 1)
    return dx.astype(x.dtype), dw, None, dy


_tapped.defvjp(_tapped_forward, _tapped_backward)


def weight_gradient(x: jax.Array, dy: jax.Array, tied: bool) -> jax.Array:
    """sum over the batch of x^T dy: [n, *B, K] and [n, *B, *out] give [K, *out], or one for each of n where untied."""
    if not tied:
        return jax.vmap(partial(weight_gradient, tied=True))(x, dy)
    axes = tuple(range(x.ndim - 1))
    wide = dy.dtype if jnp.finfo(dy.dtype).bits > 32 else jnp.float32
    return jax.lax.dot_general(x, dy, ((axes, axes), ((), ())), preferred_element_type=wide)
