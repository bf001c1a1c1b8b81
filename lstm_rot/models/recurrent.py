"""What the stacks of LSTM, GRU and RNN share: `scan(scan(cell, TIME), DEPTH)`, masked past each sequence's length.

A stack's params are a tuple of runs of equal layers, each one tree with a leading layer axis: all layers in one run
where input_size == hidden_size, else the first layer alone, then the others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lstm_rot.core import DEPTH, TIME, Above, Below, Branch, Cell, Left, Params, Right, chain, residual, scan
from lstm_rot.models import checks
from lstm_rot.schedules import Schedule


@dataclass(frozen=True)
class Config(checks.Dtypes):
    """Sizes of a recurrent stack; its dtypes are `Dtypes`'s.

    Raises ValueError for sizes below 1, dtypes that are not floating, and float64 while x64 is off.
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1

    def __post_init__(self):
        super().__post_init__()
        checks.sizes(self, "input_size", "hidden_size", "num_layers")

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(input width, number of layers) of each run of equal layers."""
        if self.input_size == self.hidden_size:
            return [(self.hidden_size, self.num_layers)]
        return [(self.input_size, 1)] + [(self.hidden_size, self.num_layers - 1)] * (self.num_layers > 1)


class Kind(NamedTuple):
    """A kind of recurrent stack."""

    branch: Branch
    init: Callable[..., Any]  # (key, input_size, hidden_size, dtype) -> the params of one layer
    zeros: Callable[[Config, int], Any]  # (config, batch) -> the carry, [L, B, H]
    flows: Callable[[Any], tuple[Any, Any]]  # carry -> stream, memory
    carry: Callable[[Any, Any], Any]  # stream, memory -> carry


class Hidden(NamedTuple):
    """The carry of cells without a memory of their own: the outputs, [L, B, H], in the stream's dtype."""

    h: Float[Array, "L B H"]


def zeros(config: Config, batch: int) -> Hidden:
    """The carry before the first step."""
    return Hidden(jnp.zeros((config.num_layers, batch, config.hidden_size), config.stream))


def without_memory(branch: Branch, init: Callable[..., Any]) -> Kind:
    """The kind whose stream is its output."""
    return Kind(branch, init, zeros, lambda carry: (carry.h, ()), lambda stream, memory: Hidden(stream))


def init(kind: Kind, key: jax.Array, config: Config, **options: Any) -> tuple:
    """Fresh params; layer l's key is the key folded with l, so that a further layer changes none below it."""
    make = partial(kind.init, hidden_size=config.hidden_size, dtype=config.param_dtype, **options)
    runs, first = [], 0
    for width, layers in config.runs:
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(first, first + layers))
        runs.append(jax.vmap(partial(make, input_size=width))(keys))
        first += layers
    return tuple(runs)


def apply(
    kind: Kind, params: Any, xs: Any, *, config: Config, lengths: Any, carry: Any, schedule: Schedule
) -> tuple[Any, jax.Array]:
    """Checks, then runs the jitted stack."""
    checks.floats("xs", xs, "T B D", config.input_size, config_field="config.input_size")
    steps, batch, _ = jnp.shape(xs)
    lengths = np.array(lengths, np.int32 if not lengths else None) if isinstance(lengths, list | tuple) else lengths
    expected_params, expected_carry = _shapes(kind, config, batch)
    checks.like("params", params, expected_params)
    checks.lengths_in(lengths, batch, steps)
    if carry is not None:
        checks.like("carry", carry, expected_carry)
    return _apply(kind, params, xs, lengths, carry, config=config, schedule=schedule)


@lru_cache
def _shapes(kind: Kind, config: Config, batch: int) -> tuple[Any, Any]:
    return jax.eval_shape(lambda: (init(kind, jax.random.key(0), config), kind.zeros(config, batch)))


@partial(jax.jit, static_argnums=0, static_argnames=("config", "schedule"))
def _apply(kind: Kind, params: Any, xs: Any, lengths: Any, carry: Any, *, config: Config, schedule: Schedule) -> Any:
    cell, below = residual(kind.branch), xs.astype(config.compute)
    if lengths is not None:
        valid = jnp.arange(len(xs), dtype="int32")[:, None] < lengths.astype("int32")
        # Before any product: what stands in the padding, NaN too, must not reach dW.
        cell, below = masked(cell), (jnp.where(valid[..., None], below, 0), valid)
    line = scan(cell, TIME, schedule=schedule)
    stream, memory = kind.flows(kind.zeros(config, xs.shape[1]) if carry is None else carry)
    left = stream.astype(config.stream), jax.tree.map(lambda leaf: leaf.astype(config.compute), memory)
    stacks, lefts, first = [], [], 0
    for width, layers in config.runs:
        stacks.append(scan(line, DEPTH) if width == config.hidden_size else _alone(line))
        lefts.append(jax.tree.map(lambda leaf, a=first, b=first + layers: leaf[a:b], left))
        first += layers
    rights, above = chain(*stacks)(config.cast(params), lefts, below)
    stream, memory = jax.tree.map(lambda *runs: jnp.concatenate(runs), *rights)
    return kind.carry(stream, memory), above if lengths is None else above[0]


def _alone(cell: Cell) -> Cell:
    """A line along DEPTH of one cell, so that what it hands on may be wider than what enters."""

    def line(p: Params, left: Left, below: Below) -> tuple[Right, Above]:
        p, left = jax.tree.map(lambda leaf: leaf[0], (p, left))
        right, above = cell(p, left, below)
        return jax.tree.map(lambda leaf: leaf[None], right), above

    return line


def masked(cell: Cell) -> Cell:
    """The cell for below = (x, valid [B]): where a sequence has ended it keeps its left and hands zeros on."""

    def with_mask(p: Params, left: Left, below: Below) -> tuple[Right, Above]:
        x, valid = below

        def select(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(valid.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        right, above = cell(p, left, x)
        return jax.tree.map(select, right, left), (jax.tree.map(lambda a: select(a, jnp.zeros_like(a)), above), valid)

    return with_mask
