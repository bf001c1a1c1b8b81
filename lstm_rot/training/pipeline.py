"""The layers of a grid spread over devices: the wavefront again, its cells now whole grids.

A grid of cells is a cell. Cut into S x M blocks, the grid [L layers] x [T steps] is a grid [S] x [M] of cells, each of
them L/S layers by T/M steps, and it runs along its anti-diagonal as every grid does: at tick s stage k, a device, is at
chunk s - k. That takes M + S - 1 ticks instead of S * M, so that the ideal speed-up is S * M / (M + S - 1).

What is cut may be time or the batch. A recurrent stack hands its state from chunk to chunk of time; a residual net has
nothing to hand on, so its chunks are microbatches. The code is the same, as the grid is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_rot.core import TIME, Above, Axis, Below, Cell, Left, Params, Right
from lstm_rot.lines import split
from lstm_rot.schedules import Schedule, Sequential

STAGE = "stage"
MANUAL = {STAGE, "data"}  # the mesh axes that are cut here; the compiler sees to the others


def pipeline(
    grid: Cell,
    mesh: Mesh,
    *,
    chunks: int,
    axis: int = 0,
    time: Axis = TIME,
    specs: tuple[Any, Any, Any] = (P(STAGE), P(STAGE), P()),
    schedule: Schedule = Sequential(),
) -> Cell:
    """The same cell as `grid`, its layers over the mesh's axis `stage`, L/S adjoining ones on each device.

        pipeline(scan(scan(cell, TIME), DEPTH), mesh, chunks=16)        a recurrent stack: chunks of time
        pipeline(scan(turn(cell), DEPTH), mesh, chunks=16)              a residual net: microbatches

    grid: any cell for which a grid of its blocks means the whole, as of all lines of lines (`kernels.hoisted` ones, of
    any schedule, masked); it closes over no traced array. p and left are [L, ...]; `above` has the shapes and dtypes of
    `below`. axis: of every leaf of below, the one that is cut: 0 is time in [T, B, D] and the batch in [B, H], 1 the
    batch in [T, B, H]. Across a batch nothing flows: there left holds no array, None as a rule, and is what is returned
    as right, whatever the cells hand out.
    chunks: M at most, each of ceil(T / chunks) steps, the last one shorter where they do not divide.
    time: which leaves of p are not the same for all steps; these are [L, ...] with the axes of below, and cut too.
    specs: of p, left and below, prefix trees as the in_specs of `jax.shard_map`. A leaf without `stage` is all layers'.
    Of recurrent stacks, what is split over `data` is best said here: (P("stage"), P("stage", "data"), P(None, "data"))
    sums the weights' gradients over `data` once, not at each tick. All else is left to the compiler.
    schedule: how the ticks are run, as of `wavefront`.

    right is laid out as left, above as below: it leaves the last stage, and is then the same on all.

    The gradient keeps of a chunk only what entered it, and runs it again in the reverse pipeline, as GPipe does (Huang
    et al. 2019): a third more products, for a memory that does not grow with the layers of a stage. An idle stage runs
    nothing: neither NaN in what it holds nor a cell that makes NaN of it can reach a value or a gradient.

    Raises ValueError for a mesh without the axis, chunks below 1, layers that do not divide over the stages, leading
    axes that disagree, nothing to cut, and a grid whose `above` is not like its `below`, or right not like left.
    """
    if STAGE not in mesh.axis_names:
        raise ValueError(f"the mesh has the axes {mesh.axis_names}: a pipeline's layers are over {STAGE!r}; add it")
    if chunks < 1:
        raise ValueError(f"chunks={chunks}: cut into at least one")

    def pipelined(p: Params, left: Left, below: Below) -> tuple[Right, Above]:
        inputs = jax.tree.map(jnp.asarray, (p, left, below))
        layout = jax.tree.map(_cut_here, jax.tree.broadcast(specs, inputs))
        stages, staged = mesh.shape[STAGE], jax.tree.map(lambda spec: tuple(spec)[:1] == (STAGE,), layout)
        layers, steps = _layers(inputs[:2], staged[:2], stages), _steps(inputs[2], axis)
        if steps == 0 or layers == 0:
            return left, below
        stage = _Stage(grid, stages, chunks, axis, time.tied, staged[0], schedule)
        run = jax.shard_map(
            stage,
            mesh=mesh,
            in_specs=(P(STAGE), *layout),
            out_specs=layout[1:],
            axis_names={STAGE, *(name for spec in jax.tree.leaves(layout) for entry in spec for name in _names(entry))},
            check_vma=False,  # a grid may begin its loops with constants, which are not marked as varying
        )
        inputs = jnp.arange(stages, dtype="int32"), *inputs
        return jax.jit(run)(*_laid_out(inputs, (P(STAGE), *layout), mesh))

    return pipelined


def _laid_out(inputs: Any, layout: Any, mesh: Mesh) -> Any:
    """Of explicit axes a `shard_map` takes only what lies as its in_specs say; of others anything."""
    if AxisType.Explicit not in mesh.axis_types:
        return inputs
    return jax.tree.map(jax.sharding.reshard, inputs, jax.tree.map(partial(NamedSharding, mesh), layout))


@dataclass(frozen=True)
class Pipeline:
    """`pipeline` as the `implementation` of a model's equal layers: `models.lstm.apply(..., implementation=Pipeline(
    mesh, chunks=16))`. The model says what is cut, and how its arrays lie over the mesh.
    """

    mesh: Mesh
    chunks: int
    """the most pieces into which time is cut, or of a Transformer the batch"""

    def __call__(self, grid: Cell, **options: Any) -> Cell:
        return pipeline(grid, self.mesh, chunks=self.chunks, **options)


@dataclass(frozen=True)
class _Stage:
    """What each device does: M + S - 1 ticks, at each of them a chunk or nothing, then one step to the next device."""

    grid: Cell
    stages: int
    chunks: int
    axis: int
    tied: Any  # which leaves of p are the same for all steps
    staged: Any  # which leaves of p have the layers as their first axis
    schedule: Schedule

    def __call__(self, number: jax.Array, p: Params, left: Left, below: Below) -> tuple[Right, Above]:
        stage, steps = number[0], _steps(below, self.axis)
        size = ceil(steps / self.chunks)
        count = ceil(steps / size)
        last = steps - (count - 1) * size
        still, moving, join = split(self.tied, p)
        _, axes, _ = split(self.tied, jax.tree.map(lambda staged: self.axis + staged, self.staged))
        for leaf, axis in zip(moving, axes, strict=True):
            if leaf.ndim <= axis or leaf.shape[axis] != steps:
                raise ValueError(
                    f"a leaf of p that is cut has shape {leaf.shape}, but below is cut along {steps}: they must agree "
                    f"at its axis {axis}; or tie the leaf in `time`"
                )
        run = self.chunk(join, axes, size, last)

        def tick(flows: tuple[Any, Any], x: Any) -> tuple[tuple[Any, Any], Any]:
            left, received = flows
            at, moving, entering = x
            below = jax.tree.map(lambda new, old: jnp.where(stage == 0, new, old), entering, received)
            work = jnp.where((at >= 0) & (at < count), jnp.where((at == count - 1) & (last < size), 2, 1), 0)
            right, above = run(work, (still, moving), left, below)
            onward = [(k, k + 1) for k in range(self.stages - 1)]
            return (right, jax.tree.map(lambda a: jax.lax.ppermute(a, STAGE, onward), above)), above

        ticks = count + self.stages - 1
        at = jnp.arange(ticks, dtype="int32") - stage
        chunks = [_pieces(leaf, axis, size, count) for leaf, axis in zip(moving, axes, strict=True)]
        entering = jax.tree.map(lambda leaf: _pieces(leaf, self.axis, size, count), below)
        mine = jax.tree.map(lambda pieces: pieces[jnp.clip(at, 0, count - 1)], (chunks, entering))
        received = jax.tree.map(lambda pieces: _blank(pieces[0]), entering)
        (right, _), aboves = self.schedule(tick, (left, received), (at, *mine), ticks)
        return right, jax.tree.map(lambda a: self.leaving(stage, a[self.stages - 1 :], steps), aboves)

    def chunk(self, join: Callable[[list, list], Any], axes: list[int], size: int, last: int) -> Callable:
        """run(work, (still, moving), left, below) -> right, above; work: 0 none, 1 a chunk, 2 the shorter last one."""

        def idle(p: Any, left: Left, below: Below) -> tuple[Right, Above]:
            return left, jax.tree.map(_blank, below)

        def whole(p: Any, left: Left, below: Below) -> tuple[Right, Above]:
            right, above = self.grid(join(*p), left, below)
            right = right if jax.tree.leaves(left) else left
            _alike((right, above), (left, below))
            return right, above

        def short(p: Any, left: Left, below: Below) -> tuple[Right, Above]:
            still, moving = p
            moving = [jax.lax.slice_in_dim(leaf, 0, last, axis=k) for leaf, k in zip(moving, axes, strict=True)]
            below = jax.tree.map(lambda leaf: jax.lax.slice_in_dim(leaf, 0, last, axis=self.axis), below)
            right, above = whole((still, moving), left, below)
            return right, jax.tree.map(lambda a: _filled(a, self.axis, size), above)

        return _one_of(idle, whole, *[short] * (last < size))

    def leaving(self, stage: jax.Array, aboves: jax.Array, steps: int) -> jax.Array:
        """The last stage's chunks [M, ...], joined, on all stages.

        By a sum with zeros, which a compiler knows to scatter where only a part is needed, and whose gradient moves
        nothing. Until then every device holds an array for them, as all run one program.
        """
        above = jnp.moveaxis(aboves, 0, self.axis)
        above = above.reshape(*above.shape[: self.axis], -1, *above.shape[self.axis + 2 :])
        above = jax.lax.slice_in_dim(above, 0, steps, axis=self.axis)
        above = jnp.where(stage == self.stages - 1, above, jnp.zeros_like(above))
        return jax.lax.psum(above, STAGE).astype(above.dtype)


def _one_of(*branches: Callable[..., Any]) -> Callable[..., Any]:
    """run(which, *inputs): one of the functions, on each device its own; the others are not run, nor their gradients.

    Its gradient keeps the inputs alone, and runs the function again. That of `jax.lax.switch` would keep the weights
    with every tick (up to JAX 0.11).
    """

    def run(which: jax.Array, *inputs: Any) -> Any:
        floats, others, join = split(jax.tree.map(_floating, inputs), inputs)

        def forward(branch: Callable[..., Any]) -> Callable[..., Any]:
            return lambda floats, others: branch(*join(floats, others))

        def pull(branch: Callable[..., Any]) -> Callable[..., Any]:
            def gradient(floats: list, others: list, cotangents: list) -> list:
                def results(floats: list) -> list:
                    return [y for y in jax.tree.leaves(forward(branch)(floats, others)) if _floating(y)]

                return jax.vjp(results, floats)[1](cotangents)[0]

            return gradient

        @jax.custom_vjp
        def switch(which: jax.Array, floats: list, others: list) -> Any:
            return jax.lax.switch(which, [forward(branch) for branch in branches], floats, others)

        def backward(saved: tuple, cotangents: Any) -> tuple[None, list, None]:
            of_floats = [c for c in jax.tree.leaves(cotangents) if _floating(c)]
            return None, jax.lax.switch(saved[0], [pull(branch) for branch in branches], *saved[1:], of_floats), None

        switch.defvjp(lambda *args: (switch(*args), args), backward)
        return switch(which, floats, others)

    return run


def _floating(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _blank(leaf: jax.Array) -> jax.Array:
    """What stands where nothing has come, or ever will: never read."""
    return jnp.zeros_like(leaf)


def _pieces(leaf: jax.Array, axis: int, size: int, count: int) -> jax.Array:
    """[..., T, ...] as chunks [M, ..., size, ...], the last one filled up."""
    leaf = _filled(leaf, axis, size * count)
    return jnp.moveaxis(leaf.reshape(*leaf.shape[:axis], count, size, *leaf.shape[axis + 1 :]), axis, 0)


def _filled(leaf: jax.Array, axis: int, length: int) -> jax.Array:
    """As long as that: with copies, which nothing reads."""
    first = jax.lax.slice_in_dim(leaf, 0, 1, axis=axis)
    return jnp.concatenate([leaf, jnp.repeat(first, length - leaf.shape[axis], axis)], axis)


def _names(entry: Any) -> tuple:
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _cut_here(spec: P) -> P:
    """The spec without the mesh axes that are left to the compiler."""
    kept = [tuple(name for name in _names(entry) if name in MANUAL) for entry in spec]
    return P(*(names[0] if len(names) == 1 else names or None for names in kept))


def _layers(inputs: Any, staged: Any, stages: int) -> int:
    """L, which the stages divide among themselves."""
    shapes = [leaf.shape for leaf, there in zip(*map(jax.tree.leaves, (inputs, staged)), strict=True) if there]
    layers = sorted({shape[0] for shape in shapes if shape})
    if len(layers) != 1 or () in shapes:
        raise ValueError(
            f"what is over {STAGE!r} must have one number of layers as its first axis; shapes are {shapes}: "
            f"a leaf that all layers share gets a spec without it"
        )
    if layers[0] % stages:
        fitting = [n for n in range(1, layers[0] + 1) if layers[0] % n == 0]
        raise ValueError(
            f"{layers[0]} layers do not divide over {STAGE}={stages}: each stage has as many; "
            f"choose {STAGE} from {fitting}, or another number of layers"
        )
    return layers[0]


def _steps(below: Below, axis: int) -> int:
    """The length of below's axis that is cut."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(below)]
    if not shapes:
        raise ValueError("nothing enters below, so that nothing can be cut into chunks: a pipeline's grid has inputs")
    lengths = sorted({shape[axis] if len(shape) > axis else 0 for shape in shapes})
    if len(lengths) > 1 or any(len(shape) <= axis for shape in shapes):
        raise ValueError(
            f"below has shapes {shapes}: axis {axis} of every leaf is cut into chunks, so all need it, of one length"
        )
    return lengths[0]


def _alike(results: tuple[Any, Any], flows: tuple[Any, Any]) -> None:
    """Raises ValueError unless right is like left and above like below."""
    for (out, into), result, flow in zip((("right", "left"), ("above", "below")), results, flows, strict=True):
        got, want = (jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree) for tree in (result, flow))
        if got != want:
            raise ValueError(
                f"a pipeline's stages are alike: {out} must be like {into}, but of a chunk it is {got}, not {want}; "
                f"chain a first layer of another width before it"
            )
