"""A whole line at once: Newton's method, each iteration an affine recurrence, solved by an associative scan.

The states s of a line are the root of R(s)_t = s_t - step(s_{t-1}, x_t). Linearised at a guess, the corrections d obey
d_t = J_t d_{t-1} + R_t, whose parallel solution takes O(log T) steps (Lim et al. 2023; over layers Danieli et al.
2023). A step affine in its state is solved by one iteration. Schedules, for either axis:

    scan(cell, TIME, schedule=Newton())            Jacobians as dense as the cell's are
    scan(cell, TIME, schedule=DiagonalNewton())    of dense ones the diagonal alone: O(T D) memory, more iterations
    scan(cell, DEPTH, schedule=DampedNewton())     for lines on which the iterations run away
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import ceil, inf, log, log2, prod, sqrt
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lstm_rot.schedules import Step
from lstm_rot.sparsity import Group, structure

FALL = 8.0  # of the damping, each iteration
STUCK = 3  # iterations after which what a step makes of a solved state is taken to be not finite for good
WRITTEN_OUT = 4  # rows of the Jacobians whose products are written out; larger ones are matrix products


class NotConverged(ArithmeticError):
    """A line whose states were not found."""


class Info(NamedTuple):
    """iterations: that were run. residual: the largest |s_t - step(s_{t-1}, x_t)| / (1 + |s_t|) of the result.
    correction: the largest |d_t| / max(1, |s_t|) of the last iteration, both the largest along the last axis: about
    what the states were off by before it; 0 where one iteration is exact.
    """

    iterations: Int[Array, ""]
    residual: Float[Array, ""]
    correction: Float[Array, ""]
    converged: Bool[Array, ""]


@dataclass(frozen=True)
class Newton:
    """All cells of a line at once: values and gradients of `Sequential()`, an iteration in about log(length) steps.

    iterations: at most so many; None: the line's length, for each iteration mends at least one cell more from the first
    on. tol: the residual and the correction (see `Info`) that it has converged at; None: for each of the carry's leaves
    a residual of 16 roundings of its dtype, 2 where that has 16 bits, and a correction of 1e-6 in float32 and 1e-12 in
    float64, or where it is more what one rounding a cell adds up to, eps sqrt(length). A chaotic line makes much of a
    small residual: its corrections stay large, and it has converged after about as many iterations as it has cells,
    each then computed from the one before it (as by a loop that rounds alike: one whose products round otherwise is
    soon elsewhere). otherwise: what becomes of a line that does not converge: "raise" raises `NotConverged` when it has
    run (in a jitted function `jax.errors.JaxRuntimeError`, which names it), its results and gradients nan; "sequential"
    runs it cell by cell instead, in the same precision (always, under `vmap` over whole lines). A line is given up
    before its iterations are, where a step gives what is not finite though all cells before it are solved.

    What its Jacobians look like is read from the step (`lstm_rot.sparsity`): a state of D entries that all act on each
    other costs O(T D^2) memory and O(T D^3) work, for each sequence of a batch; a diagonal recurrence costs O(T D).
    A step affine in its state (minLSTM, mLSTM) takes one iteration, whatever `iterations` says. Whatever the cell
    computes in, the Jacobians are solved for in float32 or float64. The step's products are not rounded to fewer bits
    than their factors have, as accelerators by default do (TF32, bfloat16), unless the recurrence is diagonal or
    `jax.default_matmul_precision` is set: a state so rounded jumps where its derivative knows of nothing, and a line
    would take nearly half as many iterations as it has cells. The step must have a `jax.jvp`: one with a
    `jax.custom_vjp` in it has none. The gradient is that of the solution, by one reverse affine scan; all of its
    derivatives are. Over explicit axes of a mesh a batch may lie, not the units of a dense state.

    Raises ValueError for iterations below 1, a tol below 0 or infinite, another `otherwise` and a carry that is not
    floating, and TypeError, as `jax.lax.scan`, for a step that changes its carry's shapes or dtypes.
    """

    iterations: int | None = None
    tol: float | None = None
    otherwise: Literal["raise", "sequential"] = "raise"

    def __post_init__(self):
        whole = isinstance(self.iterations, int) and not isinstance(self.iterations, bool)
        if self.iterations is not None and not (whole and self.iterations >= 1):
            raise ValueError(f"iterations={self.iterations!r}: allow at least 1, or None for the line's length")
        if self.tol is not None and not 0 <= self.tol < inf:
            raise ValueError(f"tol={self.tol}: give a residual of at least 0, or None for one by the carry's dtype")
        if self.otherwise not in ("raise", "sequential"):
            raise ValueError(f"otherwise={self.otherwise!r}: choose 'raise' or 'sequential'")

    def __call__(self, step: Step, init: Any, xs: Any, length: int) -> tuple[Any, Any]:
        if not Line.worth(init, length):
            return jax.lax.scan(step, init, xs, length)
        carry, ys, info = self._run(step, init, xs, length)
        if self.otherwise == "raise":
            jax.debug.callback(partial(_complain, self, length), info)
            return jax.tree.map(partial(_or_nan, info.converged), (carry, ys))
        return carry, ys

    def _run(self, step: Step, init: Any, xs: Any, length: int) -> tuple[Any, Any, Info]:
        line = Line.of(step, init, xs, length, self.tol)
        line = line._replace(groups=[group for whole in line.groups for group in self.taken(line, whole)])
        with _precisely(line):
            return self._solved(line)

    def _solved(self, line: "Line") -> tuple[Any, Any, Info]:
        tangents = partial(self._tangents, line)
        guess = line.guess()
        searched = jax.lax.custom_root(line.residual, guess, partial(self._search, line), _underived, has_aux=True)
        states, (done, size, correction, converged) = jax.lax.stop_gradient(searched)
        info = Info(done.astype(jnp.int32), size, correction, converged > 0)

        def derived() -> tuple[Any, Any]:
            finite = jax.tree.map(partial(jnp.where, jnp.isfinite(info.residual)), states, guess)
            return line.read(jax.lax.custom_root(line.residual, finite, lambda residual, root: root, tangents))

        if self.otherwise == "sequential":
            one_by_one = partial(jax.lax.scan, line.step, line.init, line.xs, line.length)
            carry, ys = jax.lax.cond(info.converged, derived, one_by_one)
        else:
            carry, ys = derived()
        return carry, ys, info

    def taken(self, line: "Line", group: Group) -> list[Group]:
        """What the group is solved as."""
        return [group]

    def blocks(self, line: "Line", linear: Callable, zeros: Any) -> list[Array]:
        """The Jacobians of each group, [T, *axes, n, n], by the linear function d -> d_t - J_t d_{t-1}."""
        return [line.blocks(group, linear, zeros) for group in line.groups]

    def surely(self, line: "Line") -> int:
        """After how many iterations each cell is computed from the one before it."""
        return line.length

    def begin(self, line: "Line") -> Any:
        """What one iteration knows from the one before it, beside the states."""
        return ()

    def improve(self, line: "Line", states: Any, known: Any) -> tuple[Any, Any, Any]:
        """One iteration: s_t - step(s_{t-1}) of the given states, better states, and what the next is to know."""
        wrong, linear, put_right = line.linearized(states)
        return wrong, put_right(line.solve(self.blocks(line, linear, _zeros(wrong)), wrong)), known

    def refined(self, line: "Line", linear: Callable, solve: Callable, b: Any) -> Any:
        """d where linear(d) = b."""
        return solve(b)

    def _search(self, line: "Line", residual: Callable, guess: Any) -> tuple[Any, tuple[Array, Array, Array, Array]]:
        """The states, and the `Info` of what happened, all floating, as custom_root asks for it."""
        if line.affine:
            _, states, _ = Newton.improve(self, line, guess, ())
            size, excess = line.sizes(residual(states), _around(states), line.allowed)
            bound = 1 + log2(line.length)  # the scan rounds so often
            return states, (jnp.ones_like(size), size, jnp.zeros_like(size), (excess <= bound).astype(line.dtype))

        most = self.iterations or self.surely(line)

        def go_on(at: tuple) -> Array:
            _, (_, (_, excess)), (_, off), done, _, stuck = at
            return (done == 0) | (((excess > 1) | (off > 1)) & (done < most) & (stuck < STUCK))

        def body(at: tuple) -> tuple:
            states, _, _, done, known, stuck = at
            wrong, better, known = self.improve(line, states, known)
            stuck = jnp.where(line.breaks(wrong, states), stuck + 1, 0)
            correction = line.sizes(_units(_minus(better, states)), _units(states, 1), line.near)
            return (
                better,
                (states, line.sizes(wrong, _around(states), line.allowed)),
                correction,
                done + 1,
                known,
                stuck,
            )

        unknown = (jnp.asarray(jnp.inf, line.dtype),) * 2
        begin = guess, (guess, unknown), unknown, jnp.int32(0), self.begin(line), jnp.int32(0)
        states, before, (correction, off), done, _, _ = jax.lax.while_loop(go_on, body, begin)
        now = states, line.sizes(residual(states), _around(states), line.allowed)
        worse = now[1][1] > before[1][1]  # where a line amplifies, the last solve does too, what was rounded
        states, (size, excess) = jax.tree.map(partial(jnp.where, worse), before, now)
        converged = (excess <= 1) & ((off <= 1) | (done >= self.surely(line)))
        return states, (done.astype(line.dtype), size, correction, converged.astype(line.dtype))

    def _tangents(self, line: "Line", linear: Callable, b: Any) -> Any:
        """d where linear(d) = b: by an affine scan, and in the gradient by a reverse one."""
        blocks = self.blocks(line, linear, jax.tree.map(jnp.zeros_like, b))

        def way(back: bool) -> Callable[[Callable, Any], Any]:
            return lambda apply, b: self.refined(line, apply, partial(line.solve, blocks, back=back), b)

        return jax.lax.custom_linear_solve(linear, b, way(back=False), way(back=True))


@dataclass(frozen=True)
class DiagonalNewton(Newton):
    """Newton's method with the diagonals of dense Jacobians alone (quasi-DEER, Gonzalez et al. 2024): O(T D) memory.

    Where the leaves of a carry are of one shape, as an LSTM's c and h, what the entries at one place do to each other
    is kept too. It converges linearly, the faster the less the units act on one another. An iteration takes the step's
    derivative in every direction of the state, one after the other. The gradient is exact: iterated, by the same
    diagonals, to rounding.
    """

    def taken(self, line: "Line", group: Group) -> list[Group]:
        alike = len({line.leaves[k].shape for k in group.leaves}) == 1
        units = []
        for leaves in [group.leaves] if alike else [(k,) for k in group.leaves]:
            axes = tuple(range(line.leaves[leaves[0]].ndim))
            units.append(Group(leaves, axes, group.affine and axes == group.axes))
        return units

    def blocks(self, line: "Line", linear: Callable, zeros: Any) -> list[Array]:
        return [line.diagonals(group, linear, zeros) for group in line.groups]

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
    in O(log T) steps (Sarkka & Garcia-Fernandez 2021), the correction's prior having the variance 1 / damping. After
    each the damping falls to an eighth, so that in the end it is Newton's method, as exact. iterations None: the line's
    length and as many as the damping takes to fall to rounding. The gradient needs no damping and is `Newton`'s.

    damping: at the start. Raises ValueError unless it is above 0 and finite, and as `Newton` does.
    """

    damping: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.damping < inf:
            raise ValueError(f"damping={self.damping}: give a number above 0; Newton() is without")

    def surely(self, line: "Line") -> int:
        rounds = log(self.damping / float(jnp.finfo(line.dtype).eps), FALL)
        return line.length + max(ceil(rounds), 0) + 1

    def begin(self, line: "Line") -> Array:
        return jnp.asarray(self.damping, line.dtype)

    def improve(self, line: "Line", states: Any, known: Any) -> tuple[Any, Any, Any]:
        wrong, linear, put_right = line.linearized(states)

        def correction(blocks: Array, b: Array) -> Array:
            slight = known < jnp.finfo(line.dtype).eps  # the smoother would only round
            return jax.lax.cond(slight, affine, lambda a, b: smoothed(a, b, known), blocks, b)

        d = line.by_group(correction, self.blocks(line, linear, _zeros(wrong)), wrong)
        return wrong, put_right(d), known / FALL


def newton_with_info(
    step: Step, init: Any, xs: Any, length: int, *, newton: Newton = Newton()
) -> tuple[Any, tuple[Any, Info | None]]:
    """carry, (ys, `Info`): the schedule `newton`, which tells what it did, and does not raise. Info of a line of no
    cells, or of cells that hand on nothing, is None.

        right, (above, info) = scan(cell, TIME, schedule=newton_with_info)(p, left, below)
        right, (above, info) = scan(cell, TIME, schedule=partial(newton_with_info, newton=Newton(tol=1e-3)))(...)

    Along DEPTH it rides on what flows along time: `(right, info), above`.
    """
    if not Line.worth(init, length):
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
    axes: dict[int, tuple[int, ...]]  # of each leaf, along which each entry depends on its own place alone
    dtype: Any  # of what is solved
    tol: float | None

    @staticmethod
    def worth(init: Any, length: int) -> bool:
        """Whether there are states to be looked for."""
        return length > 0 and any(jnp.size(leaf) for leaf in jax.tree.leaves(init))

    @classmethod
    def of(cls, step: Step, init: Any, xs: Any, length: int, tol: float | None) -> "Line":
        """Raises ValueError for a carry that is not floating, and as `jax.lax.scan` for one that changes."""
        carry = jax.eval_shape(partial(jax.lax.scan, step, length=length), init, xs)[0]
        for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise ValueError(
                    f"Newton: the carry's leaf {jax.tree_util.keystr(path) or 'itself'} is {leaf.dtype}: only "
                    "floating states can be solved for; run this line by Sequential()"
                )
        carry = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), carry)
        init = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), init, carry)
        x = jax.tree.map(lambda leaf: jax.eval_shape(lambda a: a[0], leaf), xs)
        dtype = max((leaf.dtype for leaf in jax.tree.leaves(carry)), key=lambda dtype: jnp.finfo(dtype).bits)
        dtype = dtype if jnp.finfo(dtype).bits > 32 else jnp.dtype("float32")
        groups = structure(step, carry, x)
        axes = {k: group.axes for group in groups for k in group.leaves}
        return cls(step, init, xs, length, groups, axes, dtype, tol)

    @property
    def leaves(self) -> list[Any]:
        return jax.tree.leaves(self.init)

    @property
    def elementwise(self) -> bool:
        """Whether no entry of a state acts on one at another place."""
        return all(len(self.axes[k]) == leaf.ndim for k, leaf in enumerate(self.leaves))

    @property
    def affine(self) -> bool:
        """Whether one iteration is exact: the step is affine in its state, and no Jacobian taken for more diagonal."""
        return all(group.affine for group in self.groups)

    def guess(self) -> Any:
        """What enters, everywhere; zeros, which are not rounded against, where one iteration is exact."""

        def of(leaf: Array) -> Array:
            leaf = jnp.zeros_like(leaf) if self.affine else leaf
            return jnp.broadcast_to(leaf.astype(self.dtype), (self.length, *leaf.shape))

        return jax.tree.map(of, self.init)

    def sizes(self, wrong: Any, scales: Any, allowed: Callable[[Array], float]) -> tuple[Array, Array]:
        """The largest |wrong| / scale, and in units of what is allowed of each leaf: 1 or less has converged."""
        size, excess = [], []
        leaves = zip(jax.tree.leaves(wrong), jax.tree.leaves(scales), self.leaves, strict=True)
        for w, scale, leaf in leaves:
            largest = jnp.max(jnp.abs(w) / scale, initial=0.0)
            size.append(jnp.where(jnp.isfinite(largest), largest, jnp.inf))
            excess.append(size[-1] / allowed(leaf))
        return jnp.stack(size).max(), jnp.nan_to_num(jnp.stack(excess), nan=0.0, posinf=jnp.inf).max()

    def breaks(self, wrong: Any, states: Any) -> Array:
        """Whether a step gives what is not finite, though all cells before it are solved."""
        unsolved, broken = [], []
        for w, s, leaf in zip(jax.tree.leaves(wrong), jax.tree.leaves(states), self.leaves, strict=True):
            of_cells = tuple(range(1, w.ndim))
            unsolved.append(~(jnp.abs(w) <= self.allowed(leaf) * (1 + jnp.abs(s))).all(of_cells))
            broken.append(~jnp.isfinite(w).all(of_cells))
        first = jnp.stack(unsolved).any(0).argmax()
        return jnp.stack(broken).any(0)[first]

    def allowed(self, leaf: Array) -> float:
        """The residual that has converged."""
        info = jnp.finfo(leaf.dtype)
        return float(info.eps) * (16 if info.bits > 16 else 2) if self.tol is None else self.tol

    def near(self, leaf: Array) -> float:
        """The correction that has converged."""
        info = jnp.finfo(leaf.dtype)
        if self.tol is not None or info.bits <= 16:
            return self.allowed(leaf)
        return max(1e-6 if info.bits == 32 else 1e-12, float(info.eps) * sqrt(self.length))

    def linearized(self, states: Any) -> tuple[Any, Callable, Callable]:
        """What is wrong, s_t - f_t with f_t = step(s_{t-1}); the linear d -> d_t - J_t d_{t-1}; and d -> s - d.

        The last as f - (d - wrong), so that where nothing is wrong before a cell, it becomes f to the last bit,
        whatever comes after. Where that is not finite, it is f if nothing is wrong before, and else begins anew.
        """
        f, linear = jax.linearize(self.forward, states)
        wrong = _minus(states, f)

        def put_right(d: Any) -> Any:
            here = sum((w != 0).any(tuple(range(1, w.ndim))).astype(jnp.int32) for w in jax.tree.leaves(wrong))
            before = jnp.cumsum(here) - here > 0

            def of(f: Array, d: Array, wrong: Array, guess: Array) -> Array:
                better = f - (d - wrong)
                anew = jnp.where(before.reshape(-1, *(1,) * (f.ndim - 1)), guess, f)
                return jnp.where(jnp.isfinite(better), better, anew)

            return jax.tree.map(of, f, d, wrong, self.guess())

        return wrong, lambda d: _minus(d, linear(d)), put_right

    def read(self, states: Any) -> tuple[Any, Any]:
        """carry, ys of the states, each step from the state before it."""
        carries, ys = self._steps(states)
        return jax.tree.map(lambda leaf: leaf[-1], carries), ys

    def residual(self, states: Any) -> Any:
        """s_t - step(s_{t-1}, x_t)."""
        return _minus(states, self.forward(states))

    def forward(self, states: Any) -> Any:
        """step(s_{t-1}, x_t)."""
        return jax.tree.map(lambda f: f.astype(self.dtype), self._steps(states)[0])

    def _steps(self, states: Any) -> tuple[Any, Any]:
        before = jax.tree.map(
            lambda init, s: jnp.concatenate([init[None], s[:-1].astype(init.dtype)]), self.init, states
        )
        return jax.vmap(self.step)(before, self.xs)

    def packed(self, group: Group, tree: Any) -> Array:
        """The group's leaves as [T, *axes, n]."""
        leaves = jax.tree.leaves(tree)
        return jnp.concatenate([self._front(group, leaves[k]) for k in group.leaves], -1)

    def _front(self, group: Group, leaf: Array) -> Array:
        """[T, ...] -> [T, *axes, rest]"""
        leaf = jnp.moveaxis(leaf, [1 + axis for axis in group.axes], range(1, 1 + len(group.axes)))
        return leaf.reshape(*leaf.shape[: 1 + len(group.axes)], -1)

    def _back(self, group: Group, packed: Array, k: int) -> Array:
        """[T, *axes, rest] -> [T, ...]: leaf k."""
        rest = [size for axis, size in enumerate(self.leaves[k].shape) if axis not in group.axes]
        leaf = packed.reshape(*packed.shape[:-1], *rest)
        return jnp.moveaxis(leaf, range(1, 1 + len(group.axes)), [1 + axis for axis in group.axes])

    def by_group(self, function: Callable, blocks: list[Array], tree: Any) -> Any:
        """The tree of function(blocks, packed tree) of each group."""
        leaves: dict[int, Array] = {}
        for group, of_group in zip(self.groups, blocks, strict=True):
            sizes = [prod(self._rest(group.axes, k)) for k in group.leaves]
            parts = jnp.split(function(of_group, self.packed(group, tree)), list(accumulate(sizes))[:-1], -1)
            leaves |= {k: self._back(group, part, k) for k, part in zip(group.leaves, parts, strict=True)}
        return jax.tree.unflatten(jax.tree.structure(tree), [leaves[k] for k in sorted(leaves)])

    def solve(self, blocks: list[Array], b: Any, *, back: bool = False) -> Any:
        """d_t - J_t d_{t-1} = b_t; back: the transposed, d_t - J_{t+1}^T d_{t+1} = b_t."""
        return self.by_group(partial(affine, back=back), blocks, b)

    def blocks(self, group: Group, linear: Callable, zeros: Any) -> Array:
        """The Jacobians [T, *axes, n, n]: linear's answers to each direction of a state, taken everywhere at once."""
        columns = []
        for k in group.leaves:
            rest = self._rest(group.axes, k)
            ones = jnp.eye(prod(rest), dtype=self.dtype).reshape(prod(rest), 1, *rest)
            answers = jax.vmap(lambda d, k=k: self.packed(group, linear(self._along(k, d, zeros))))(ones)
            columns.append(jnp.moveaxis(answers, 0, -1))
        made = jnp.concatenate(columns, -1)
        return jnp.eye(made.shape[-1], dtype=self.dtype) - made

    def diagonals(self, group: Group, linear: Callable, zeros: Any) -> Array:
        """The same of each place alone [T, *axes, n, n], n leaves: one direction after another, each thrown away."""
        return jnp.eye(len(group.leaves), dtype=self.dtype) - jnp.stack(
            [self._diagonal(group, k, linear, zeros) for k in group.leaves], -1
        )

    def _diagonal(self, group: Group, k: int, linear: Callable, zeros: Any) -> Array:
        """linear's answers, at each place of the group's leaves, to that place of leaf k."""
        rest = self._rest(self.axes[k], k)

        def add(total: Array, place: Array) -> tuple[Array, None]:
            here = (jnp.arange(prod(rest)) == place).reshape(rest)
            answer = self.packed(group, linear(self._along(k, here.astype(self.dtype), zeros)))
            return total + jnp.where(here[..., None], answer, 0), None

        begin = jnp.stack([jnp.zeros_like(jax.tree.leaves(zeros)[k])] * len(group.leaves), -1)
        return jax.lax.scan(add, begin, jnp.arange(prod(rest)))[0]

    def _rest(self, axes: tuple[int, ...], k: int) -> tuple[int, ...]:
        """Leaf k's shape, 1 along these axes."""
        return tuple(1 if axis in axes else size for axis, size in enumerate(self.leaves[k].shape))

    def _along(self, k: int, ones: Array, zeros: Any) -> Any:
        """The tree of states that is zero but in leaf k, where it is `ones`."""
        leaves, tree = jax.tree.flatten(zeros)
        return jax.tree.unflatten(tree, [leaf + ones if k == place else leaf for place, leaf in enumerate(leaves)])


def _precisely(line: Line) -> AbstractContextManager:
    """Products in full precision, where the user has not said which, and a state may be a factor."""
    if line.elementwise or jax.config.jax_default_matmul_precision is not None:  # pyright: ignore
        return nullcontext()
    return jax.default_matmul_precision("highest")


def affine(a: Float[Array, "T *B N N"], b: Float[Array, "T *B N"], *, back: bool = False) -> Float[Array, "T *B N"]:
    """d_t = a_t d_{t-1} + b_t from d_{-1} = 0; back: d_t = a_{t+1}^T d_{t+1} + b_t from the end."""
    if back:
        a = jnp.concatenate([a[1:], jnp.zeros_like(a[:1])]).swapaxes(-1, -2)
    return _scanned(a, b, reverse=back)


def _scanned(a: Array, b: Array, *, reverse: bool) -> Array:
    """d_t = a_t d + b_t, d being that before, or in reverse that after."""

    def joined(first: tuple, then: tuple) -> tuple:
        return _product(then[0], first[0]), _applied(then[0], first[1]) + then[1]

    return jax.lax.associative_scan(joined, (a, b), reverse=reverse)[1]


def smoothed(
    a: Float[Array, "T *B N N"], b: Float[Array, "T *B N"], damping: Float[Array, ""]
) -> Float[Array, "T *B N"]:
    """The d that minimise sum |d_t - a_t d_{t-1} - b_t|^2 + damping |d_t|^2, d_{-1} = 0.

    The mean of a Kalman smoother: transitions a_t d + b_t and observations 0 of d_t, noise of variances 1 and
    1 / damping; filter and smoother by associative scans (Sarkka & Garcia-Fernandez 2021, lemmas 7 to 10).
    """
    one = jnp.eye(a.shape[-1], dtype=a.dtype)
    gain = damping / (1 + damping)  # of an observation of what has the variance 1
    to = a.swapaxes(-1, -2)
    variance = jnp.broadcast_to((1 - gain) * one, a.shape)
    first = (1 - gain) * a, (1 - gain) * b, variance, -gain * _applied(to, b), gain * _product(to, a)

    def joined(i: tuple, j: tuple) -> tuple:
        (ai, bi, ci, ei, ji), (aj, bj, cj, ej, jj) = i, j
        shared = _inverse(one + _product(ci, jj))
        ahead, back = _product(aj, shared), _product(ai.swapaxes(-1, -2), shared.swapaxes(-1, -2))
        return (
            _product(ahead, ai),
            _applied(ahead, bi + _applied(ci, ej)) + bj,
            _product(_product(ahead, ci), aj.swapaxes(-1, -2)) + cj,
            _applied(back, ej - _applied(jj, bi)) + ei,
            _product(_product(back, jj), ai) + ji,
        )

    _, mean, variance, _, _ = jax.lax.associative_scan(joined, first)
    a, b = (jnp.concatenate([x[1:], jnp.zeros_like(x[:1])]) for x in (a, b))  # of the step after
    to = a.swapaxes(-1, -2)
    look = _product(_product(variance, to), _inverse(_product(_product(a, variance), to) + one))
    return _scanned(look, mean - _applied(look, _applied(a, mean) + b), reverse=True)


def _product(a: Array, b: Array) -> Array:
    if a.shape[-1] <= WRITTEN_OUT:
        return sum(a[..., :, k, None] * b[..., None, k, :] for k in range(a.shape[-1]))  # pyright: ignore
    return jnp.matmul(a, b, precision="highest")


def _applied(a: Array, b: Array) -> Array:
    return _product(a, b[..., None])[..., 0]


def _inverse(a: Array) -> Array:
    """Gauss-Jordan elimination with row exchanges, of all matrices at once.

    Not jnp.linalg.inv: in jaxlib 0.10 a CPU's batched LU holds a thread and waits for others, forever where devices
    that wait for one another have as many.
    """
    rows = jnp.arange(a.shape[-1])

    def eliminated(k: Array, both: Array) -> Array:
        column = jnp.where(rows < k, -1, jnp.abs(both[..., k]))
        pivot = column.argmax(-1)[..., None]
        both = jnp.take_along_axis(both, jnp.where(rows == k, pivot, jnp.where(rows == pivot, k, rows))[..., None], -2)
        row = both[..., k, :] / both[..., k, k, None]
        rest = both - both[..., k, None] * row[..., None, :]
        return jnp.where((rows == k)[:, None], row[..., None, :], rest)

    both = jnp.concatenate([a, jnp.broadcast_to(jnp.eye(len(rows), dtype=a.dtype), a.shape)], -1)
    return jax.lax.fori_loop(0, len(rows), eliminated, both)[..., len(rows) :]


def _underived(linear: Callable, b: Any) -> Any:
    """In place of the d where linear(d) = b, for a root whose gradient is stopped."""
    return b


def _around(states: Any) -> Any:
    """What a residual is measured by."""
    return jax.tree.map(lambda s: 1 + jnp.abs(s), states)


def _units(states: Any, least: int = 0) -> Any:
    """The largest size along the last axis, that of the units, at least `least`."""

    def largest(s: Array) -> Array:
        return jnp.maximum(jnp.abs(s).max(-1, initial=0.0) if s.ndim > 1 else jnp.abs(s), least)

    return jax.tree.map(largest, states)


def _zeros(wrong: Any) -> Any:
    """Zeros, but not to XLA, which would keep what the weights make of them in all cells from iteration to iteration.

    wrong: of the states, which change with the iterations.
    """
    return jax.tree.map(lambda leaf: jnp.minimum(jnp.abs(jnp.nan_to_num(leaf)), 0), wrong)


def _minus(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.subtract, a, b)


def _or_nan(converged: Array, leaf: Array) -> Array:
    """The leaf, or nan, and so its gradient; integers stay."""
    return leaf * jnp.where(converged, 1, jnp.nan).astype(leaf.dtype) if _inexact(leaf) else leaf


def _inexact(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _complain(schedule: Newton, length: int, info: Info) -> None:
    if not info.converged:
        raise NotConverged(
            f"{schedule}: a line of {length} cells has the residual {info.residual:.2g} and the correction "
            f"{info.correction:.2g} after {info.iterations} iterations; allow more, or a larger tol, try DampedNewton, "
            "or fall back: otherwise='sequential' (inf: a step is not finite; one affine in its state gets one "
            "iteration)"
        )
