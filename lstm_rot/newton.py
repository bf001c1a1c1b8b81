"""A whole line at once: Newton's method, each iteration an affine recurrence, solved by an associative scan.

The states s of a line are the root of R(s)_t = s_t - step(s_{t-1}, x_t). Linearised at a guess, the corrections d obey
d_t = J_t d_{t-1} + R_t, whose parallel solution takes O(log T) steps (Lim et al. 2023; over layers Danieli et al.
2023). A step affine in its state is solved by one iteration. Schedules, for either axis:

    scan(cell, TIME, schedule=Newton())            Jacobians as dense as the cell's are
    scan(cell, TIME, schedule=DiagonalNewton())    of dense ones the diagonal alone: O(T D) memory, more iterations
    scan(cell, DEPTH, schedule=DampedNewton())     for lines on which the iterations run away
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lstm_rot.schedules import Step
from lstm_rot.sparsity import Group, structure

WRITTEN_OUT = 4  # rows of the Jacobians whose products are written out; larger ones are matrix products


class NotConverged(ArithmeticError):
    """A line whose states were not found."""


class Info(NamedTuple):
    """iterations: that were run. residual: the largest |s_t - step(s_{t-1}, x_t)| / (1 + |s_t|) of the result."""

    iterations: Int[Array, ""]
    residual: Float[Array, ""]
    converged: Bool[Array, ""]


@dataclass(frozen=True)
class Newton:
    """All cells of a line at once: values and gradients of `Sequential()`, an iteration in about log(length) steps.

    iterations: at most so many; None: the line's length, after which every line is exact but for rounding. tol: the
    residual (see `Info`) that it has converged at; None: 16 units of rounding of the carry's coarsest leaf.
    otherwise: what becomes of a line that does not converge: "raise" raises when it has run (what jax makes of
    `NotConverged` within a jitted function: `jax.errors.JaxRuntimeError`), its results nan; "sequential" runs it cell
    by cell instead (always, under a `vmap` over whole lines).

    What its Jacobians look like is read from the step (`lstm_rot.sparsity`): a state of D entries that all act on each
    other costs O(T D^2) memory and O(T D^3) work, for each sequence of a batch; a diagonal recurrence costs O(T D).
    A step affine in its state (minLSTM, mLSTM) takes one iteration. Whatever the cell computes in, the Jacobians are
    solved for in float32 or float64. The gradient is that of the solution, by one reverse affine scan; all of its
    derivatives are.

    Raises ValueError for iterations below 1, a negative tol, another `otherwise` and a carry that is not floating, and
    TypeError for a step that changes its carry's shapes or dtypes.
    """

    iterations: int | None = None
    tol: float | None = None
    otherwise: Literal["raise", "sequential"] = "raise"

    def __post_init__(self):
        if self.iterations is not None and self.iterations < 1:
            raise ValueError(f"iterations={self.iterations}: allow at least 1, or None for the line's length")
        if self.tol is not None and not self.tol >= 0:
            raise ValueError(f"tol={self.tol}: give a residual of at least 0, or None for one by the carry's dtype")
        if self.otherwise not in ("raise", "sequential"):
            raise ValueError(f"otherwise={self.otherwise!r}: choose 'raise' or 'sequential'")

    def __call__(self, step: Step, init: Any, xs: Any, length: int) -> tuple[Any, Any]:
        if length == 0 or not jax.tree.leaves(init):
            return jax.lax.scan(step, init, xs, length)
        carry, ys, info = self._run(step, init, xs, length)
        if self.otherwise == "raise":
            jax.debug.callback(partial(_complain, self, length), info)
            return jax.tree.map(partial(_or_nan, info.converged), (carry, ys))
        return carry, ys

    def _run(self, step: Step, init: Any, xs: Any, length: int) -> tuple[Any, Any, Info]:
        line = Line.of(step, init, xs, length)
        line = line._replace(groups=self.groups(line))
        tangents = partial(self._tangents, line)
        found = jax.lax.custom_root(line.residual, line.guess(), partial(self._search, line), tangents, has_aux=True)
        states, (done, size, converged) = jax.lax.stop_gradient(found)
        info = Info(done.astype(jnp.int32), size, converged > 0)

        def derived() -> tuple[Any, Any]:
            finite = jax.tree.map(partial(jnp.where, jnp.isfinite(info.residual)), states, line.guess())
            return line.read(jax.lax.custom_root(line.residual, finite, lambda residual, root: root, tangents))

        if self.otherwise == "sequential":
            carry, ys = jax.lax.cond(info.converged, derived, lambda: jax.lax.scan(step, init, xs, length))
        else:
            carry, ys = derived()
        return carry, ys, info

    def groups(self, line: "Line") -> list[Group]:
        """Of the carry's leaves, and along which axes their Jacobians are taken to be diagonal."""
        return line.groups

    def blocks(self, line: "Line", linear: Callable) -> list[Array]:
        """The Jacobians of each group, [T, *axes, n, n], by the linear function d -> d_t - J_t d_{t-1}."""
        return [line.blocks(group, linear) for group in line.groups]

    def most(self, line: "Line") -> int:
        """How many iterations may be run."""
        return self.iterations or line.length

    def begin(self, line: "Line") -> Any:
        """What one iteration knows from the one before it, beside the states."""
        return ()

    def improve(self, line: "Line", residual: Callable, states: Any, known: Any) -> tuple[Any, Any, Any]:
        """One iteration: the residual of the given states, better states, and what the next is to know."""
        wrong, linear = jax.linearize(residual, states)
        return wrong, _minus(states, line.solve(self.blocks(line, linear), wrong)), known

    def refined(self, line: "Line", linear: Callable, solve: Callable, b: Any) -> Any:
        """d where linear(d) = b."""
        return solve(b)

    def _search(self, line: "Line", residual: Callable, guess: Any) -> tuple[Any, tuple[Array, Array, Array]]:
        """The states, and of what happened (iterations, residual, converged), all floating: custom_root asks for it."""
        if line.affine:
            _, states, _ = self.improve(line, residual, guess, self.begin(line))
            size = _size(residual(states), states)
            told = jnp.ones_like(size), size, jnp.isfinite(size)  # exact, up to what the scan rounds
            return states, jax.tree.map(lambda leaf: leaf.astype(line.dtype), told)
        tol, most = line.tol if self.tol is None else self.tol, self.most(line)

        def go_on(at: tuple) -> Array:
            _, size, done, _ = at
            return (done == 0) | ((size > tol) & (size < jnp.inf) & (done < most))

        def body(at: tuple) -> tuple:
            states, _, done, known = at
            wrong, better, known = self.improve(line, residual, states, known)
            return better, _size(wrong, states), done + 1, known

        begin = guess, jnp.zeros((), line.dtype), jnp.int32(0), self.begin(line)
        states, _, done, _ = jax.lax.while_loop(go_on, body, begin)
        size = _size(residual(states), states)
        return states, (done.astype(line.dtype), size, (size <= tol).astype(line.dtype))

    def _tangents(self, line: "Line", linear: Callable, b: Any) -> Any:
        """d where linear(d) = b: by an affine scan, and in the gradient by a reverse one."""
        blocks = self.blocks(line, linear)
        ways = [
            lambda apply, b, back=back: self.refined(line, apply, partial(line.solve, blocks, back=back), b)
            for back in (False, True)
        ]
        return jax.lax.custom_linear_solve(linear, b, *ways)


@dataclass(frozen=True)
class DiagonalNewton(Newton):
    """Newton's method with the diagonals of dense Jacobians alone (quasi-DEER, Gonzalez et al. 2024): O(T D) memory.

    Where the leaves of a carry are of one shape, as an LSTM's c and h, what the entries at one place do to each other
    is kept too. It converges linearly, the faster the less the units act on one another. An iteration takes the step's
    derivative in every direction of the state, one after the other. The gradient is exact: iterated, by the same
    diagonals, to rounding.
    """

    def groups(self, line: "Line") -> list[Group]:
        return [unit for group in line.groups for unit in line.units(group)]

    def blocks(self, line: "Line", linear: Callable) -> list[Array]:
        return [line.diagonals(group, linear) for group in line.groups]

    def refined(self, line: "Line", linear: Callable, solve: Callable, b: Any) -> Any:
        def wrong(d: Any) -> tuple[Any, Array]:
            left = _minus(b, linear(d))
            return left, jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(left)]).max()

        def body(at: tuple) -> tuple:
            d, left, _, done = at
            better = jax.tree.map(jnp.add, d, solve(left))
            return better, *wrong(better), done + 1

        d = solve(b)
        left, size = wrong(d)
        scale = jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(b)]).max()
        enough = 4 * jnp.finfo(line.dtype).eps * scale
        return jax.lax.while_loop(lambda at: (at[2] > enough) & (at[3] < line.length), body, (d, left, size, 0))[0]


@dataclass(frozen=True)
class DampedNewton(Newton):
    """Newton's method in a trust region (Levenberg and Marquardt; ELK, Gonzalez et al. 2024).

    An iteration's corrections minimise |L d - R|^2 + damping |d|^2, L being I - J shifted: what a Kalman smoother finds
    in O(log T) steps (Sarkka & Garcia-Fernandez 2021), the correction's prior having the variance 1 / damping. It is
    taken, and the damping divided by 8, where |R|^2 falls; else the damping is multiplied by 8. iterations None: the
    line's length, but at least 100. The gradient needs no damping and is `Newton`'s.

    damping: at the start. Raises ValueError unless it is above 0, and as `Newton` does.
    """

    damping: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        if not self.damping > 0:
            raise ValueError(f"damping={self.damping}: give a number above 0; Newton() is without")

    def most(self, line: "Line") -> int:
        return self.iterations or max(line.length, 100)

    def begin(self, line: "Line") -> Array:
        return jnp.asarray(self.damping, line.dtype)

    def improve(self, line: "Line", residual: Callable, states: Any, known: Any) -> tuple[Any, Any, Any]:
        wrong, linear = jax.linearize(residual, states)
        if line.affine:
            return wrong, _minus(states, line.solve(self.blocks(line, linear), wrong)), known
        d = line.packed_map(
            lambda blocks, b: smoothed(blocks, b, known), self.blocks(line, linear), wrong
        )
        better = _minus(states, d)
        falls = _squares(residual(better)) < _squares(wrong)  # never where something is nan
        states = jax.tree.map(partial(jnp.where, falls), better, states)
        return wrong, states, jnp.where(falls, known / 8, known * 8)


def newton_with_info(
    step: Step, init: Any, xs: Any, length: int, *, newton: Newton = Newton()
) -> tuple[Any, tuple[Any, Info | None]]:
    """carry, (ys, `Info`): the schedule `newton`, which tells what it did, and does not raise. Info of a line of no
    cells, or of cells that hand on nothing, is None.

        right, (above, info) = scan(cell, TIME, schedule=newton_with_info)(p, left, below)
        right, (above, info) = scan(cell, TIME, schedule=partial(newton_with_info, newton=Newton(tol=1e-3)))(...)

    Along DEPTH it rides on what flows along time: `(right, info), above`.
    """
    if length == 0 or not jax.tree.leaves(init):
        carry, ys = jax.lax.scan(step, init, xs, length)
        return carry, (ys, None)
    carry, ys, info = newton._run(step, init, xs, length)
    return carry, (ys, info)


class Line(NamedTuple):
    """A line whose states, a tree [T, ...] like its carry, are looked for."""

    step: Step
    init: Any
    xs: Any
    length: int
    groups: list[Group]
    dtype: Any  # of what is solved

    @classmethod
    def of(cls, step: Step, init: Any, xs: Any, length: int) -> "Line":
        """Raises ValueError for a carry that is not floating, TypeError for one that changes."""
        init = jax.tree.map(jnp.asarray, init)
        for path, leaf in jax.tree_util.tree_leaves_with_path(init):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise ValueError(
                    f"Newton: the carry's leaf {jax.tree_util.keystr(path) or 'itself'} is {leaf.dtype}: only "
                    "floating states can be solved for; run this line by Sequential()"
                )
        carry = jax.tree.map(_shape, init)
        x = jax.tree.map(lambda leaf: jax.eval_shape(lambda a: a[0], leaf), xs)
        after = jax.eval_shape(lambda carry, x: step(carry, x)[0], carry, x)
        if jax.tree.map(_shape, after) != carry:
            raise TypeError(f"Newton: a step hands on a carry like its own, but it makes {after} of {carry}")
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(init))
        return cls(step, init, xs, length, structure(step, carry, x), dtype)

    @property
    def leaves(self) -> list[Any]:
        return jax.tree.leaves(self.init)

    @property
    def tol(self) -> float:
        return 16 * max(float(jnp.finfo(leaf.dtype).eps) for leaf in self.leaves)

    @property
    def affine(self) -> bool:
        """Whether one iteration is exact: no Jacobian depends on the states, and none is taken for more diagonal."""
        return all(group.affine for group in self.groups)

    def guess(self) -> Any:
        """What enters, everywhere."""
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf.astype(self.dtype), (self.length, *leaf.shape)), self.init
        )

    def read(self, states: Any) -> tuple[Any, Any]:
        """carry, ys of the states, each step from the state before it."""
        carries, ys = self._steps(states)
        return jax.tree.map(lambda leaf: leaf[-1], carries), ys

    def residual(self, states: Any) -> Any:
        """s_t - step(s_{t-1}, x_t)."""
        return jax.tree.map(lambda s, f: s - f.astype(self.dtype), states, self._steps(states)[0])

    def _steps(self, states: Any) -> tuple[Any, Any]:
        before = jax.tree.map(
            lambda init, s: jnp.concatenate([init[None], s[:-1].astype(init.dtype)]), self.init, states
        )
        return jax.vmap(self.step)(before, self.xs)

    def units(self, group: Group) -> list[Group]:
        """The group as if each place acted on itself alone: together where its leaves are of one shape, else one by
        one."""
        shapes = {self.leaves[k].shape for k in group.leaves}
        together = [group.leaves] if len(shapes) == 1 else [(k,) for k in group.leaves]
        return [self._diagonal(group, leaves) for leaves in together]

    def _diagonal(self, group: Group, leaves: tuple[int, ...]) -> Group:
        axes = tuple(range(self.leaves[leaves[0]].ndim))
        return Group(leaves, axes, group.affine and axes == group.axes, group.axes)

    def packed(self, group: Group, tree: Any) -> Array:
        """The group's leaves as [T, *axes, n]."""
        leaves = jax.tree.leaves(tree)
        return jnp.concatenate([self._front(group, leaves[k]) for k in group.leaves], -1)

    def _front(self, group: Group, leaf: Array) -> Array:
        """[T, ...] -> [T, *axes, rest]"""
        to = range(1, 1 + len(group.axes))
        leaf = jnp.moveaxis(leaf, [1 + axis for axis in group.axes], to)
        return leaf.reshape(*leaf.shape[: 1 + len(group.axes)], -1)

    def packed_map(self, function: Callable, blocks: list[Array], tree: Any) -> Any:
        """function(blocks, the packed tree) of each group, as a tree again."""
        leaves = dict(enumerate(jax.tree.leaves(tree)))
        for group, of_group in zip(self.groups, blocks, strict=True):
            made, at = function(of_group, self.packed(group, tree)), 0
            for k in group.leaves:
                like = jnp.moveaxis(leaves[k], [1 + a for a in group.axes], range(1, 1 + len(group.axes)))
                size = prod(like.shape[1 + len(group.axes) :])
                part = made[..., at : at + size].reshape(like.shape)
                leaves[k], at = jnp.moveaxis(part, range(1, 1 + len(group.axes)), [1 + a for a in group.axes]), at + size
        return jax.tree.unflatten(jax.tree.structure(tree), leaves.values())

    def solve(self, blocks: list[Array], b: Any, *, back: bool = False) -> Any:
        """d_t - J_t d_{t-1} = b_t; back: the transposed, d_t - J_{t+1}^T d_{t+1} = b_t."""
        return self.packed_map(partial(affine, back=back), blocks, b)

    def blocks(self, group: Group, linear: Callable) -> Array:
        """The Jacobians [T, *axes, n, n]: linear's answers to each direction of a state, taken everywhere at once."""
        columns = []
        for k in group.leaves:
            shape, rest = self._rest(group.axes, k)
            ones = jnp.eye(prod(rest), dtype=self.dtype).reshape(prod(rest), 1, *rest)
            directions = jnp.broadcast_to(ones, (prod(rest), self.length, *shape))
            answers = jax.vmap(lambda d, k=k: self.packed(group, linear(self._alone(k, d))))(directions)
            columns.append(jnp.moveaxis(answers, 0, -1))
        made = jnp.concatenate(columns, -1)
        return jnp.eye(made.shape[-1], dtype=self.dtype) - made

    def diagonals(self, group: Group, linear: Callable) -> Array:
        """The same of each unit alone [T, *axes, n, n], n leaves: a direction after another, for whole ones are large."""
        columns = []
        for k in group.leaves:
            shape, rest = self._rest(group.true, k)
            places = jnp.arange(prod(rest)).reshape(rest)

            def add(total: Array, place: Array, k: int = k, shape: Any = shape, places: Array = places) -> tuple:
                here = places == place
                direction = jnp.broadcast_to(here.astype(self.dtype), (self.length, *shape))
                answers = jax.tree.leaves(linear(self._alone(k, direction)))
                return total + jnp.stack([jnp.where(here, answers[j], 0) for j in group.leaves], -1), None

            begin = jnp.zeros((self.length, *shape, len(group.leaves)), self.dtype)
            columns.append(jax.lax.scan(add, begin, places.ravel())[0])
        return jnp.eye(len(group.leaves), dtype=self.dtype) - jnp.stack(columns, -1)

    def _rest(self, axes: tuple[int, ...], k: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A leaf's shape, and the same with its diagonal axes 1."""
        shape = self.leaves[k].shape
        return shape, tuple(1 if axis in axes else size for axis, size in enumerate(shape))

    def _alone(self, k: int, leaf: Array) -> Any:
        """The tree of states that is zero but in leaf k."""
        leaves = [jnp.zeros((self.length, *other.shape), self.dtype) for other in self.leaves]
        leaves[k] = leaf
        return jax.tree.unflatten(jax.tree.structure(self.init), leaves)


def affine(a: Float[Array, "T *B N N"], b: Float[Array, "T *B N"], *, back: bool = False) -> Float[Array, "T *B N"]:
    """d_t = a_t d_{t-1} + b_t from d_{-1} = 0; back: d_t = a_{t+1}^T d_{t+1} + b_t from the end."""
    if back:
        a = jnp.concatenate([a[1:], jnp.zeros_like(a[:1])]).swapaxes(-1, -2)

    def joined(first: tuple, then: tuple) -> tuple:
        return _product(then[0], first[0]), _applied(then[0], first[1]) + then[1]

    return jax.lax.associative_scan(joined, (a, b), reverse=back)[1]


def smoothed(
    a: Float[Array, "T *B N N"], b: Float[Array, "T *B N"], damping: Float[Array, ""]
) -> Float[Array, "T *B N"]:
    """The d that minimise sum |d_t - a_t d_{t-1} - b_t|^2 + damping |d_t|^2, d_{-1} = 0.

    The mean of a Kalman smoother: transitions a_t d + b_t and observations 0 of d_t, noise of variances 1 and
    1 / damping; filter and smoother by associative scans (Sarkka & Garcia-Fernandez 2021, lemmas 7 to 10).
    """
    one = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
    gain = damping / (1 + damping)  # of the observation; the variance it leaves is 1 - gain
    turned = a.swapaxes(-1, -2)
    first = (1 - gain) * a, (1 - gain) * b, (1 - gain) * one, -gain * _applied(turned, b), gain * _product(turned, a)

    def joined(i: tuple, j: tuple) -> tuple:
        (ai, bi, ci, ei, ji), (aj, bj, cj, ej, jj) = i, j
        through = _product(aj, _inverse(one[: ai.shape[0]] + _product(ci, jj)))
        back = _product(ai.swapaxes(-1, -2), _inverse(one[: ai.shape[0]] + _product(jj, ci)))
        return (
            _product(through, ai),
            _applied(through, bi + _applied(ci, ej)) + bj,
            _product(_product(through, ci), aj.swapaxes(-1, -2)) + cj,
            _applied(back, ej - _applied(jj, bi)) + ei,
            _product(_product(back, jj), ai) + ji,
        )

    _, mean, variance, _, _ = jax.lax.associative_scan(joined, first)
    ahead = jnp.concatenate([a[1:], jnp.zeros_like(a[:1])])
    drift = jnp.concatenate([b[1:], jnp.zeros_like(b[:1])])
    spread = _product(_product(ahead, variance), ahead.swapaxes(-1, -2)) + one
    look = _product(_product(variance, ahead.swapaxes(-1, -2)), _inverse(spread))
    start = mean - _applied(look, _applied(ahead, mean) + drift)

    def handed_back(later: tuple, before: tuple) -> tuple:
        return _product(before[0], later[0]), _applied(before[0], later[1]) + before[1]

    return jax.lax.associative_scan(handed_back, (look, start), reverse=True)[1]


def _product(a: Array, b: Array) -> Array:
    if a.shape[-1] <= WRITTEN_OUT:
        return sum(a[..., :, k, None] * b[..., None, k, :] for k in range(a.shape[-1]))  # pyright: ignore
    return jnp.matmul(a, b, precision="highest")


def _applied(a: Array, b: Array) -> Array:
    return _product(a, b[..., None])[..., 0]


def _inverse(a: Array) -> Array:
    return 1 / a if a.shape[-1] == 1 else jnp.linalg.inv(a)


def _minus(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.subtract, a, b)


def _squares(tree: Any) -> Array:
    return sum((leaf**2).sum() for leaf in jax.tree.leaves(tree))  # pyright: ignore


def _size(wrong: Any, states: Any) -> Array:
    """The residual as `Info` has it; nan and inf are inf."""
    pairs = zip(jax.tree.leaves(wrong), jax.tree.leaves(states), strict=True)
    largest = jnp.stack([jnp.max(jnp.abs(w) / (1 + jnp.abs(s)), initial=0.0) for w, s in pairs]).max()
    return jnp.where(jnp.isfinite(largest), largest, jnp.inf)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _or_nan(converged: Array, leaf: Array) -> Array:
    return jnp.where(converged, leaf, jnp.nan) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _complain(schedule: Newton, length: int, info: Info) -> None:
    if not info.converged:
        raise NotConverged(
            f"{schedule}: a line of {length} cells has the residual {info.residual:.2g} after {info.iterations} "
            "iterations; allow more, or a larger tol, try DampedNewton, or fall back: otherwise='sequential'"
        )
