"""What every model checks before anything is compiled, and the three dtypes of a config."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Integer

Lengths = Integer[Any, "B"] | Sequence[int] | None


@dataclass(frozen=True, kw_only=True)
class Dtypes:
    """The dtypes of a model: given by name or as jnp.bfloat16 and the like, kept by name.

    param_dtype: of the weights. compute_dtype: of the products and of what cells hand on; None is param_dtype.
    stream_dtype: of the streams and the pointwise arithmetic; None is compute_dtype, but at least float32.
    """

    param_dtype: DTypeLike = "float32"
    compute_dtype: DTypeLike | None = None
    stream_dtype: DTypeLike | None = None

    def __post_init__(self):
        for field in ("param_dtype", "compute_dtype", "stream_dtype"):
            name = getattr(self, field)
            if name is None:
                continue
            try:
                floating = jnp.issubdtype(jnp.dtype(name), jnp.floating)
            except TypeError:
                floating = False
            if not floating:
                raise ValueError(
                    f"{field}={name!r}: name a floating dtype: 'bfloat16', 'float16', 'float32' or 'float64'"
                )
            object.__setattr__(self, field, jnp.dtype(name).name)
            if jnp.dtype(name) == jnp.float64 and not jax.config.jax_enable_x64:  # pyright: ignore
                raise ValueError(f"{field}='float64' needs jax.config.update('jax_enable_x64', True) at the start")

    @property
    def compute(self) -> Any:
        return jnp.dtype(self.compute_dtype or self.param_dtype)

    @property
    def stream(self) -> Any:
        at_least = self.compute if jnp.finfo(self.compute).bits > 32 else jnp.float32
        return jnp.dtype(self.stream_dtype or at_least)

    def cast(self, params: Any) -> Any:
        """The weights in the compute dtype, once, outside every loop."""
        return jax.tree.map(lambda leaf: leaf.astype(self.compute), params)


def sizes(config: Any, *fields: str) -> None:
    """Raises ValueError unless each named field of the config is a whole number of at least 1."""
    for field in fields:
        value = getattr(config, field)
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{field}={value!r}: give a whole number of at least 1")


def rates(config: Any, *fields: str) -> None:
    """Raises ValueError unless each named field of the config is a probability below 1."""
    for field in fields:
        rate(field, getattr(config, field))


def rate(name: str, value: Any) -> None:
    """Raises ValueError unless the value is a probability below 1."""
    numbers = int | float | np.integer | np.floating
    if isinstance(value, bool) or not isinstance(value, numbers) or not 0 <= value < 1:
        raise ValueError(f"{name}={value!r}: give a probability, at least 0 and below 1")


def step_number(name: str, value: Any) -> None:
    """Raises ValueError unless value is one whole number, of at least 0 where it is not traced."""
    whole = np.shape(value) == () and jnp.issubdtype(jnp.result_type(value), jnp.integer)
    if not whole or (not traced(value) and value < 0):
        raise ValueError(f"{name}={value!r}: give the number of the first step, a whole number of at least 0")


def fresh(key: Any, config: Any, kind: type) -> None:
    """Raises ValueError unless params can be made of these: one key, and a config of that kind."""
    if not isinstance(config, kind):
        raise ValueError(f"config={config!r}: give a {kind.__module__}.Config")
    if not _is_key(key):
        raise ValueError(f"key={key!r}: give one key, jax.random.key(seed)")


def key_in(key: Any) -> None:
    """Raises ValueError unless key is None or one key, as `jax.random.key` makes."""
    if key is not None and not _is_key(key):
        raise ValueError(f"key={key!r}: give one key, jax.random.key(seed), or None to run without dropout")


def _is_key(key: Any) -> bool:
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return shape == () if typed else dtype == np.uint32 and shape in ((2,), (4,))  # threefry's, rbg's


def floats(name: str, x: Any, shape: str, width: int, *, config_field: str) -> None:
    """Raises ValueError unless x is floating, of the rank that `shape` ("T B D") writes down, and `width` wide."""
    if isinstance(x, list | tuple):
        raise ValueError(f"{name} is a {type(x).__name__}: give an array, jnp.asarray({name})")
    if np.ndim(x) != len(shape.split()):
        first = ", time first" if shape.startswith("T") else ""
        raise ValueError(
            f"{name} has {np.ndim(x)} axes, shape {np.shape(x)}: give [{shape.replace(' ', ', ')}]{first}; "
            f"a single sequence or image gets a batch axis of 1"
        )
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} is {dtype}: give floating-point features (embed tokens, or {name}.astype('float32'))")
    if np.shape(x)[-1] != width:
        raise ValueError(f"{name} has {np.shape(x)[-1]} features, {config_field}={width}: shape is {np.shape(x)}")


def tokens(name: str, x: Any, shape: str, vocab_size: int) -> None:
    """Raises ValueError unless x holds numbers of words, of the rank that `shape` ("T B") writes down."""
    if isinstance(x, list | tuple):
        raise ValueError(f"{name} is a {type(x).__name__}: give an array, jnp.asarray({name})")
    if jnp.ndim(x) != len(shape.split()) or not jnp.issubdtype(jnp.result_type(x), jnp.integer):
        first = ", time first" if shape.startswith("T") else ""
        raise ValueError(
            f"{name} has shape {jnp.shape(x)} and dtype {jnp.result_type(x)}: give whole numbers, "
            f"[{shape.replace(' ', ', ')}]{first}"
        )
    if not traced(x) and np.size(x):
        values = np.asarray(x)
        if values.min() < 0 or values.max() >= vocab_size:
            raise ValueError(f"{name} run from {values.min()} to {values.max()}: give numbers in 0..{vocab_size - 1}")


def like(name: str, tree: Any, expected: Any) -> None:
    """Raises ValueError unless the tree has the structure and shapes of `expected`, and floats where it has floats."""
    if jax.tree.structure(tree) != jax.tree.structure(expected):
        raise ValueError(
            f"{name} is {jax.tree.structure(tree)}, the config makes {jax.tree.structure(expected)}: "
            f"was it made with another config?"
        )
    for (path, leaf), want in zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(expected), strict=True):
        if np.shape(leaf) != want.shape:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has shape {np.shape(leaf)}, the config makes {want.shape}: "
                f"was it made with another config?"
            )
        kind = next(kind for kind in (jnp.floating, jnp.integer, jnp.bool_) if jnp.issubdtype(want.dtype, kind))
        if not jnp.issubdtype(jnp.result_type(leaf), kind):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}, the config makes {want.dtype}"
            )


def traced(x: Any) -> bool:
    """Whether x stands for values that are not known yet, inside `jax.jit`, `jax.grad` or `jax.vmap`."""
    return isinstance(x, Tracer)


def whole(lengths: Any) -> Any:
    """Lengths given as a list, as an array; others as they are."""
    return np.array(lengths, np.int32 if not lengths else None) if isinstance(lengths, list | tuple) else lengths


def lengths_in(
    lengths: Any, batch: int, steps: int, *, name: str = "lengths", of: str = "the time steps of xs"
) -> None:
    """Raises ValueError unless lengths are [B] whole numbers in 0..T; the values of traced ones cannot be seen."""
    if lengths is None:
        return
    if np.shape(lengths) != (batch,) or not jnp.issubdtype(jnp.result_type(lengths), jnp.integer):
        raise ValueError(
            f"{name} has shape {np.shape(lengths)} and dtype {jnp.result_type(lengths)}: "
            f"give one whole number a sequence, shape ({batch},)"
        )
    if not traced(lengths):
        values = np.asarray(lengths)
        wrong = np.flatnonzero((values < 0) | (values > steps))
        if wrong.size:
            raise ValueError(f"{name}[{wrong[0]}] = {values[wrong[0]]} is outside 0..{steps}, {of}")


def automatic(run: Callable[..., Any], x: Any, specs: Any) -> Callable[..., Any]:
    """run, where its arrays lie being left to the compiler even if x lies on a mesh of explicit axes.

    Those are `jax.make_mesh`'s, unless it is told otherwise. specs: how the results lie over them, or a prefix of it:
    the models' as their examples do, and whole along all else. Within a `shard_map` nothing is changed.
    """
    mesh = jax.typeof(x).sharding.mesh
    mesh = jax.sharding.get_abstract_mesh() if mesh.empty else mesh
    if not mesh.explicit_axes or mesh.manual_axes:
        return run
    placed = jax.tree.map(partial(NamedSharding, mesh), specs)
    return jax.sharding.auto_axes(run, axes=mesh.explicit_axes, out_sharding=placed)
