"""What the tests share: the tolerances, the table of cells, and random trees."""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import reference

from lstm_rot import Axis, Cell, branches, residual

# The largest difference allowed between two ways to compute one result, in units of its largest entry (at least 1).
TOLERANCE = {"bfloat16": 3e-2, "float32": 2e-6, "float64": 1e-12}

TIME_UNTIED = Axis("left", tied=False)
DEPTH_TIED = Axis("below", tied=True)


class Example(NamedTuple):
    """A cell under test: what makes its weights, the numpy cell that it must agree with, whether it has a memory."""

    cell: Cell
    init: Callable[..., Any]
    oracle: Callable[..., Any]
    memory: bool = False


CELLS = {
    "lstm": Example(residual(branches.lstm.lstm), branches.lstm.init, reference.lstm, memory=True),
    "lstm_1997": Example(residual(branches.lstm.lstm_1997), branches.lstm.init_1997, reference.lstm_1997, memory=True),
    "gru": Example(residual(branches.gru.gru), branches.gru.init, reference.gru),
    "rnn": Example(residual(branches.rnn.rnn), branches.rnn.init, reference.rnn),
    "dense": Example(residual(branches.dense.dense), branches.dense.init, reference.dense),
    "plain": Example(residual(branches.with_keep(branches.dense.dense, 0)), branches.dense.init, reference.plain),
    "highway": Example(residual(branches.highway.highway), branches.highway.init, reference.highway),
}


def random_like(shapes: Any, seed: int, dtype: Any = None, prefix: tuple[int, ...] = ()) -> Any:
    """A tree of normal numbers of scale 1/2, of the given shapes behind the leading axes `prefix`; numpy arrays."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: np.asarray(rng.normal(size=prefix + s.shape) / 2, dtype or s.dtype), shapes)


def weights(example: Example, dtype: str, *prefix: int, width: int | None = 4, hidden: int = 4, seed: int = 0) -> Any:
    """Random weights of the example's cell behind leading axes; width None: of a cell without input."""
    init = partial(example.init, input_size=width, hidden_size=hidden, dtype=dtype)
    return random_like(jax.eval_shape(init, jax.random.key(0)), seed, prefix=prefix)


def flow(example: Example, dtype: str, *prefix: int, hidden: int = 4, seed: int = 1) -> Any:
    """A random (stream, memory) behind leading axes, for a batch of two."""
    stream, memory = normal(dtype, *prefix, 2, hidden, seed=seed), normal(dtype, *prefix, 2, hidden, seed=seed + 10)
    return stream, memory if example.memory else ()


def normal(dtype: str, *shape: int, seed: int = 2) -> np.ndarray:
    return random_like(jax.ShapeDtypeStruct(shape, dtype), seed)


def on_device(*trees: Any) -> Any:
    """The trees as jax arrays, for calls of a cell outside of `jax.jit`."""
    return jax.tree.map(jnp.asarray, trees)


def floats_of(tree: Any) -> list[np.ndarray]:
    """The leaves in float64, for comparisons (bfloat16 has no numpy arithmetic of its own)."""
    return [np.asarray(leaf).astype("float64") for leaf in jax.tree.leaves(tree)]


def assert_close(actual: Any, desired: Any, dtype: str, within: float | None = None) -> None:
    """The two trees agree leaf by leaf within the tolerance of `dtype`, or `within`, and hold only finite numbers."""
    actual, desired = floats_of(actual), floats_of(desired)
    assert [a.shape for a in actual] == [d.shape for d in desired]
    for a, d in zip(actual, desired, strict=True):
        bound = (within or TOLERANCE[dtype]) * max(1.0, np.abs(d).max(initial=0))
        np.testing.assert_allclose(a, d, rtol=0, atol=bound, equal_nan=False)
        assert np.isfinite(a).all()


def assert_exact(actual: Any, desired: Any) -> None:
    """The two trees are the same, bit for bit."""
    chex.assert_trees_all_equal_structs(actual, desired)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, desired)
    for a, d in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        a, d = np.asarray(a), np.asarray(d)
        assert (a.dtype, a.shape) == (d.dtype, d.shape)
        assert a.tobytes() == d.tobytes()


def weighed(results: Any, seed: int = 5) -> Any:
    """A scalar in which every entry of the results has a weight of its own: its gradient tests every gradient."""
    floating = [leaf for leaf in jax.tree.leaves(results) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum((leaf * random_like(leaf, seed + i)).sum() for i, leaf in enumerate(floating))


def loss(cell: Cell) -> Callable[..., Any]:
    return lambda p, left, below: weighed(cell(p, left, below))


def value_and_grads(cell: Cell, *args: Any) -> Any:
    """The results of a cell and the gradients of their `weighed` sum with respect to p, left and below."""

    def scalar(p: Any, left: Any, below: Any) -> Any:
        results = cell(p, left, below)
        return weighed(results), results

    grads, results = jax.jit(jax.grad(scalar, (0, 1, 2), has_aux=True))(*args)
    return results, grads


def compiled(f: Callable, *args: Any, **options: Any) -> Any:
    """The program of f for arguments like these: its text and its memory can be asked for."""
    return jax.jit(f, **options).lower(*args).compile()


def operations(f: Callable, *args: Any) -> Counter[str]:
    """How often each operation stands in the compiled program, fusions' and loops' bodies included."""
    return Counter(re.findall(r"^ .*? = .*? ([a-z][a-z0-9-]*)\(", compiled(f, *args).as_text(), re.MULTILINE))


# The bounds of a fast implementation: the largest difference from the reference in units of its largest entry.
AGREEMENT = {"bfloat16": 2e-2, "float32": 1e-5, "float64": 1e-12}


def disagreement(actual: Any, desired: Any) -> float:
    """max|a - b| / max|b|, the worst of the leaves; infinite where one is not finite, or not zero as the other is."""
    worst = 0.0
    for a, b in zip(floats_of(actual), floats_of(desired), strict=True):
        assert a.shape == b.shape
        difference, largest = np.abs(a - b).max(initial=0), np.abs(b).max(initial=0)
        if not np.isfinite(a).all() or (difference > 0 and largest == 0):
            return np.inf
        worst = max(worst, difference / largest if largest else 0.0)
    return worst


def stack_arguments(model: Any, config: Any, steps: int, batch: int, seed: int = 0) -> tuple[Any, np.ndarray, Any]:
    """Random params, inputs and carry of a recurrent stack."""
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), config))
    carry = jax.eval_shape(lambda: model.zeros(config, batch))
    xs = normal(config.param_dtype, steps, batch, config.input_size, seed=seed + 2)
    return random_like(params, seed), xs, random_like(carry, seed + 1)


def stack_gradients(model: Any, config: Any, **options: Any) -> Callable[..., Any]:
    """Jitted: results, and the gradients of their `weighed` sum with respect to params, xs and carry."""

    def scalar(params: Any, xs: Any, carry: Any) -> Any:
        results = model.apply(params, xs, config=config, carry=carry, **options)
        return weighed(jax.tree.map(lambda leaf: leaf.astype("float64"), results)), results

    def results_and_gradients(*args: Any) -> Any:
        gradients, results = jax.grad(scalar, (0, 1, 2), has_aux=True)(*args)
        return results, gradients

    return jax.jit(results_and_gradients)
